"""A build installs a whole repository or leaves the old one as it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from medvl.contracts.checkpoint import CHECKPOINT_FILE, load_checkpoint
from medvl.contracts.errors import BuildError, ParityError, SetupError
from medvl.contracts.manifest import MANIFEST_FILE, PARITY_FILE, load_manifest, verify_repository
from medvl.contracts.models import MODELS, Kind
from medvl.export import build as build_module
from medvl.export import builders, fingerprint, networks, parts
from medvl.export.bounded import Limits
from medvl.export.build import build_repository
from medvl.export.engine_job import build_engine
from medvl.export.engine_options import EngineOptions
from medvl.export.fresh import Cost, fresh, here
from medvl.export.gates import FP32_GATE
from medvl.export.onnx_builder import OnnxBuilder
from medvl.export.tensorrt_builder import engine_job


@pytest.fixture
def one_part(monkeypatch, toy_part):
    """Builds take a second: the networks are one toy network, in the place of a real one."""
    part = replace(toy_part, model=replace(toy_part.model, name="projector"))
    monkeypatch.setattr(networks, "fresh", here)
    monkeypatch.setattr(parts, "load_parts", lambda _: [part])


class Breaking(OnnxBuilder):
    """Loses its machine in the middle of a part."""

    def build(self, part, samples, folder):
        """Write half a file and die."""
        (folder / "model.onnx").write_bytes(b"half")
        raise OSError("no space left")


class Refused(OnnxBuilder):
    """Has every graph built by TensorRT-RTX as well, in a process of its own; this one has an operator too many."""

    def build(self, part, samples, folder):
        """Export a network of another kind, then build its engine."""
        path = super().build(replace(part, module=Determinant()), samples, folder)
        options = EngineOptions(precision="fp32")
        job = engine_job(
            part, samples, path, folder / "e", scratch=folder, library="tensorrt_rtx", options=options, precision="fp32"
        )
        build_engine(job, Limits(time_s=240.0, memory_gib=8.0))
        return path


class Determinant(torch.nn.Module):
    """Exports to an operator that TensorRT does not have."""

    def forward(self, features, points):
        """Return something of the determinants."""
        return features + torch.linalg.det(features[:, :3, :3])[:, None, None], points[..., 0]


class Lying(OnnxBuilder):
    """Runs another network than it built."""

    def load(self, part, path):
        """Return a runner that is a thousandth off."""
        run = super().load(part, path)
        return lambda inputs: {name: array + 0.001 for name, array in run(inputs).items()}


def build(checkpoint, out):
    return build_repository(checkpoint, "cpu", out, lambda _: None)


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_repository_is_whole(phantom_repository, phantom_checkpoint):
    """Every model has its configurations and its file, and the manifest holds."""
    manifest = verify_repository(phantom_repository)
    checkpoint = load_checkpoint(phantom_checkpoint)
    assert manifest.checkpoint_digest == checkpoint.digest
    for name, model in MODELS.items():
        folder = phantom_repository / "models" / name
        assert (folder / "config.pbtxt").is_file()
        assert (folder / "1").is_dir()
        assert (folder / "1" / "model.onnx").is_file() == (model.kind is Kind.NETWORK)
        if model.kind is Kind.NETWORK:  # the graph is small whatever the network's size
            assert (folder / "1" / "model.onnx").stat().st_size < 500_000
            assert (folder / "1" / "model.onnx.data").stat().st_size > 500_000
        assert (folder / "1" / "model.py").is_file() == (model.kind is Kind.PYTHON)
    assert (phantom_repository / "models" / "llm" / "1" / "llm" / "config.json").is_file()
    text = (phantom_checkpoint / CHECKPOINT_FILE).read_text()
    assert (phantom_repository / CHECKPOINT_FILE).read_text() == text


def test_every_network_passed_its_gate(phantom_repository):
    """The report holds every network at several sizes, within the gate, with masks that are not empty."""
    report = json.loads((phantom_repository / PARITY_FILE).read_text())
    assert report["parts"].keys() == {n for n, m in MODELS.items() if m.kind is Kind.NETWORK}
    for name, part in report["parts"].items():
        assert len({json.dumps(c["sizes"]) for c in part["cases"]}) == 3
        outputs = [(o, c["outputs"][o]) for c in part["cases"] for o in c["outputs"]]
        assert all(o["max_abs"] <= FP32_GATE.max_abs and o["cosine"] >= FP32_GATE.cosine for _, o in outputs), name
        masks = [o for n, o in outputs if n == "mask_logits"]
        assert not masks or any(m["foreground"] for m in masks), name


def test_a_second_build_does_nothing(phantom_repository, phantom_checkpoint):
    """With unchanged inputs the command says so, without loading torch."""
    code = (
        "import sys; from medvl.export.cli import main; "
        f"status = main(['build', '--checkpoint', {str(phantom_checkpoint)!r}, '--out', {str(phantom_repository)!r}]); "
        "sys.exit(status or 'torch' in sys.modules)"
    )
    before = (phantom_repository / MANIFEST_FILE).stat().st_mtime_ns
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{phantom_repository} is up to date\n"
    assert (phantom_repository / MANIFEST_FILE).stat().st_mtime_ns == before


@pytest.mark.usefixtures("one_part")
def test_builds_are_reproducible(phantom_checkpoint, tmp_path):
    """Two builds of the same inputs are the same bytes, the manifest included."""
    build(phantom_checkpoint, tmp_path / "a")
    build(phantom_checkpoint, tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.usefixtures("one_part")
@pytest.mark.parametrize(("builder", "error"), [(Breaking, OSError), (Lying, ParityError), (Refused, BuildError)])
def test_a_failed_build_leaves_the_old_repository(monkeypatch, phantom_checkpoint, tmp_path, builder, error):
    """Neither a refused part nor a crash touches what stands there; beside it is what a next build goes on from."""
    out = tmp_path / "repository"
    build(phantom_checkpoint, out)
    old = content(out)
    monkeypatch.setattr(builders, "builder_for", lambda *_: builder())
    monkeypatch.setattr("medvl.export.build.inputs_digest", lambda *_: "f" * 64)
    with pytest.raises(error):
        build(phantom_checkpoint, out)
    assert content(out) == old
    beside = {".repository.lock", ".repository.build.json", ".repository.work"}
    assert {p.name for p in tmp_path.iterdir()} == {"repository", *beside}
    assert [p.name for p in (tmp_path / ".repository.work").iterdir()] == ["inputs"]


@pytest.mark.usefixtures("one_part")
def test_a_failed_first_build_leaves_nothing(monkeypatch, phantom_checkpoint, tmp_path):
    """A folder that appears is whole."""
    monkeypatch.setattr(builders, "builder_for", lambda *_: Lying())
    with pytest.raises(ParityError, match="nothing was installed"):
        build(phantom_checkpoint, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_a_build_goes_on_behind_what_was_finished(monkeypatch, toy_part, phantom_checkpoint, tmp_path):
    """A part that passed its gate is not built again, and takes no second step; what came of it is the same."""
    first, second = (replace(toy_part, model=replace(toy_part.model, name=n)) for n in ("vision_encoder", "projector"))
    monkeypatch.setattr(networks, "fresh", here)
    monkeypatch.setattr(parts, "load_parts", lambda _: [first, second])
    whole = build(phantom_checkpoint, tmp_path / "whole")
    out = tmp_path / "repository"

    class Once(OnnxBuilder):
        """Dies at the second part."""

        def build(self, part, samples, folder):
            if part.model.name == "projector":
                raise OSError("killed")
            return super().build(part, samples, folder)

    with monkeypatch.context() as patch:
        patch.setattr(builders, "builder_for", lambda *_: Once())
        with pytest.raises(OSError, match="killed"):
            build(phantom_checkpoint, out)
    result = build(phantom_checkpoint, out)
    assert [(s.part, s.kind) for s in result.steps] == [("projector", "build"), ("projector", "compare")]
    assert content(out) == content(tmp_path / "whole")
    assert len(whole.steps) == 4
    assert not (tmp_path / ".repository.work").exists()


def test_bytes_that_passed_no_gate_are_not_installed(monkeypatch, toy_part, phantom_checkpoint, tmp_path):
    """A part that was finished and then changed is refused, and made anew by the next build."""
    first, second = (replace(toy_part, model=replace(toy_part.model, name=n)) for n in ("vision_encoder", "projector"))
    monkeypatch.setattr(networks, "fresh", here)
    monkeypatch.setattr(parts, "load_parts", lambda _: [first, second])
    out, graph = tmp_path / "repository", Path("vision_encoder", "model.onnx")

    class Damaging(OnnxBuilder):
        """The first part is changed while the second is made."""

        def build(self, part, samples, folder):
            if part.model.name == "projector":
                damage(out.with_name(".repository.work") / graph)
            return super().build(part, samples, folder)

    with monkeypatch.context() as patch:
        patch.setattr(builders, "builder_for", lambda *_: Damaging())
        with pytest.raises(SetupError, match=r"^Files of vision_encoder were changed .* nothing was installed"):
            build(phantom_checkpoint, out)
    assert not out.exists()
    result = build(phantom_checkpoint, out)
    assert [(s.part, s.kind) for s in result.steps] == [("vision_encoder", "build"), ("vision_encoder", "compare")]


def damage(path):
    """Turn the bits of the first byte; size and time of change stay."""
    state, content = path.stat(), path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 255]) + content[1:])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.usefixtures("one_part")
def test_damaged_networks_are_not_taken_over(monkeypatch, phantom_checkpoint, tmp_path):
    """Size and time of change do not tell it; the next build reads every byte and makes them anew."""
    out = tmp_path / "repository"
    build(phantom_checkpoint, out)
    damage(out / "models" / "projector" / "1" / "model.onnx")
    inputs = build_module._inputs
    monkeypatch.setattr(build_module, "_inputs", lambda *given: replace(inputs(*given), everything="f" * 64))
    with pytest.raises(SetupError, match=r"^Files of projector were changed"):
        build(phantom_checkpoint, out)
    assert len(build(phantom_checkpoint, out).steps) == 2
    verify_repository(out)


def test_a_changed_entry_point_is_another_input(monkeypatch, tmp_path):
    """It is copied into the repository; what Python keeps beside it is not."""
    template = shutil.copytree(fingerprint.template_folder(), tmp_path / "template")
    monkeypatch.setattr(fingerprint, "template_folder", lambda: template)

    def inputs():
        return fingerprint.inputs_digest("0" * 64, "cpu", EngineOptions())

    before, folder = inputs(), template / "llm" / "1"
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "model.py").write_text("kept")
    assert inputs() == before
    (folder / "model.py").write_text("changed")
    assert inputs() != before
    assert "onnx-ir" in fingerprint.tool_versions("cpu", EngineOptions())


def test_weights_of_the_language_model_are_linked(phantom_repository, phantom_checkpoint):
    """Seven billion of them are not written twice; what an editor changes in place is a file of its own."""
    names = ("llm/model.safetensors", "llm/config.json")
    served, own = (
        [(folder / name).stat().st_ino for name in names]
        for folder in (phantom_repository / "models" / "llm" / "1", phantom_checkpoint)
    )
    assert served[0] == own[0]
    assert served[1] != own[1]


def fill(megabytes):
    """Take so much memory, in a process that has nothing else to do."""
    return len(bytearray(b"x") * (megabytes * 10**6))


def refuse(sentence):
    raise SetupError(sentence)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_step_tells_what_it_took():
    """Memory above what the process had at its beginning, and time."""
    done = fresh(fill, 200)
    assert done.value == 200 * 10**6
    assert isinstance(done.cost, Cost)
    assert 190e6 < done.cost.peak_bytes < 320e6
    assert fresh(fill, 1).cost.peak_bytes < 100e6


def test_a_step_that_ends_badly_is_an_error():
    """Its own, or one that says that the process was killed."""
    with pytest.raises(SetupError, match=r"^no room$"):
        fresh(refuse, "no room")
    with pytest.raises(SetupError, match=r"kill ended with status -9"):
        fresh(kill)


def wait(path):
    path.write_text(str(os.getpid()))
    threading.Event().wait()


def test_a_step_ends_with_who_asked(tmp_path):
    """A build that is killed leaves no process at work."""
    told = tmp_path / "pid"
    code = (
        "from pathlib import Path; from medvl.export.fresh import fresh; import tests.export.test_build as t; "
        f"fresh(t.wait, Path({str(told)!r}))"
    )
    build = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    while not (told.is_file() and told.read_text()):
        assert build.poll() is None
        time.sleep(0.1)
    step = psutil.Process(int(told.read_text()))
    build.kill()
    build.wait()
    step.wait(10.0)
    assert not step.is_running()


@pytest.mark.usefixtures("one_part")
def test_a_corrupted_repository_is_built_again(phantom_checkpoint, tmp_path):
    """A build mends a repository that does not hold its manifest, and leaves one that does."""
    out = tmp_path / "repository"
    assert build(phantom_checkpoint, out).built
    assert not build(phantom_checkpoint, out).built
    (out / "models" / "projector" / "1" / "model.onnx").write_bytes(b"x")
    assert build(phantom_checkpoint, out).built
    assert verify_repository(out) == load_manifest(out)


def test_a_foreign_folder_is_not_replaced(phantom_checkpoint, tmp_path):
    """A folder that no build wrote is refused, not deleted."""
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(SetupError, match="holds something else than a repository: name another with --out"):
        build(phantom_checkpoint, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years"
