"""vLLM's processes end with the Triton stub that started them, however it ends.

A killed stub would leave an engine behind that holds its memory for ever, and so does one stop in four that runs into
Triton's exit timeout.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress

import psutil


def end_with(process_id: int) -> None:
    """End this process, and its parent unless that is the process itself, when ``process_id`` has ended."""
    watched, parent = os.pidfd_open(process_id), os.getppid()
    doomed = [os.getpid()] if parent == process_id else [parent, os.getpid()]
    threading.Thread(target=_end_after, args=(watched, doomed), name="end-with-stub", daemon=True).start()


def _end_after(watched: int, doomed: Sequence[int]) -> None:
    select.select([watched], [], [])
    for process_id in doomed:
        with suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGKILL)


def children() -> list[psutil.Process]:
    """Return the descendants of this process, but for multiprocessing's resource trackers.

    A tracker frees what its killed owner left in shared memory and then ends by itself.
    """
    found = psutil.Process().children(recursive=True)
    return [process for process in found if not _is_resource_tracker(process)]


def _is_resource_tracker(process: psutil.Process) -> bool:
    try:
        return any("resource_tracker" in argument for argument in process.cmdline())
    except psutil.Error:
        return False


def kill(processes: Sequence[psutil.Process], wait_s: float) -> None:
    """Kill those of some processes that have not ended, and wait for it."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=wait_s)
