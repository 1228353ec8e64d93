"""Processes that may take only so long and only so much memory, and whose death is an error and not the caller's."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medvl.contracts.errors import BuildError

_PR_SET_PDEATHSIG = 1
"""Of ``prctl(2)``."""

_POLL_S = 0.1
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Limits:
    """What a process may take."""

    time_s: float
    memory_gib: float
    """Resident memory at its highest, libraries included. Address space is not counted: CUDA reserves it at will."""


def run_bounded(command: Sequence[str], what: str, limits: Limits) -> int:
    """Run a command to its end.

    Parameters
    ----------
    command
        Program and arguments.
    what
        What the process does, as the subject of a sentence: ``The engine of sam2_track_step``.
    limits
        When it is killed.

    Returns
    -------
    int
        Bytes that were resident at the highest.

    Raises
    ------
    BuildError
        When it exceeded a limit, was killed by a signal, or failed; the sentence says which and holds the last line
        that it wrote to standard error.
    """
    deadline = time.monotonic() + limits.time_s
    peak = 0
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
        try:
            while True:
                try:
                    status = process.wait(_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    peak = max(peak, _peak_bytes(process.pid))
                if peak > limits.memory_gib * _GIB:
                    raise BuildError(
                        f"{what} took more than {limits.memory_gib:g} GiB of memory and was stopped: allow more with "
                        "--memory-limit-gib."
                    )
                if time.monotonic() > deadline:
                    raise BuildError(
                        f"{what} took longer than {limits.time_s:g} s and was stopped: allow more with --time-limit-s."
                    )
        finally:
            process.kill()
            process.wait()
        if status:
            log.seek(0)
            raise BuildError(f"{what} {_ending(status)}{_last_line(log.read().decode(errors='replace'))}")
    return peak


def end_with_parent() -> None:
    """End this process when its parent ends: a build that is killed leaves nobody who would stop it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _peak_bytes(pid: int) -> int:
    """Return the highest resident size of a process in bytes, as Linux keeps it; 0 of one that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)


def _ending(status: int) -> str:
    if status >= 0:
        return f"failed with exit status {status}"
    name = signal.Signals(-status).name
    return f"was killed by {name}" + (", most often for want of memory" if name == "SIGKILL" else "")


def _last_line(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return f": {lines[-1]}" if lines else "."
