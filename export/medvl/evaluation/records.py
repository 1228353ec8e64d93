"""Results of tasks in a file that grows: what stands there already is not done again.

::

    <work>/results.jsonl    one line for each task of a case, with the key of everything that it depends on
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

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
    """The results in a folder.

    Parameters
    ----------
    folder
        Made when it is not there.

    Raises
    ------
    SetupError
        When the file holds something else than results.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / FILE
        self._records = {record.key: record for record in self._read()}

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
            with self._path.open("a", encoding="utf-8") as file:
                file.write(record.model_dump_json() + "\n")
            self._records[identity.key] = record
        return self._records[identity.key]

    def __contains__(self, identity: Identity) -> bool:
        return identity.key in self._records

    def _read(self) -> list[Record]:
        if not self._path.is_file():
            return []
        text = self._path.read_text("utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            # The process died while it wrote its last line.
            self._path.write_text(whole, "utf-8")
        try:
            return [Record.model_validate_json(line) for line in whole.splitlines()]
        except ValidationError:
            raise SetupError(
                f"The file {self._path} holds no results of this version: name another folder with --work."
            ) from None
