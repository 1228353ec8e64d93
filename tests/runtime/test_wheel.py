"""Fetching the Triton server: once, proven, and with a sentence for whatever is in the way."""

from __future__ import annotations

import platform
import shutil
import subprocess
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from medvl.contracts.errors import SetupError
from medvl.runtime import triton_wheel

Usage = namedtuple("Usage", "total used free")


def test_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is an x86-64 binary, and the sentence says so before anything is fetched."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(SetupError, match="Linux x86_64 and this is Linux aarch64"):
        triton_wheel.check_platform()


@pytest.mark.parametrize("libc", [("glibc", "2.31"), ("", "")])
def test_an_old_or_other_c_library_is_refused(monkeypatch: pytest.MonkeyPatch, libc: tuple[str, str]) -> None:
    """Debian 11 and Alpine are told which systems will do."""
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    with pytest.raises(SetupError, match=r"needs glibc 2\.35 or newer"):
        triton_wheel.check_platform()


def test_a_full_disk_is_noticed_before_the_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is fetched that would not fit."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 10, 5 << 20))
    monkeypatch.setattr(triton_wheel, "fetch_wheel", lambda _: pytest.fail("fetched"))
    with pytest.raises(SetupError, match="has 5 MiB free but the Triton server needs 400"):
        triton_wheel.unpacked(tmp_path)


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("WARNING: Retrying after connection broken by NewConnectionError\nERROR: No matching distribution", "network"),
        ("ERROR: No matching distribution found for nvidia-pytriton==0.7.0", "does not offer"),
        ("OSError: [Errno 28] No space left on device", "disk ran full"),
        ("ERROR: something else", "pip could not fetch"),
    ],
)
def test_a_failed_download_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: str, sentence: str
) -> None:
    """What pip prints over many lines becomes one sentence."""
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, output, ""))
    with pytest.raises(SetupError, match=sentence):
        triton_wheel.fetch_wheel(tmp_path)


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    """A package index that hands out something else is found out."""
    wheel = tmp_path / "nvidia_pytriton.whl"
    wheel.write_bytes(b"not the server")
    with pytest.raises(SetupError, match="not the pinned one"):
        triton_wheel.check_hash(wheel)


@pytest.fixture
def small_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A wheel of the server's shape, which the download hands out once."""
    wheel = tmp_path / "small.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("pytriton/tritonserver/bin/tritonserver", "#!/bin/sh\n")
        archive.writestr("pytriton/tritonserver/python_backend_stubs/3.11/triton_python_backend_stub", "")
        archive.writestr("pytriton/client/client.py", "import numpy")
        archive.writestr("nvidia_pytriton.libs/libtritonserver.so", "")
    monkeypatch.setattr(triton_wheel, "fetch_wheel", lambda _: wheel)
    return wheel


def test_only_the_server_is_unpacked_and_it_can_run(small_wheel: Path, tmp_path: Path) -> None:
    """The Python library in the wheel stays there; programs get back the permission that archives lose."""
    content = triton_wheel.unpacked(tmp_path / "runtime")
    assert subprocess.run([content / "pytriton/tritonserver/bin/tritonserver"], check=True).returncode == 0
    assert (content / "nvidia_pytriton.libs").is_dir()
    assert not (content / "pytriton/client").exists()


def test_the_server_is_fetched_once(small_wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second call finds the first one's work, and no scraps are left beside it."""
    first = triton_wheel.unpacked(tmp_path / "runtime")
    monkeypatch.setattr(triton_wheel, "fetch_wheel", lambda _: pytest.fail("fetched again"))
    assert triton_wheel.unpacked(tmp_path / "runtime") == first
    assert list((tmp_path / "runtime").iterdir()) == [first]


def test_a_failed_fetch_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The next start begins from scratch, not from half a server."""
    done = subprocess.CompletedProcess([], 1, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(SetupError):
        triton_wheel.unpacked(tmp_path / "runtime")
    assert not list((tmp_path / "runtime").iterdir())


def test_a_python_without_pip_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Environments made by other tools have no pip."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(SetupError, match="ensurepip"):
        triton_wheel.fetch_wheel(tmp_path)
