"""Checkpoints and specifications by name: those that ship with the package."""

from __future__ import annotations

import json
from pathlib import Path

from medvl import embedded
from medvl.contracts.checkpoint import Checkpoint, parse_checkpoint
from medvl.contracts.errors import CheckpointError, InvalidRequest

PHANTOM = "phantom"
PRESETS = {PHANTOM: Path(embedded.__file__).with_name("checkpoints") / PHANTOM}

MED3DVLM_7B = "med3dvlm-7b"
SPECS = {MED3DVLM_7B: Path(__file__).with_name("specs") / f"{MED3DVLM_7B}.json"}
"""What ``checkpoint.json`` is to say of weights that are imported, ``files`` apart."""


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


def spec_text(name: str) -> str:
    """Return the specification of a name, as a template to be edited.

    Raises
    ------
    InvalidRequest
        When there is none of that name.
    """
    if name not in SPECS:
        raise InvalidRequest(f"There is no specification {name}; there are {', '.join(SPECS)}.")
    return SPECS[name].read_text("utf-8")


def resolve_spec(name: str) -> Checkpoint:
    """Return the specification that a user names: one that ships, or a file of theirs, ``files`` apart.

    Raises
    ------
    CheckpointError
        When it is neither, or with one line for every field that breaks the contract.
    """
    path = SPECS.get(name, Path(name))
    try:
        fields = json.loads(path.read_text("utf-8"))
    except OSError:
        raise CheckpointError(
            f"There is no file {name}, and no specification of that name; there are {', '.join(SPECS)}."
        ) from None
    except ValueError:
        raise CheckpointError(f"{path.name}: expected JSON, found something else.") from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path.name}: expected the fields of a checkpoint, found something else.")
    return parse_checkpoint(json.dumps(fields | {"files": {}}))
