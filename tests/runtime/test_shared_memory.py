"""Shared memory: only what dead servers left is swept."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from medvl.contracts.errors import SetupError
from medvl.runtime import shared_memory

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)
    return tmp_path


@pytest.fixture
def live_prefix() -> Iterator[str]:
    """The prefix of a server that runs: it stands on a command line."""
    prefix = shared_memory.new_prefix()
    with subprocess.Popen([sys.executable, "-c", "input()", prefix], stdin=subprocess.PIPE) as process:
        yield prefix
        process.kill()


def test_regions_of_dead_servers_are_removed(folder: Path) -> None:
    """A server that was killed cannot remove its own."""
    region = folder / f"{shared_memory.new_prefix()}4f1c-region"
    region.touch()
    assert shared_memory.sweep() == [region.name]
    assert not region.exists()


def test_regions_of_running_servers_stay(folder: Path, live_prefix: str) -> None:
    """Two systems on one machine do not disturb each other."""
    region = folder / f"{live_prefix}-region"
    region.touch()
    assert not shared_memory.sweep()
    assert region.exists()


def test_what_others_keep_in_shared_memory_stays(folder: Path) -> None:
    """Only names of ours are looked at."""
    for name in ("medvl-notes", "psm_1234", "sem.lock"):
        (folder / name).touch()
    assert not shared_memory.sweep()
    assert len(list(folder.iterdir())) == 3


def test_too_little_room_is_said_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container gives 64 MB, and the sentence says what to ask for."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 64 << 20))
    with pytest.raises(SetupError, match=r"64 MiB free but 256 are needed.*--shm-size"):
        shared_memory.check_room()
