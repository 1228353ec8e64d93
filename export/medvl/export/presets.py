"""Checkpoints by name: a preset is made once and kept in the data folder."""

from __future__ import annotations

from pathlib import Path

from medvl.contracts.checkpoint import CHECKPOINT_FILE
from medvl.contracts.errors import CheckpointError
from medvl.contracts.paths import data_folder
from medvl.export.fingerprint import sources_digest
from medvl.export.folders import locked, replacement

PHANTOM = "phantom"
PRESETS = (PHANTOM,)

PHANTOM_SEED = 2601
"""Seed of the phantom checkpoint's weights."""

_SOURCES = ("medvl.contracts", "medvl.embedded", "medvl.network")
"""Packages whose code decides what a preset's folder holds."""


def resolve_checkpoint(name: str) -> Path:
    """Return the checkpoint folder that a user names: a folder of theirs, or a preset.

    Raises
    ------
    CheckpointError
        When it is neither.
    """
    if name in PRESETS:
        return preset_folder(name)
    folder = Path(name)
    if folder.is_dir():
        return folder
    raise CheckpointError(f"There is no folder {name}, and no preset of that name; the presets are {_known()}.")


def preset_folder(name: str) -> Path:
    """Return the folder of a preset below :func:`medvl.contracts.paths.data_folder`, making it the first time.

    A change of the code that makes it gives another folder; an older one stays for the repositories built from it.

    Raises
    ------
    CheckpointError
        When there is no such preset.
    """
    if name not in PRESETS:
        raise CheckpointError(f"There is no preset {name}; the presets are {_known()}.")
    folder = data_folder() / "checkpoints" / f"{name}-{sources_digest(_SOURCES)[:12]}"
    with locked(folder):
        if not (folder / CHECKPOINT_FILE).is_file():
            _make(folder)
    return folder


def _make(folder: Path) -> None:
    # Brings torch in, which a folder that is there already does not need.
    from medvl.embedded.preset import write_phantom_preset  # noqa: PLC0415

    with replacement(folder) as staging:
        write_phantom_preset(staging, PHANTOM_SEED)


def _known() -> str:
    return ", ".join(PRESETS)
