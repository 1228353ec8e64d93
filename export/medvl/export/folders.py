"""Folders that appear whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medvl.contracts.errors import SetupError

VERSION = "1"
"""Every model of a repository has one version: a new build is a new repository."""


def target_of(folder: Path) -> Path:
    """Return the folder to make where one is named: what a link leads to is replaced, not the link.

    Raises
    ------
    SetupError
        When something is mounted there, which cannot be renamed.
    """
    folder = folder.resolve()
    if folder.is_mount():
        raise SetupError(f"{folder} is a mount point, which cannot be replaced: name a folder in it.")
    return folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock beside a folder, so that two processes do not make it at once; wait for another holder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with sibling(folder, "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def replacement(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the given one's place when the block ends without an error.

    The caller holds :func:`locked`, and has the folder of :func:`target_of`. Until the end the old folder stays as it
    is, and an error leaves it so. A process that dies between the two renames leaves the old folder aside, and the next
    call puts it back first.
    """
    staging, previous = sibling(folder, "staging"), sibling(folder, "previous")
    if previous.exists() and not folder.exists():
        previous.rename(folder)
    for leftover in (staging, previous):
        shutil.rmtree(leftover, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        if folder.exists():
            folder.rename(previous)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(previous, ignore_errors=True)


def sibling(folder: Path, role: str) -> Path:
    """Return the file or folder beside one that plays a role for it."""
    return folder.with_name(f".{folder.name}.{role}")


def link(path: Path, to: Path) -> None:
    """Give a file a second name, or copy it where the file system cannot; neither is to be changed in place then."""
    try:
        os.link(path.resolve(), to)
    except OSError:
        shutil.copyfile(path, to)
