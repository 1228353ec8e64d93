"""What files looked like when they were read last, so that gigabytes are read again only where something changed."""

from __future__ import annotations

import json
from pathlib import Path

from medvl.contracts.manifest import files_of, sha256_of
from medvl.export.folders import sibling

State = list[int]
"""Size in bytes and time of change in nanoseconds."""


def states_of(folder: Path) -> dict[str, State]:
    """Return the state of every file below a folder, by relative path."""
    states = {name: path.stat() for name, path in files_of(folder).items()}
    return {name: [s.st_size, s.st_mtime_ns] for name, s in states.items()}


class Stamp:
    """The file beside a repository that says how its files looked when they were proven last."""

    def __init__(self, repository: Path) -> None:
        self._repository, self._path = repository, sibling(repository, "build.json")

    def holds(self) -> bool:
        """Return whether no file has another size or time of change since."""
        return _read(self._path) == states_of(self._repository)

    def write(self) -> None:
        """Note how they look now."""
        self._path.write_text(json.dumps(states_of(self._repository)) + "\n", "utf-8")

    def forget(self) -> None:
        """Have every file read the next time."""
        self._path.unlink(missing_ok=True)


def hashes_of(folder: Path, kept: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, by relative path.

    Parameters
    ----------
    folder
        Folder to read.
    kept
        File that keeps hashes and states of the last call; a file of the same size and time of change is not read.
    """
    known = _read(kept)
    earlier = known["files"] if isinstance(known, dict) and known.get("folder") == str(folder.absolute()) else {}
    files: dict[str, list[object]] = {}
    for name, state in states_of(folder).items():
        told = earlier.get(name)
        files[name] = told if told and told[:-1] == state else [*state, sha256_of(folder / name)]
    kept.write_text(json.dumps({"folder": str(folder.absolute()), "files": files}) + "\n", "utf-8")
    return {name: str(told[-1]) for name, told in files.items()}


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
