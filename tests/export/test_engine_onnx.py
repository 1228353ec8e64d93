"""Engines are built by TensorRT-RTX, which has TensorRT's parser and builder and needs no GPU; nothing is imitated."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from medvl.contracts.errors import BuildError, ParityError
from medvl.export.bounded import Limits
from medvl.export.engine_job import build_engine, graph_sha256
from medvl.export.engine_options import EngineOptions
from medvl.export.samples import Samples
from medvl.export.tensorrt_builder import check_facts, engine_job, write_source

GENEROUS = Limits(time_s=240.0, memory_gib=8.0)


def job_of(part, folder):
    samples, options = Samples(0), EngineOptions(precision="fp32")
    source = write_source(part, samples, "onnx", folder)
    return engine_job(
        part,
        samples,
        source,
        folder / "engine",
        scratch=folder,
        library="tensorrt_rtx",
        options=options,
        precision="fp32",
    )


@pytest.fixture(scope="module")
def toy_job(toy_part, tmp_path_factory):
    """A job that builds the toy network; its graph is shared, the engine is where a test puts it."""
    return job_of(toy_part, tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def facts(toy_job):
    """What its builder answered; the build left a timing cache."""
    cache = toy_job.source.with_name("cache")
    cache.write_bytes(b"damaged")
    return build_engine(toy_job.model_copy(update={"timing_cache": cache}), GENEROUS)


class Unsupported(torch.nn.Module):
    """Exports to an operator that no TensorRT has."""

    def forward(self, features, points):
        """Return something of the determinants."""
        return features + torch.linalg.det(features[:, :3, :3])[:, None, None], points[..., 0]


def test_the_parser_finds_the_contract_and_the_builder_an_engine(toy_part, toy_job, facts):
    """Names, types and free axes come back as the contract has them; the answer tells size, layers, hash and memory."""
    check_facts(toy_part, facts)
    assert facts.engine_bytes == toy_job.engine.stat().st_size > 0
    assert facts.layers > 0
    assert facts.graph_sha256 == graph_sha256(toy_job.source)
    assert facts.peak_bytes > 50 * 2**20


def test_other_tensors_than_the_contracts_are_refused(toy_part, facts):
    """A name or a length that differs is a part that disagrees."""
    renamed = replace(toy_part.model.outputs[1], name="grade")
    other = replace(toy_part, model=replace(toy_part.model, outputs=(toy_part.model.outputs[0], renamed)))
    with pytest.raises(ParityError, match=r"plan of toy should have the bindings grade FP32 .*, but it has .*score"):
        check_facts(other, facts)
    wider = replace(toy_part, static={"C": 4, "f_4": 8})
    with pytest.raises(ParityError, match=r"f2 FP32 \[-1, 4, 8\].*but it has f2 FP32 \[-1, 3, 8\]"):
        check_facts(wider, facts)


@pytest.mark.usefixtures("facts")
def test_a_timing_cache_is_left_for_the_next_build(toy_job):
    """A damaged one is replaced."""
    assert toy_job.source.with_name("cache").read_bytes() not in {b"", b"damaged"}


def test_inputs_take_the_shapes_of_the_profile(toy_job):
    """Free axes go from the smallest to the largest length; fixed ones are constants."""
    f2, points = toy_job.inputs
    assert (f2.smallest, f2.usual, f2.largest) == ((1, 3, 8), (2, 3, 8), (4, 3, 8))
    assert (points.smallest, points.usual, points.largest) == ((1, 1, 2), (2, 4, 2), (4, 32, 2))


def test_weights_beside_the_graph_belong_to_it(toy_part, toy_job, tmp_path):
    """They are parsed, converted and hashed with it."""
    graph, weights = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    model = onnx.load(toy_job.source)
    onnx.save(model, graph, save_as_external_data=True, location=weights.name, size_threshold=0)
    calibration = tmp_path / "calibration.npz"
    np.savez(calibration, **Samples(0).draw(toy_part.model, toy_part.cases[0]))
    job = toy_job.model_copy(update={"source": graph, "engine": tmp_path / "engine"})
    assert build_engine(job, GENEROUS).graph_sha256 == graph_sha256(graph)
    halved = build_engine(job.model_copy(update={"precision": "fp16", "calibration": calibration}), GENEROUS)
    check_facts(toy_part, halved)
    before = graph_sha256(graph)
    weights.write_bytes(weights.read_bytes()[::-1])
    assert graph_sha256(graph) != before


def test_an_unsupported_operator_is_named(toy_part, tmp_path):
    """The sentence tells model, operator and node; no engine appears."""
    job = job_of(replace(toy_part, module=Unsupported()), tmp_path)
    with pytest.raises(BuildError, match=r"engine of toy cannot be built: operator Det \(node Det_\d+\)"):
        build_engine(job, GENEROUS)
    assert not job.engine.exists()


def test_a_damaged_graph_is_refused(toy_job, tmp_path):
    """What is no ONNX graph is an error of that part, not a crash."""
    damaged = tmp_path / "model.onnx"
    damaged.write_bytes(toy_job.source.read_bytes()[:-100])
    with pytest.raises(BuildError, match="engine of toy cannot be built"):
        build_engine(toy_job.model_copy(update={"source": damaged}), GENEROUS)


def test_what_the_builder_lacks_is_told(toy_job):
    """The builder's last word stands in the sentence; TensorRT-RTX has no runtime to put into an engine."""
    with pytest.raises(BuildError, match=r"engine of toy cannot be built: .*libnvinfer_lean"):
        build_engine(toy_job.model_copy(update={"version_compatible": True}), GENEROUS)


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        (Limits(time_s=0.05, memory_gib=8.0), "engine of toy took longer than 0.05 s .* --time-limit-s"),
        (Limits(time_s=60.0, memory_gib=0.01), "engine of toy took more than 0.01 GiB .* --memory-limit-gib"),
    ],
)
def test_a_build_over_its_limit_is_stopped(toy_job, limits, sentence):
    """The sentence names the part and the option that allows more."""
    with pytest.raises(BuildError, match=sentence):
        build_engine(toy_job, limits)


def test_a_builder_that_crashes_is_an_error(toy_job, tmp_path, monkeypatch):
    """A segmentation fault in the library ends its process, and is told as the fault of that part."""
    Path(tmp_path, "tensorrt_rtx.py").write_text("import ctypes\nctypes.string_at(0)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(BuildError, match="engine of toy was killed by SIGSEGV"):
        build_engine(toy_job, GENEROUS)


def test_a_build_that_is_killed_leaves_no_builder(toy_job, tmp_path, monkeypatch):
    """The process that builds ends with the one that waits for it, though nobody is left to stop it."""
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    hang = f"import os, signal\nos.write(os.open({str(fifo)!r}, os.O_WRONLY), b'x')\nsignal.pause()\n"
    Path(tmp_path, "tensorrt_rtx.py").write_text(hang)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    job = tmp_path / "job.json"
    job.write_text(toy_job.model_dump_json())
    code = (
        "import pathlib; from medvl.export import bounded, engine_job as e; "
        f"e.build_engine(e.EngineJob.model_validate_json(pathlib.Path({str(job)!r}).read_bytes()), "
        "bounded.Limits(time_s=200.0, memory_gib=8.0))"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as build, fifo.open("rb") as alive:
        assert alive.read(1) == b"x"
        build.kill()
        # Its end of the pipe closes with it.
        assert alive.read() == b""


def test_a_program_for_torch_tensorrt_is_the_network(toy_part, tmp_path):
    """What the other builder is given computes what the reference computes, at sizes that it was not traced at."""
    samples = Samples(0)
    program = torch.export.load(write_source(toy_part, samples, "torch-tensorrt", tmp_path)).module()
    inputs = samples.draw(toy_part.model, toy_part.cases[2])
    found = program(*(torch.from_numpy(inputs[s.name]) for s in toy_part.model.inputs))
    for expected, tensor in zip(toy_part.reference(inputs).values(), found, strict=True):
        np.testing.assert_allclose(tensor.detach().numpy(), expected, rtol=1e-6)
