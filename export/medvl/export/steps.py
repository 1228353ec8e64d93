"""The steps of a build, each to be run in a process of its own (:mod:`medvl.export.fresh`)."""

from __future__ import annotations

import gc
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sam2.build_sam  # noqa: F401 - here, so that a process that is forked has it
import torch.export
import torch.onnx  # noqa: F401

from medvl.contracts.engines import EngineRecord, Precision
from medvl.contracts.manifest import Target
from medvl.export import builders, check, parts
from medvl.export.builders import Builder
from medvl.export.check_quantised import require_quantised
from medvl.export.engine_options import EngineOptions
from medvl.export.parity import PartParity, gate_part, references
from medvl.export.parts import Part
from medvl.export.samples import Samples

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


def check_quantised(quantised: Path, folder: Path) -> None:
    """Prove that a folder holds the language model of a checkpoint in fewer bits.

    Raises
    ------
    CheckpointError
        With one line for every mismatch.
    """
    require_quantised(quantised, folder)


@dataclass(frozen=True, slots=True)
class Making:
    """What is made of which checkpoint."""

    folder: Path
    """Checkpoint folder."""
    target: Target
    options: EngineOptions
    timing_cache: Path

    def builder(self, precision: Precision) -> Builder:
        """Return the builder of a precision, of those that :func:`plan` names."""
        builder = builders.builder_for(self.target, self.options, self.timing_cache)
        while builder.precision != precision:
            assert builder.fallback is not None
            builder = builder.fallback
        return builder

    def part(self, name: str) -> Part:
        """Return a network by the name of its model."""
        return next(part for part in parts.load_parts(self.folder) if part.model.name == name)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done."""

    parts: tuple[str, ...]
    """Names of the networks' models; what one makes comes before what takes it."""
    precisions: tuple[Precision, ...]
    """What each is built in: the first that it can be built in and that holds its gate."""


@dataclass(frozen=True, slots=True)
class Built:
    """What a part has become."""

    file: str
    engine: EngineRecord | None
    """Where the file is an engine."""


def plan(making: Making) -> Plan:
    """Return what is to be done.

    Raises
    ------
    SetupError
        When this machine lacks what the target needs; the sentence says what to install.
    """
    precisions = []
    builder: Builder | None = builders.builder_for(making.target, making.options, making.timing_cache)
    while builder is not None:
        precisions.append(builder.precision)
        builder = builder.fallback
    return Plan(tuple(part.model.name for part in parts.load_parts(making.folder)), tuple(precisions))


def build_part(making: Making, name: str, precision: Precision, made: Path | None, out: Path) -> Built:
    """Write the file of a part into a folder.

    Parameters
    ----------
    making, name, precision
        What to build.
    made
        :data:`MADE_FILE` of the part before.
    out
        An empty folder.

    Raises
    ------
    BuildError
        When the builder refuses the part.
    """
    builder, part = making.builder(precision), making.part(name)
    # Only FP16 looks at the values of samples; at 1024 pixels the outputs of all parts are as large as weights are.
    samples = _samples(made if precision == "fp16" else None, Samples.taken(part.model))
    file = builder.build(part, samples, out).name
    return Built(file, builder.engines.get(name))


def compare_part(making: Making, name: str, precision: Precision, made: Path | None, path: Path) -> PartParity:
    """Compare the file of a part with the torch reference; write :data:`MADE_FILE` beside it.

    The reference is gone before the file is loaded: they are not in memory side by side.

    Raises
    ------
    ParityError
        Naming the part, the output, the sizes and the number that breaks the gate.
    """
    part, samples = making.part(name), _samples(made)
    cases = references(part, samples)
    part = part.without_weights()
    gc.collect()
    parity = gate_part(part, making.builder(precision).load(part, path), cases, precision)
    np.savez(path.with_name(MADE_FILE), **samples.made)  # type: ignore[arg-type]
    return parity


def _samples(made: Path | None, only: Collection[str] | None = None) -> Samples:
    samples = Samples(SAMPLE_SEED)
    if made is not None:
        with np.load(made) as arrays:
            samples.keep({name: arrays[name] for name in arrays.files if only is None or name in only})
    return samples
