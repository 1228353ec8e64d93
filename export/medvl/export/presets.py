"""Checkpoints by name: those that ship with the package."""

from __future__ import annotations

from pathlib import Path

from medvl import embedded
from medvl.contracts.errors import CheckpointError

PHANTOM = "phantom"
PRESETS = {PHANTOM: Path(embedded.__file__).with_name("checkpoints") / PHANTOM}


def resolve_checkpoint(name: str) -> Path:
    """Return the checkpoint folder that a user names: a preset's, or one of theirs.

    Raises
    ------
    CheckpointError
        When it is neither.
    """
    folder = PRESETS.get(name, Path(name))
    if folder.is_dir():
        return folder
    raise CheckpointError(
        f"There is no folder {name}, and no preset of that name; the presets are {', '.join(PRESETS)}."
    )
