"""Shared-memory regions of Triton's Python backend: names of our own, room enough, nothing left of dead servers.

A server that is killed leaves its regions behind, and they never shrink.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from pathlib import Path

import psutil

from medvl.contracts.errors import SetupError

FOLDER = Path("/dev/shm")  # noqa: S108  (where POSIX shared memory lives, not a place for temporary files)
MIN_FREE_BYTES = 256 * 1024**2
"""Room for the tensors in flight of one CT series on every hop; containers give 64 MB unless told otherwise."""

_PREFIX = re.compile(r"medvl-[0-9a-f]{12}")


def new_prefix() -> str:
    """Return a name that no other server uses; the regions of one server begin with it."""
    return f"medvl-{secrets.token_hex(6)}"


def check_room() -> None:
    """Check that shared memory holds what the models pass to each other.

    Raises
    ------
    SetupError
        When less than ``MIN_FREE_BYTES`` is free.
    """
    free = shutil.disk_usage(FOLDER).free
    if free < MIN_FREE_BYTES:
        raise SetupError(
            f"Shared memory ({FOLDER}) has {free >> 20} MiB free but {MIN_FREE_BYTES >> 20} are needed: "
            "give a container more with --shm-size=1g."
        )


def live_prefixes() -> set[str]:
    """Return the prefixes of servers that run: a server and its stubs name theirs on their command lines."""
    lines = (" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
    return {prefix for line in lines for prefix in _PREFIX.findall(line)}


def sweep() -> list[str]:
    """Remove this user's regions whose server is dead, and return their names."""
    regions = [path for path in FOLDER.glob("medvl-*") if _PREFIX.match(path.name) and _is_ours(path)]
    live = live_prefixes() if regions else set()
    stale = [path for path in regions if _PREFIX.match(path.name)[0] not in live]  # type: ignore[index]
    for path in stale:
        path.unlink(missing_ok=True)
    return [path.name for path in stale]


def _is_ours(path: Path) -> bool:
    try:
        return path.stat().st_uid == os.getuid()
    except FileNotFoundError:
        return False
