"""Child processes with a log file, their own process group, and an end that leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from medvl.runtime import attach

POLL_S = 0.1
TAIL_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Command:
    """What to run and where its output goes."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    log_file: Path
    """Standard output and error are appended here."""


class ManagedProcess:
    """A running child; it is asked to end when this process ends.

    The child leads a process group of its own, so that Ctrl-C in a terminal reaches only us, and so that whatever the
    child started can be ended with it.
    """

    def __init__(self, process: asyncio.subprocess.Process, log_file: Path) -> None:
        self._process = process
        self._exit = asyncio.ensure_future(process.wait())
        self.log_file = log_file

    @classmethod
    async def start(cls, command: Command) -> Self:
        """Start a command; a command that does not exist ends at once, with the reason in its log."""
        launcher = (sys.executable, "-I", "-S", attach.__file__, str(os.getpid()))
        with command.log_file.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *launcher,
                *command.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(command.environment),
                start_new_session=True,
            )
        return cls(process, command.log_file)

    @property
    def pid(self) -> int:
        """Process id, also the id of its group."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return not self._exit.done()

    async def wait(self) -> int:
        """Wait for the end and return the exit code; negative when a signal ended it."""
        return await asyncio.shield(self._exit)

    async def ended_within(self, timeout_s: float) -> bool:
        """Wait for the end, but not longer than a time in seconds; return whether it has come."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.wait(), timeout_s)
        return not self.running

    def descendants(self) -> int:
        """Return how many processes that this one started, or that those started, are alive."""
        try:
            family = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return 0
        return sum(_alive(member) for member in family)

    async def stop(self, grace_s: float, *, idle_grace_s: float | None = None) -> None:
        """End the process and its group.

        Parameters
        ----------
        grace_s
            Seconds between SIGTERM and SIGKILL.
        idle_grace_s
            Seconds after which a process is not waited for any longer when no process of its family has ended in
            them, counted from the first end, or from the start when it has no family.
        """
        family = self.descendants()
        try:
            self._signal(signal.SIGTERM)
            await self._await_exit(family, grace_s, idle_grace_s)
        finally:
            self._kill_group()
            await self.wait()

    def kill(self) -> None:
        """End the process and its group at once."""
        self._kill_group()

    def log_tail(self, lines: int = 12) -> str:
        """Return the last lines of the log."""
        with self.log_file.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - TAIL_BYTES))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])

    async def _await_exit(self, family: int, grace_s: float, idle_grace_s: float | None) -> None:
        now = asyncio.get_running_loop().time
        give_up_s = now() + grace_s
        latest, moved_s = family, now()
        while not await self.ended_within(POLL_S):
            count = self.descendants()
            if count != latest:
                latest, moved_s = count, now()
            winding_down = latest < family or latest == 0
            idle = idle_grace_s is not None and winding_down and now() - moved_s > idle_grace_s
            if idle or now() > give_up_s:
                return

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
