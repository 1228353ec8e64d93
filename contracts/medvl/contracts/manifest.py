"""The manifest of a built repository: what every file must be, proven before a server loads it.

``manifest.json`` stands at the root of a repository and names every other file in it by SHA-256 and length::

    manifest.json   checkpoint.json   parity.json
    models/<model>/config.pbtxt   models/<model>/configs/cpu.pbtxt   models/<model>/1/...
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medvl.contracts.checkpoint import Sha256
from medvl.contracts.engines import EngineSet, Machine, require_fit
from medvl.contracts.errors import CheckpointError
from medvl.contracts.quantisation import Quantisation

MANIFEST_FILE = "manifest.json"
PARITY_FILE = "parity.json"
MODELS_FOLDER = "models"

Target = Literal["cpu", "tensorrt"]


class FileRecord(BaseModel):
    """What one file must be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Sha256
    bytes: int = Field(ge=0)


class Manifest(BaseModel):
    """``manifest.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    checkpoint: str
    """Name of the checkpoint."""
    checkpoint_digest: Sha256
    """:attr:`medvl.contracts.checkpoint.Checkpoint.digest`."""
    trained: bool
    target: Target
    inputs: Sha256
    """Digest of everything that the build depended on; a build with the same inputs has nothing to do."""
    networks: Sha256 | None = None
    """Digest of what the networks depended on; a build that shares it takes them over."""
    versions: dict[str, str]
    """Versions of the tools that built it, by distribution name."""
    files: dict[str, FileRecord]
    """Every other file, by path relative to the repository."""
    engines: EngineSet | None = None
    """What the engines were built for; of the target ``tensorrt`` alone."""
    quantisation: Quantisation | None = None
    """Of the served language model; None where that is the checkpoint's own."""

    def write(self, repository: Path) -> None:
        """Write ``manifest.json``."""
        (repository / MANIFEST_FILE).write_text(self.model_dump_json(indent=2) + "\n", "utf-8")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(folder: Path) -> dict[str, Path]:
    """Return the files below a folder by relative POSIX path, sorted, Python's own caches left out."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(folder).as_posix(): p for p in paths}


def record_files(repository: Path) -> dict[str, FileRecord]:
    """Return what every file of a repository is, the manifest itself left out."""
    files = files_of(repository)
    files.pop(MANIFEST_FILE, None)
    return {name: FileRecord(sha256=sha256_of(path), bytes=path.stat().st_size) for name, path in files.items()}


def load_manifest(repository: Path) -> Manifest:
    """Read ``manifest.json``.

    Raises
    ------
    CheckpointError
        When it is missing or not a manifest of this format.
    """
    path = repository / MANIFEST_FILE
    if not path.is_file():
        raise CheckpointError(
            f"The folder {repository.name} holds no {MANIFEST_FILE}: build it with medvl-export build."
        )
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError:
        raise CheckpointError(
            f"The {MANIFEST_FILE} of {repository.name} cannot be read: build the repository again."
        ) from None


def mismatches(repository: Path, manifest: Manifest) -> list[str]:
    """Return one line for every file that is missing, changed or not listed: what was expected, what was found."""
    found = files_of(repository)
    found.pop(MANIFEST_FILE, None)
    lines = [f"{name}: expected by the manifest, but missing" for name in sorted(manifest.files.keys() - found.keys())]
    lines += [f"{name}: found, but not listed in the manifest" for name in sorted(found.keys() - manifest.files.keys())]
    for name in sorted(manifest.files.keys() & found.keys()):
        expected, path = manifest.files[name], found[name]
        if (size := path.stat().st_size) != expected.bytes:
            lines.append(f"{name}: expected {expected.bytes} bytes, found {size}")
        elif (digest := sha256_of(path)) != expected.sha256:
            lines.append(f"{name}: expected SHA-256 {expected.sha256}, found {digest}")
    return lines


def verify_repository(repository: Path) -> Manifest:
    """Prove that a repository is byte for byte what its build wrote.

    Returns
    -------
    Manifest
        The manifest that holds.

    Raises
    ------
    CheckpointError
        With one line for every mismatch.
    """
    manifest = load_manifest(repository)
    if lines := mismatches(repository, manifest):
        raise CheckpointError("\n".join(lines))
    return manifest


def require_machine(repository: Path, manifest: Manifest, machine: Machine) -> None:
    """Refuse a repository whose engines were built for another machine; ONNX graphs run on any.

    Raises
    ------
    SetupError
        With one line for everything that does not fit, and the command that builds the repository again.
    CheckpointError
        When a repository of engines does not say what they were built for.
    """
    if manifest.target != "tensorrt":
        return
    if manifest.engines is None:
        raise CheckpointError(
            f"The {MANIFEST_FILE} of {repository.name} does not say what its engines were built for: build it again "
            "with medvl-export build --target tensorrt."
        )
    require_fit(manifest.engines, repository, machine)
