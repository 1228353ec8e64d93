"""What a hospital's host installs: the wheel with a few extras, and no gigabytes."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.heavy, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "vllm", "sam2", "transformers")


def run(*command: str | Path) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def constraints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The versions of the lock, without its hashes: the wheel under test has none."""
    lock = (ROOT / "requirements" / "lock-cpu.txt").read_text()
    path = tmp_path_factory.mktemp("constraints") / "constraints.txt"
    path.write_text("".join(f"{pin}\n" for pin in re.findall(r"^(\S+==\S+) ", lock, re.MULTILINE)))
    return path


@pytest.fixture(scope="module")
def host(wheel: Path, constraints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a clean environment with the wheel and its extras for a PACS host."""
    folder = tmp_path_factory.mktemp("host")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--constraint", constraints, f"{wheel}[client]", f"{wheel}[orchestrator]")
    return python


def test_the_wheel_holds_every_part_and_the_repository_template(wheel: Path) -> None:
    """Packages keep their names, typed markers travel, and Triton's template is package data."""
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in (
        "contracts",
        "imaging",
        "wire",
        "client",
        "orchestrator",
        "runtime",
        "network",
        "export",
        "serving",
    ):
        assert {f"medvl/{package}/__init__.py", f"medvl/{package}/py.typed"} <= names
    assert "medvl/__init__.py" not in names
    template = {p.relative_to(ROOT).as_posix() for p in (ROOT / "model_repository").rglob("*.pbtxt")}
    assert {f"medvl/export/{name}" for name in template} <= names


@pytest.mark.parametrize("module", ["medvl.client", "medvl.orchestrator.server", "medvl.runtime.system"])
def test_client_and_orchestrator_work_without_torch(host: Path, module: str) -> None:
    """They import where nothing heavy is installed."""
    script = f"import importlib.util as u, {module}; print([m for m in {HEAVY!r} if u.find_spec(m)])"
    assert run(host, "-I", "-c", script).strip() == "[]"


def test_the_command_line_works_without_torch(host: Path) -> None:
    """`medvl --help` lists the commands, `medvl up` among them."""
    assert "up" in run(host.with_name("medvl"), "--help")


def test_a_host_without_models_is_told_what_to_install(host: Path, tmp_path: Path) -> None:
    """`medvl up` cannot run the models there, and one sentence says what is missing."""
    done = subprocess.run(
        [host.with_name("medvl"), "up", "--data", tmp_path], check=False, capture_output=True, text=True
    )
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert "run make setup" in line
