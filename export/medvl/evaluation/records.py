"""Results of tasks in a file that grows: what stands there already is not done again.

::

    <work>/results.jsonl    one line for each task of a case, with the key of everything that it depends on
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from medvl.contracts.errors import SetupError
from medvl.evaluation.items import Item

FILE = "results.jsonl"


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything that a result depends on.

    Attributes
    ----------
    checkpoint
        Its digest.
    software
        Version and digest of the sources.
    case
        Seed, or name of a series.
    task
        With its settings: ``masks by text 3``.
    subject, condition
        Who answered, and what it was shown.
    """

    checkpoint: str
    software: str
    case: str
    task: str
    subject: str
    condition: str

    @property
    def key(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


class Record(BaseModel):
    """A line of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    case: str
    task: str
    subject: str
    condition: str
    items: tuple[Item, ...]


class Records:
    """The results in a folder, which nobody else writes to within its context.

    Parameters
    ----------
    folder
        Made when it is not there.

    Raises
    ------
    SetupError
        On entering, when the file holds something else than results, or another process writes to it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / FILE

    def get(self, identity: Identity, make: Callable[[], Sequence[Item]]) -> Record:
        """Return a result that is there, or make it and write it down."""
        if identity.key not in self._records:
            record = Record(
                key=identity.key,
                case=identity.case,
                task=identity.task,
                subject=identity.subject,
                condition=identity.condition,
                items=tuple(make()),
            )
            self._file.write(record.model_dump_json() + "\n")
            self._file.flush()
            self._records[identity.key] = record
        return self._records[identity.key]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._file = stack.enter_context(self._path.open("a", encoding="utf-8"))
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SetupError(f"Another evaluation writes {self._path}: name another folder with --work.") from None
            self._records = {record.key: record for record in self._read()}
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __contains__(self, identity: Identity) -> bool:
        return identity.key in self._records

    def _read(self) -> list[Record]:
        data = self._path.read_bytes()
        *lines, cut = data.split(b"\n")
        if cut:
            # The process died while it wrote its last line.
            self._file.truncate(len(data) - len(cut))
        try:
            return [Record.model_validate_json(line) for line in lines]
        except ValidationError:
            raise SetupError(
                f"The file {self._path} holds no results of this version: name another folder with --work."
            ) from None
