"""The steps of a build, each to be run in a process of its own (:mod:`medvl.export.fresh`)."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import sam2.build_sam  # noqa: F401 - here, so that a process that is forked has it
import torch.export
import torch.onnx  # noqa: F401

from medvl.contracts.manifest import Target
from medvl.export import builders, check, parts
from medvl.export.gates import FP32_GATE
from medvl.export.parity import PartParity, gate_part, references
from medvl.export.parts import Part
from medvl.export.samples import Arrays, Samples

SAMPLE_SEED = 0
"""Seed of the inputs that parts are traced with and compared on."""
MADE_FILE = "made.npz"
"""What the parts up to one have put out, of which later ones take their samples."""


def check_checkpoint(folder: Path) -> None:
    """Prove a checkpoint folder.

    Raises
    ------
    CheckpointError
        With one line for every mismatch.
    """
    check.require(folder)


def part_names(folder: Path) -> list[str]:
    """Return the networks of a checkpoint folder, what one makes before what takes it."""
    return [part.model.name for part in parts.load_parts(folder)]


def build_part(folder: Path, name: str, target: Target, made: Path | None, out: Path) -> str:
    """Write the file of a part into a folder and return its name.

    Parameters
    ----------
    folder
        Checkpoint folder.
    name
        Of the part's model.
    made
        :data:`MADE_FILE` of the part before.
    out
        An empty folder.
    """
    return builders.builder_for(target).build(_part(folder, name), _samples(made), out).name


def compare_part(folder: Path, name: str, target: Target, made: Path | None, path: Path, out: Path) -> PartParity:
    """Compare the file of a part with the torch reference; write :data:`MADE_FILE` into a folder.

    The reference is gone before the file is loaded: they are not in memory side by side.

    Raises
    ------
    ParityError
        Naming the part, the output, the sizes and the number that breaks the gate.
    """
    part, samples = _part(folder, name), _samples(made)
    cases = references(part, samples)
    part = part.without_weights()
    gc.collect()
    parity = gate_part(part, builders.builder_for(target).load(part, path), cases, FP32_GATE)
    np.savez(out / MADE_FILE, **samples.made)
    return parity


def _part(folder: Path, name: str) -> Part:
    return next(part for part in parts.load_parts(folder) if part.model.name == name)


def _samples(made: Path | None) -> Samples:
    samples = Samples(SAMPLE_SEED)
    if made is not None:
        with np.load(made) as arrays:
            kept: Arrays = dict(arrays)
            samples.keep(kept)
    return samples
