"""The JSON of what took long to measure: where it cannot be written is said before, and it is whole or not there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from medvl.contracts.errors import InvalidRequest


def require_place(path: Path) -> None:
    """Make the folder of a file that is to be written; one that is there is left as it is.

    Raises
    ------
    InvalidRequest
        Where it would have to replace what is no file.
    OSError
        Where nothing can be written.
    """
    if path.exists() and not path.is_file():
        raise InvalidRequest(f"{path} is not a file: name another for the JSON.")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = _draft(path)
    draft.touch()
    draft.unlink()


def write_document(path: Path, document: Mapping[str, object]) -> None:
    """Write a file of JSON, whole or not at all."""
    draft = _draft(path)
    draft.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    draft.replace(path.resolve())


def _draft(path: Path) -> Path:
    """Return where a file is written before it takes its place; a link keeps leading to it."""
    path = path.resolve()
    return path.with_name(f".{path.name}.draft")
