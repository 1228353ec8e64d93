"""``medvl-export import``: a checkpoint folder from public weights, whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from medvl.contracts.checkpoint import CHECKPOINT_FILE, LANGUAGE_FOLDER, PARTS, Checkpoint, load_checkpoint
from medvl.contracts.errors import CheckpointError, SetupError
from medvl.contracts.manifest import files_of, sha256_of
from medvl.export.fingerprint import sources_digest
from medvl.export.folders import locked, replacement, sibling, target_of
from medvl.export.importing.options import Sources

# An import with nothing to do must not wait for torch: what needs it is imported when it is used.
# ruff: noqa: PLC0415

SOURCES_FILE = "sources.json"
"""File of an imported checkpoint that says what it was made of."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ImportResult:
    """A checkpoint folder that holds the contract."""

    folder: Path
    checkpoint: Checkpoint
    written: bool
    """False when it was there already, made from the same inputs."""


def import_checkpoint(sources: Sources, spec: Checkpoint, out: Path, progress: Progress) -> ImportResult:
    """Write a checkpoint folder, or find it written.

    A process that is killed leaves the old folder, or none; run again, it begins anew.

    Parameters
    ----------
    sources
        Where the weights are.
    spec
        What ``checkpoint.json`` is to say, its ``files`` apart.
    out
        Folder to make. One that an import has made is replaced at the very end; any other is refused.
    progress
        Receives one line for every part.

    Raises
    ------
    CheckpointError
        With one line for everything in the sources that does not fit.
    InvalidRequest
        When an option is missing.
    SetupError
        When ``out`` holds something else or is a mount point.
    """
    out = target_of(out)
    with locked(out):
        stamp = _Stamp(out)
        inputs = _inputs(sources, spec)
        if checkpoint := stamp.current(inputs):
            return ImportResult(out, checkpoint, written=False)
        stamp.refuse_foreign()
        with replacement(out) as staging:
            checkpoint = _fill(staging, sources, spec, progress)
        stamp.write(inputs)
    return ImportResult(out, checkpoint, written=True)


def _fill(staging: Path, sources: Sources, spec: Checkpoint, progress: Progress) -> Checkpoint:
    from medvl.export.check_language import language_mismatches
    from medvl.export.check_tensors import tensor_mismatches
    from medvl.export.importing.language_folder import write_language_folder
    from medvl.export.importing.plan import make_plan
    from medvl.export.importing.writing import write_language_weights, write_tensors

    plan = make_plan(sources, spec)
    for note in plan.notes:
        progress(note)
    if plan.left:
        progress(f"{len(plan.left)} tensors are left out.")
    folder = staging / LANGUAGE_FOLDER
    folder.mkdir()
    write_language_folder(sources.language_folder, plan.config, spec.language, folder)
    _refuse(language_mismatches(staging, spec))
    for part in (*PARTS, LANGUAGE_FOLDER):
        started_s = perf_counter()
        if part == LANGUAGE_FOLDER:
            write_language_weights(folder, plan.parts[part], progress)
        else:
            write_tensors(staging / f"{part}.safetensors", plan.parts[part])
        progress(f"{part:20} {len(plan.parts[part])} tensors, {perf_counter() - started_s:.1f} s")
    _refuse(tensor_mismatches(staging, spec))
    hashes = _Hashes()
    made_of = {"notes": plan.notes, "left_out": [t.name for t in plan.left], "files": hashes.of(_files(sources))}
    (staging / SOURCES_FILE).write_text(json.dumps(made_of, indent=2) + "\n", "utf-8")
    files = {name: hashes.sha256(path) for name, path in files_of(staging).items()}
    checkpoint = Checkpoint.model_validate(spec.model_dump() | {"files": files})
    (staging / CHECKPOINT_FILE).write_text(checkpoint.model_dump_json(indent=2) + "\n", "utf-8")
    return checkpoint


def _refuse(lines: Iterable[str]) -> None:
    if text := "\n".join(lines):
        raise CheckpointError(text)


class _Hashes:
    """SHA-256 of files; of one that has two names, once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], str] = {}

    def sha256(self, path: Path) -> str:
        status = path.stat()
        key = (status.st_dev, status.st_ino)
        if key not in self._known:
            self._known[key] = sha256_of(path)
        return self._known[key]

    def of(self, paths: Iterable[Path]) -> list[dict[str, object]]:
        return [{"name": p.name, "bytes": p.stat().st_size, "sha256": self.sha256(p)} for p in paths]


def _files(sources: Sources) -> list[Path]:
    from medvl.export.importing.sources import weight_files

    return [file for path in sources.weights.values() for file in weight_files(path)]


def _inputs(sources: Sources, spec: Checkpoint) -> str:
    """Return a digest of everything that an import depends on; of weights their size and time of change."""
    named = [*sources.weights.values(), *([sources.language] if sources.language else [])]
    fields = {
        "spec": spec.digest,
        "sources": asdict(sources),
        "files": [_state(p) for path in named for p in ([path] if path.is_file() else sorted(path.glob("*")))],
        "code": sources_digest(("medvl.contracts", "medvl.network", "medvl.export")),
    }
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()


def _state(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path.absolute()), status.st_size, status.st_mtime_ns


class _Stamp:
    """The file beside an imported folder that says what it was made from; the folder itself holds the contract only."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, sibling(folder, "import.json")

    def current(self, inputs: str) -> Checkpoint | None:
        """Return the checkpoint of a folder that was made from these inputs and has not been touched since."""
        stamp = self._read()
        if stamp.get("inputs") != inputs or stamp.get("files") != self._files():
            return None
        try:
            return load_checkpoint(self._folder)
        except CheckpointError:
            return None

    def refuse_foreign(self) -> None:
        empty = not self._folder.exists() or (self._folder.is_dir() and not any(self._folder.iterdir()))
        # A process that is killed at the very end leaves no stamp.
        ours = self._path.is_file() or (self._folder / SOURCES_FILE).is_file()
        if not empty and not ours:
            raise SetupError(f"The folder {self._folder} was not made by an import: name another with --out.")

    def write(self, inputs: str) -> None:
        self._path.write_text(json.dumps({"inputs": inputs, "files": self._files()}) + "\n", "utf-8")

    def _read(self) -> dict[str, Any]:
        try:
            stamp = json.loads(self._path.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return stamp if isinstance(stamp, dict) else {}

    def _files(self) -> dict[str, list[int]]:
        states = {name: path.stat() for name, path in files_of(self._folder).items()}
        return {name: [s.st_size, s.st_mtime_ns] for name, s in states.items()}
