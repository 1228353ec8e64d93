"""What a GPU host alone can do is imitated here where it goes wrong: engines, and a torch-tensorrt, of another kind."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from medvl.contracts.checkpoint import load_checkpoint
from medvl.contracts.engines import Machine
from medvl.contracts.errors import BuildError, ParityError, SetupError
from medvl.contracts.messages import MAX_POINTS
from medvl.contracts.models import MODELS
from medvl.export import engine_torch
from medvl.export.build import build_repository
from medvl.export.builders import builder_for
from medvl.export.engine_options import EngineOptions
from medvl.export.parts import Part
from medvl.export.presets import SPECS, resolve_checkpoint, resolve_spec
from medvl.export.samples import Samples
from medvl.export.tensorrt_builder import TensorRtBuilder, check_engine, engine_job, write_source
from medvl.network.memory_bank import MEMORIES, POINTERS
from medvl.network.propagation import MAX_OBJECTS

INPUT, OUTPUT = "in", "out"


class Engine:
    """A deserialised engine of the toy network."""

    def __init__(self):
        self.tensors = {
            "f2": (INPUT, "FLOAT", (-1, 3, 8)),
            "points": (INPUT, "FLOAT", (-1, -1, 2)),
            "mask_logits": (OUTPUT, "FLOAT", (-1, 3, 8)),
            "score": (OUTPUT, "FLOAT", (-1, -1)),
        }
        self.profile = {
            "f2": [(1, 3, 8), (2, 3, 8), (4, 3, 8)],
            "points": [(1, 1, 2), (2, 4, 2), (4, 32, 2)],
        }
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, i):
        return list(self.tensors)[i]

    def get_tensor_mode(self, name):
        return self.tensors[name][0]

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name=self.tensors[name][1])

    def get_tensor_shape(self, name):
        return self.tensors[name][2]

    def get_tensor_profile_shape(self, name, number):
        assert number == 0
        return self.profile[name]


def test_plans_are_written_and_told_in_either_precision(toy_part, tmp_path):
    """What the manifest is to say of an engine; TensorRT-RTX builds in TensorRT's place, and cannot load it here."""
    options, cache, engines = EngineOptions(), tmp_path / "cache", {}
    fp32 = TensorRtBuilder(options, cache, "fp32", None, engines, "tensorrt_rtx")
    fp16 = TensorRtBuilder(options, cache, "fp16", fp32, engines, "tensorrt_rtx")
    told = []
    for builder in (fp16, fp32):
        path = builder.build(toy_part, Samples(0), tmp_path)
        assert path == tmp_path / "model.plan"
        assert path.stat().st_size > 0
        told.append(engines["toy"])
    assert [record.precision for record in told] == ["fp16", "fp32"]
    assert told[0].graph_sha256 != told[1].graph_sha256
    assert told[0].layers > told[1].layers
    assert all(record.profile == {"P": (1, 4, 32), "batch": (1, 2, 4)} for record in told)
    assert cache.is_file()


def test_an_engine_of_the_contract_is_loaded(toy_part):
    """Bindings and profile are those of the part."""
    check_engine(toy_part, Engine(), INPUT)


def test_an_engine_of_another_type_is_refused(toy_part):
    """A half-precision output would be read as something else by Triton."""
    engine = Engine()
    engine.tensors["score"] = (OUTPUT, "HALF", (-1, -1))
    with pytest.raises(ParityError, match=r"bindings .*score FP32 .*but it has .*score FP16"):
        check_engine(toy_part, engine, INPUT)


def test_an_engine_that_takes_fewer_is_refused(toy_part):
    """A profile that ends at a smaller batch would refuse what is served."""
    engine = Engine()
    engine.profile["points"][2] = (2, 32, 2)
    with pytest.raises(ParityError, match=r"points from \[1, 1, 2\] to \[4, 32, 2\].* to \[2, 32, 2\]"):
        check_engine(toy_part, engine, INPUT)


def test_a_torch_tensorrt_that_cannot_name_bindings_is_refused(monkeypatch, toy_part, tmp_path):
    """As 2.13 cannot: the sentence says which can, and what else there is."""

    def convert(exported_program, *, arg_inputs, **settings):
        """Never called."""

    module = SimpleNamespace(
        __version__="2.13.0",
        dynamo=SimpleNamespace(convert_exported_program_to_serialized_trt_engine=convert),
    )
    monkeypatch.setitem(sys.modules, "torch_tensorrt", module)
    samples, options = Samples(0), EngineOptions("torch-tensorrt", "fp32")
    source = write_source(toy_part, samples, "torch-tensorrt", tmp_path)
    job = engine_job(
        toy_part,
        samples,
        source,
        tmp_path / "engine",
        scratch=tmp_path,
        library="tensorrt",
        options=options,
        precision="fp32",
    )
    with pytest.raises(
        BuildError, match=r"2\.13\.0 cannot name .* install 2\.14 or newer, or build with --builder onnx"
    ):
        engine_torch.convert(job)


def test_without_tensorrt_one_sentence_says_what_to_install(tmp_path):
    """This machine has none."""
    with pytest.raises(SetupError, match=r"tensorrt is not installed on this machine: pip install '\.\[tensorrt\]'"):
        builder_for("tensorrt", EngineOptions(), tmp_path / "cache")


@pytest.mark.parametrize("name", ["phantom", *SPECS])
def test_profiles_cover_what_is_served(name):
    """Objects, points, memories and pointers of one call, at the most that the serving code puts into it."""
    checkpoint = resolve_spec(name) if name in SPECS else load_checkpoint(resolve_checkpoint(name))
    conditioning = checkpoint.segmentation.max_conditioning_slices
    ranges = Part(MODELS["sam2_track_step"], None, {}).ranges
    assert ranges["N"].largest >= MAX_OBJECTS
    assert ranges["P"].largest >= MAX_POINTS
    assert ranges["R"].largest >= conditioning + MEMORIES - 1
    assert ranges["Q"].largest >= conditioning + POINTERS - 1


def test_without_a_gpu_nothing_is_built(monkeypatch, tmp_path):
    """It is said before the first engine, not behind the last; that there is no TensorRT here, either, is not told."""
    monkeypatch.setattr("medvl.export.fingerprint._version", lambda *_: "11.0.0")
    monkeypatch.setattr("medvl.export.fingerprint.this_machine", lambda: Machine(gpus=(), tensorrt=None))
    with pytest.raises(SetupError, match=r"^nvidia-smi does not tell the GPU of this machine"):
        build_repository(resolve_checkpoint("phantom"), "tensorrt", tmp_path / "r", lambda _: None)
