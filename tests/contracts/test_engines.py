"""Engines that were built for another machine are refused, with the command that builds them again."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from medvl.contracts import engines
from medvl.contracts.engines import EngineRecord, EngineSet, Gpu, Machine, require_fit, this_machine
from medvl.contracts.errors import CheckpointError, SetupError
from medvl.contracts.manifest import Manifest, record_files, require_machine, verify_repository

H100 = Gpu(name="NVIDIA H100 80GB HBM3", compute_capability="9.0", driver="580.95.05")
L40S = Gpu(name="NVIDIA L40S", compute_capability="8.9", driver="580.95.05")
HERE = Machine(gpus=(H100, H100), tensorrt="11.0.0")
RECORD = EngineRecord(precision="fp16", layers=12, profile={"batch": (1, 2, 4)}, graph_sha256="3" * 64)
SET = EngineSet(
    gpu=H100,
    tensorrt="11.0.0.114",
    version_compatible=False,
    builder="onnx",
    precision="fp16",
    checkpoint="phantom",
    engines={"projector": RECORD},
)
OPTIONS = "--target tensorrt --builder onnx --precision fp16"
COMMAND = f"medvl-export build --checkpoint phantom {OPTIONS} --out '/srv/a repository'"


def refusal(found: EngineSet, machine: Machine) -> str:
    with pytest.raises(SetupError) as caught:
        require_fit(found, Path("/srv/a repository"), machine)
    return str(caught.value)


def test_engines_fit_the_machine_that_built_them():
    """Also beside a second GPU of the kind, and under a newer driver."""
    require_fit(SET, Path("r"), HERE)
    newer = H100.model_copy(update={"driver": "590.10"})
    require_fit(SET, Path("r"), Machine(gpus=(newer,), tensorrt="11.0.0.114"))


def test_a_quantised_language_model_is_in_the_command():
    """Without it the next build would serve another."""
    found = SET.model_copy(update={"quantised": "/srv/int8"})
    assert f"--checkpoint phantom --quantised /srv/int8 {OPTIONS}" in refusal(found, Machine(gpus=(), tensorrt=None))


@pytest.mark.parametrize(
    ("machine", "line"),
    [
        (Machine(gpus=(H100, L40S), tensorrt="11.0.0"), "GPU: built for NVIDIA H100 80GB HBM3, found NVIDIA L40S"),
        (Machine(gpus=(L40S,), tensorrt="11.0.0"), "compute capability: built for 9.0, found 8.9"),
        (
            Machine(gpus=(H100.model_copy(update={"driver": "575.51"}),), tensorrt="11.0.0"),
            "driver: built with 580.95.05, found the older 575.51",
        ),
        (Machine(gpus=(H100,), tensorrt="11.1.0"), "TensorRT: built with 11.0.0.114, found 11.1.0; the same version"),
        (Machine(gpus=(H100,), tensorrt=None), "TensorRT: no libnvinfer can be loaded here"),
        (Machine(gpus=(), tensorrt="11.0.0"), "GPU: no GPU can be read here; nvidia-smi"),
    ],
)
def test_another_machine_is_told_what_differs_and_what_to_do(machine, line):
    """One line for every difference; the last is the command, ready for a shell."""
    said = refusal(SET, machine)
    assert line in said
    assert said.endswith(f"Build them again on this machine: {COMMAND}")


def test_version_compatible_engines_load_in_newer_versions_of_the_major_version():
    """As NVIDIA documents it: not in older ones, and not across major versions."""
    compatible = SET.model_copy(update={"version_compatible": True})
    require_fit(compatible, Path("r"), Machine(gpus=(H100,), tensorrt="11.3.1"))
    for other in ("10.16.1", "12.0.0"):
        said = refusal(compatible, Machine(gpus=(H100,), tensorrt=other))
        assert "the same major version, as new or newer is needed" in said
        assert "--version-compatible --out" in said
    older = compatible.model_copy(update={"tensorrt": "11.2.0"})
    assert "found 11.1.0" in refusal(older, Machine(gpus=(H100,), tensorrt="11.1.0"))


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """A driver's tool that names two GPUs, or those that it is asked for."""
    path = tmp_path / "bin" / "nvidia-smi"
    path.parent.mkdir()
    lines = [f"{g.name}, {g.compute_capability}, {g.driver}" for g in (H100, L40S)]
    path.write_text(
        f"#!/bin/sh\ncase $3 in --id=1) echo '{lines[1]}';; *) printf '%s\\n' '{lines[0]}' '{lines[1]}';; esac\n"
    )
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return path


@pytest.mark.usefixtures("smi")
def test_the_driver_tells_the_gpus(monkeypatch):
    """All of them, or those that CUDA leaves visible, of which there may be none."""
    assert this_machine().gpus == (H100, L40S)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert this_machine().gpus == (L40S,)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert this_machine().gpus == ()


def test_a_tool_that_fails_tells_no_gpu(smi):
    """As where there is no driver behind it."""
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert this_machine().gpus == ()


def test_the_library_tells_its_version():
    """Asked of the library itself, here TensorRT-RTX's, which answers the same call."""
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    (folder,) = spec.submodule_search_locations
    (library,) = Path(folder).glob("libtensorrt_rtx.so.*")
    assert engines.library_version(str(library)) == "1.7.1"
    assert engines.library_version("libnvinfer-of-nowhere.so") is None


@pytest.fixture
def repository(tmp_path):
    """A repository of two engines that this machine cannot load."""
    for model in ("projector", "vision_encoder"):
        (tmp_path / "models" / model / "1").mkdir(parents=True)
        (tmp_path / "models" / model / "1" / "model.plan").write_bytes(model.encode())
    Manifest(
        checkpoint="tiny",
        checkpoint_digest="0" * 64,
        trained=False,
        target="tensorrt",
        inputs="1" * 64,
        versions={},
        files=record_files(tmp_path),
        engines=SET,
    ).write(tmp_path)
    return tmp_path


def test_a_manifest_keeps_what_its_engines_were_built_for(repository):
    """It comes back as it was written, and is asked of the machine."""
    manifest = verify_repository(repository)
    assert manifest.engines == SET
    require_machine(repository, manifest, HERE)
    with pytest.raises(SetupError, match="do not fit this machine"):
        require_machine(repository, manifest, Machine(gpus=(L40S,), tensorrt="11.0.0"))


def test_engines_in_each_others_place_are_refused(repository):
    """Both are named."""
    one, other = (repository / "models" / m / "1" / "model.plan" for m in ("projector", "vision_encoder"))
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    one.write_bytes(contents[1])
    with pytest.raises(CheckpointError) as caught:
        verify_repository(repository)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "models/projector/1/model.plan",
        "models/vision_encoder/1/model.plan",
    ]


def test_engines_of_unknown_origin_are_refused(repository):
    """A manifest that does not say what its engines were built for is not enough."""
    manifest = verify_repository(repository).model_copy(update={"engines": None})
    with pytest.raises(CheckpointError, match="does not say what its engines were built for: build it again"):
        require_machine(repository, manifest, HERE)


def test_graphs_run_on_any_machine(repository):
    """A repository of ONNX graphs asks nothing."""
    manifest = verify_repository(repository).model_copy(update={"target": "cpu", "engines": None})
    require_machine(repository, manifest, Machine(gpus=(), tensorrt=None))
