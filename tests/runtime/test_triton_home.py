"""The server's home: the stub of this Python, its libpython, the backends."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from medvl.contracts.errors import SetupError
from medvl.contracts.paths import HOME_VARIABLE
from medvl.runtime import triton_home

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An unpacked server of empty files, with stubs for two Pythons of which one is ours."""
    tritonserver = tmp_path / "server" / "pytriton" / "tritonserver"
    for name in (
        "backends/python/libtriton_python.so",
        "caches/local/libtritoncache_local.so",
        "python_backend_stubs/3.8/triton_python_backend_stub",
        f"python_backend_stubs/{MINOR}/triton_python_backend_stub",
    ):
        (tritonserver / name).parent.mkdir(parents=True, exist_ok=True)
        (tritonserver / name).touch()
    monkeypatch.setattr(triton_home, "unpacked", lambda _: tmp_path / "server")
    return tritonserver


def test_a_home_holds_what_the_server_asks_for(server: Path, tmp_path: Path) -> None:
    """Backends, caches and repository agents are where the command line says."""
    home = triton_home.install_triton(tmp_path)
    folders = dict(a.removeprefix("--").split("=") for a in home.arguments()[1:])
    assert {p.name for p in Path(folders["backend-directory"]).iterdir()} == {"python", "onnxruntime"}
    assert (Path(folders["backend-directory"]) / "python" / "triton_python_backend_stub").is_file()
    assert (Path(folders["cache-directory"]) / "local").is_dir()
    assert not list(Path(folders["repoagent-directory"]).iterdir())


def test_the_stub_finds_this_interpreter(server: Path, tmp_path: Path) -> None:
    """This environment's programs come first, and the library folders hold our own libpython."""
    environment = triton_home.install_triton(tmp_path).environment()
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    folders = environment["LD_LIBRARY_PATH"].split(os.pathsep)
    assert any((Path(folder) / f"libpython{MINOR}.so.1.0").is_file() for folder in folders)


def test_the_backend_of_an_older_version_is_replaced(server: Path, tmp_path: Path) -> None:
    """The onnxruntime backend belongs to the project, and a home may be older than the project."""
    backends = triton_home.install_triton(tmp_path).assembled / "backends"
    (backends / "onnxruntime" / "model.py").write_text("old")
    triton_home.install_triton(tmp_path)
    assert (backends / "onnxruntime" / "model.py").read_text() == triton_home.ONNXRUNTIME_BACKEND


def test_a_python_without_a_stub_is_refused(server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence lists the Pythons that will do."""
    (server / "python_backend_stubs" / MINOR / "triton_python_backend_stub").unlink()
    (server / "python_backend_stubs" / MINOR).rmdir()
    with pytest.raises(SetupError, match=rf"runs Python 3\.8, not {MINOR}"):
        triton_home.install_triton(tmp_path)


def test_what_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command ends with a sentence that says what the system says of the folder."""
    (tmp_path / "file").touch()
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "file"))
    assert triton_home.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"({os.strerror(errno.ENOTDIR)})" in line
    assert "choose another folder with --data or MEDVL_HOME" in line


def test_a_server_that_cannot_be_copied_is_refused(server: Path, tmp_path: Path) -> None:
    """Of many files that fail, as on a full disk, none is named."""
    (server / "caches" / "lost").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SetupError, match=r"cannot be written to the data folder \(not all of it\)"):
        triton_home.install_triton(tmp_path)


def test_a_python_without_a_shared_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence names the package, or the switch to build with."""
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    with pytest.raises(SetupError, match=rf"install the package libpython{MINOR}"):
        triton_home.find_python_library({"LIBDIR": str(tmp_path), "MULTIARCH": "x86_64-linux-gnu"})


def test_a_library_below_the_multiarch_folder_is_found(tmp_path: Path) -> None:
    """Debian keeps libpython there."""
    folder = tmp_path / "x86_64-linux-gnu"
    folder.mkdir()
    (folder / f"libpython{MINOR}.so.1.0").touch()
    found = triton_home.find_python_library({"LIBDIR": str(tmp_path), "MULTIARCH": "x86_64-linux-gnu"})
    assert found == folder
