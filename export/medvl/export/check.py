"""Prove a checkpoint folder against the contract: one line for every mismatch, what was expected, what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from medvl.contracts.checkpoint import CHECKPOINT_FILE, Checkpoint, load_checkpoint
from medvl.contracts.errors import CheckpointError
from medvl.contracts.manifest import files_of, sha256_of
from medvl.export.check_language import language_mismatches
from medvl.export.check_tensors import tensor_mismatches

PICKLES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
"""Suffixes of weights that run code when they are loaded."""
PICKLE_LINE = "expected safetensors, found a pickle, which may run code when it is loaded"


def mismatches(folder: Path) -> list[str]:
    """Return every mismatch between a folder and the contract, none when it is a checkpoint.

    Fields come first; the rest is looked at only when they hold, because they say what the rest must be. Of tensors
    only the headers are read.
    """
    try:
        checkpoint = load_checkpoint(folder)
    except CheckpointError as error:
        return str(error).splitlines()
    return [line for look in _CHECKS for line in look(folder, checkpoint)]


def require(folder: Path) -> Checkpoint:
    """Return the checkpoint of a folder that holds the contract.

    Raises
    ------
    CheckpointError
        With one line for every mismatch.
    """
    if lines := mismatches(folder):
        raise CheckpointError("\n".join(lines))
    return load_checkpoint(folder)


def file_mismatches(folder: Path, checkpoint: Checkpoint) -> Iterator[str]:
    """Yield a line for every pickle, and for every file that is missing, changed or not listed."""
    found = files_of(folder)
    found.pop(CHECKPOINT_FILE, None)
    pickles = {name for name in found if Path(name).suffix.lower() in PICKLES}
    for name in sorted(pickles):
        yield f"{name}: {PICKLE_LINE}"
    for name in sorted(checkpoint.files.keys() - found.keys()):
        yield f"{name}: expected by {CHECKPOINT_FILE}, but missing"
    for name in sorted(found.keys() - checkpoint.files.keys() - pickles):
        yield f"{name}: found, but not listed in {CHECKPOINT_FILE}"
    for name in sorted(checkpoint.files.keys() & found.keys()):
        if (digest := sha256_of(found[name])) != checkpoint.files[name]:
            yield f"{name}: expected SHA-256 {checkpoint.files[name]}, found {digest}"


_CHECKS: tuple[Callable[[Path, Checkpoint], Iterator[str]], ...] = (
    file_mismatches,
    tensor_mismatches,
    language_mismatches,
)
