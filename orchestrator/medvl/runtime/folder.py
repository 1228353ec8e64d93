"""The one folder that a running system owns: its lock, its state, its logs and what it keeps.

::

    lock          held while a system runs here
    state.json    where it is and which processes belong to it
    logs/         triton.log  orchestrator.log  export.log  runtime.log, and the previous run's as *.log.1
    runtime/      the unpacked Triton server, the orchestrator's configuration
    repositories/ what medvl-export built
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from medvl.contracts.errors import SetupError

PRIVATE = 0o700
"""Logs and configuration are this user's alone."""


class ProcessRecord(BaseModel):
    """A process, told apart from a later one of the same id by its time of creation."""

    model_config = ConfigDict(frozen=True)

    pid: int
    created_s: float
    """Seconds since the epoch."""

    @classmethod
    def of(cls, pid: int) -> ProcessRecord | None:
        """Record a process; None when it has ended."""
        try:
            return cls(pid=pid, created_s=psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:
            return None

    def find(self) -> psutil.Process | None:
        """Return the process while it lives."""
        try:
            process = psutil.Process(self.pid)
            return process if process.create_time() == self.created_s else None
        except psutil.NoSuchProcess:
            return None


class SystemState(BaseModel):
    """``state.json``: what others may know of a running system."""

    model_config = ConfigDict(frozen=True)

    endpoint: str
    """``host:port`` of the service."""
    triton_endpoint: str
    metrics_url: str
    triton_metrics_url: str
    checkpoint: str
    repository: str
    """Folder that Triton serves."""
    versions: Mapping[str, str]
    processes: Mapping[str, ProcessRecord]
    """``runtime``, ``triton`` and ``orchestrator``; without one that has ended and not been started again yet."""


@dataclass(frozen=True, slots=True)
class DataFolder:
    """Paths below one data folder, and what is done to them."""

    root: Path

    @property
    def state_file(self) -> Path:
        """Written when the system is ready, gone when it has stopped."""
        return self.root / "state.json"

    @property
    def logs(self) -> Path:
        """One file per process."""
        return self.root / "logs"

    @property
    def runtime(self) -> Path:
        """The Triton server and generated configuration."""
        return self.root / "runtime"

    @property
    def repositories(self) -> Path:
        """One sub-folder per checkpoint."""
        return self.root / "repositories"

    def prepare(self) -> None:
        """Make the folders.

        Raises
        ------
        SetupError
            When they cannot be written.
        """
        try:
            for folder in (self.root, self.logs, self.runtime, self.repositories):
                folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        except OSError as error:
            raise SetupError(
                f"The data folder cannot be written ({error.strerror}): choose another with --data."
            ) from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Own the folder.

        Raises
        ------
        SetupError
            When a running system owns it.
        """
        with (self.root / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SetupError(self._occupied()) from None
            yield

    def log_file(self, process: str) -> Path:
        """Return the log of a process, empty; what it held before is kept once as ``.log.1``."""
        path = self.logs / f"{process}.log"
        if path.exists():
            path.replace(path.with_suffix(".log.1"))
        path.touch()
        return path

    def read_state(self) -> SystemState | None:
        """Return the state that was written last, or None without a readable one."""
        try:
            return SystemState.model_validate_json(self.state_file.read_bytes())
        except (OSError, ValidationError):
            return None

    def write_state(self, state: SystemState) -> None:
        """Replace the state."""
        write_private(self.state_file, state.model_dump_json(indent=2) + "\n")

    def forget_state(self) -> None:
        """Remove the state, so that nobody looks for a system that has stopped."""
        self.state_file.unlink(missing_ok=True)

    def end_leftovers(self) -> None:
        """End what a system that was killed has left running here; call it while the folder is owned."""
        state = self.read_state()
        for record in state.processes.values() if state else ():
            process = record.find()
            if process is not None and process.pid != os.getpid():
                _kill_tree(process)
        self.forget_state()

    def _occupied(self) -> str:
        state = self.read_state()
        if state is None:
            return "Another medvl up is starting or stopping on this data folder: wait for it, or use another --data."
        return (
            f"A system already runs on this data folder at {state.endpoint}: use it, stop it with "
            f"`kill {state.processes['runtime'].pid}`, or use another --data."
        )


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user may read, whole or not at all."""
    draft = path.with_name(f".{path.name}.draft")
    draft.touch(mode=0o600)
    draft.write_text(text, "utf-8")
    draft.replace(path)


def _kill_tree(process: psutil.Process) -> None:
    try:
        family = [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=10)
