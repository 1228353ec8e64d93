"""``medvl-export`` answers in one sentence and an exit status."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from medvl.contracts.engines import EngineSet, Gpu, Machine
from medvl.contracts.manifest import Manifest
from medvl.export.cli import main
from medvl.export.presets import PRESETS, resolve_checkpoint


def run(capsys, *arguments):
    status = main([str(a) for a in arguments])
    return status, capsys.readouterr()


def test_check_tells_a_mismatch_on_standard_error(capsys, tmp_path):
    """A folder that is no checkpoint gives one line and status 1."""
    status, said = run(capsys, "check", tmp_path)
    assert status == 1
    assert said.out == ""
    assert said.err == f"The folder {tmp_path.name} holds no checkpoint.json: it is not a checkpoint.\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "repository"), "repository: Permission denied.\n"),
        (OSError(28, "No space left on device"), "No space left on device.\n"),
    ],
)
def test_what_the_system_refuses_is_one_line(capsys, monkeypatch, error, line):
    """With the path where the system names one; a full disk has none."""

    def fail(folder):
        raise error

    monkeypatch.setattr("medvl.export.cli.verify_repository", fail)
    status, said = run(capsys, "verify", "repository")
    assert (status, said.out, said.err) == (1, "", line)


def test_check_answers_in_json(capsys, tmp_path):
    """With ``--json`` the lines stand on standard output as well."""
    status, said = run(capsys, "check", tmp_path, "--json")
    assert status == 1
    assert len(json.loads(said.out)["mismatches"]) == 1


def test_check_passes_a_checkpoint(capsys, phantom_checkpoint):
    """A folder that holds the contract is said to, with status 0."""
    status, said = run(capsys, "check", phantom_checkpoint)
    assert (status, said.err) == (0, "")


def test_verify_proves_a_repository(capsys, phantom_repository, tmp_path):
    """A built repository holds; another folder is told how to become one."""
    status, said = run(capsys, "verify", phantom_repository)
    assert status == 0
    assert "holds its manifest: phantom" in said.out
    status, said = run(capsys, "verify", tmp_path)
    assert status == 1
    assert said.err.endswith("holds no manifest.json: build it with medvl-export build.\n")


def test_build_names_the_presets(capsys, tmp_path):
    """A checkpoint that is neither a folder nor a preset is told which presets there are."""
    status, said = run(capsys, "build", "--checkpoint", "nowhere", "--out", tmp_path / "r")
    assert status == 1
    assert said.err == "There is no folder nowhere, and no preset of that name; the presets are phantom.\n"


def test_build_answers_in_json(capsys, phantom_repository, phantom_checkpoint):
    """The result names the repository and the checkpoint, and says whether anything was done."""
    status, said = run(capsys, "build", "--checkpoint", phantom_checkpoint, "--out", phantom_repository, "--json")
    result = json.loads(said.out)
    assert (status, result["built"], result["checkpoint"]) == (0, False, "phantom")
    assert result["repository"] == str(phantom_repository)


def test_a_target_that_this_machine_lacks_is_explained(capsys, phantom_checkpoint, tmp_path):
    """Without TensorRT one sentence says what to install."""
    status, said = run(
        capsys, "build", "--checkpoint", phantom_checkpoint, "--target", "tensorrt", "--out", tmp_path / "r"
    )
    assert status == 1
    assert said.err.count("\n") == 1
    assert "pip install '.[tensorrt]' in a checkout" in said.err


def test_engines_have_options_and_graphs_none(capsys, tmp_path):
    """What would have no effect is refused, and so is what contradicts itself."""
    out = ("--checkpoint", "phantom", "--out", tmp_path / "r")
    status, said = run(capsys, "build", *out, "--precision", "fp16", "--time-limit-s", "60")
    assert status == 1
    assert said.err.startswith("--precision, --time-limit-s would have no effect on ONNX graphs")
    engines = (*out, "--target", "tensorrt")
    status, said = run(capsys, "build", *engines, "--builder", "torch-tensorrt", "--precision", "fp16")
    assert (status, "give --precision fp32, or --builder onnx" in said.err) == (1, True)
    status, said = run(capsys, "build", *engines, "--memory-limit-gib", "0")
    assert (status, "limits of a build are positive" in said.err) == (1, True)


def test_verify_refuses_engines_of_another_machine(capsys, monkeypatch, tmp_path):
    """The last line is the command that builds them again; the files alone can be proven anywhere."""
    gpu = Gpu(name="NVIDIA L40S", compute_capability="8.9", driver="580.95.05")
    engines = EngineSet(
        gpu=gpu,
        tensorrt="11.0.0.114",
        version_compatible=False,
        builder="onnx",
        precision="fp32",
        checkpoint="phantom",
        engines={},
    )
    digest = "0" * 64
    Manifest(
        checkpoint="phantom",
        checkpoint_digest=digest,
        trained=True,
        target="tensorrt",
        inputs=digest,
        versions={},
        files={},
        engines=engines,
    ).write(tmp_path)
    monkeypatch.setattr("medvl.export.cli.this_machine", lambda: Machine(gpus=(), tensorrt=None))
    status, said = run(capsys, "verify", tmp_path)
    assert status == 1
    command = "medvl-export build --checkpoint phantom --target tensorrt --builder onnx --precision fp32"
    assert said.err.endswith(f"Build them again on this machine: {command} --out {tmp_path}\n")
    assert run(capsys, "verify", tmp_path, "--files-only")[0] == 0


def test_help_does_not_wait_for_torch():
    """The command answers before the libraries that only a build needs."""
    code = "import sys; from medvl.export import cli; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_checkpoint_by_name_or_by_folder(tmp_path):
    """A preset's name leads to the folder that ships, anything else to a folder of the user's."""
    assert resolve_checkpoint("phantom") == PRESETS["phantom"]
    assert resolve_checkpoint(str(tmp_path)) == tmp_path


def test_train_phantom_replaces_nothing_but_a_checkpoint(capsys, tmp_path):
    """A folder that holds something else, such as the run itself, stays as it is."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "kept").touch()
    status, said = run(capsys, "train-phantom", "--out", tmp_path / "run", "--checkpoint", tmp_path / "run")
    assert status == 1
    assert said.err.endswith("is not a checkpoint that could be replaced: name another with --checkpoint.\n")
    assert (tmp_path / "run" / "kept").exists()


def test_train_phantom_names_its_stages(capsys, tmp_path):
    """Those of the device."""
    status, said = run(capsys, "train-phantom", "--out", tmp_path, "--stages", "clip")
    assert status == 1
    assert "There is no stage 'clip': the stages are cases, perception, coarse," in said.err


@pytest.mark.parametrize(
    ("option", "value"),
    [("--threads", "0"), ("--workers", "-1"), ("--cases", "5:5")],
    ids=["threads", "workers", "cases"],
)
def test_train_phantom_takes_numbers_of_things(capsys, tmp_path, option: str, value: str):
    """Whatever else is said before it has begun."""
    with pytest.raises(SystemExit):
        main(["train-phantom", "--out", str(tmp_path), option, value])
    assert f"argument {option}:" in capsys.readouterr().err


def test_a_file_in_place_of_a_folder_is_named(capsys, tmp_path):
    """Without a traceback."""
    (tmp_path / "run").touch()
    status, said = run(capsys, "train-phantom", "--out", tmp_path / "run", "--stages", "coarse", "--minutes", "0.001")
    assert status == 1
    assert said.err == f"{tmp_path / 'run'}: File exists.\n"
