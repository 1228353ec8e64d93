"""Every network of a checkpoint, one after another: built, loaded as its server would, compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter

from medvl.contracts.manifest import Target
from medvl.export.builders import Builder
from medvl.export.gates import FP32_GATE
from medvl.export.parity import ParityReport, PartParity, gate_part
from medvl.export.parts import Part
from medvl.export.samples import Samples

SAMPLE_SEED = 0
"""Seed of the inputs that parts are traced with and compared on."""


def build_networks(
    parts: Iterable[Part],
    builder: Builder,
    target: Target,
    folder_of: Callable[[str], Path],
    progress: Callable[[str], None],
) -> ParityReport:
    """Build every part into its version folder.

    Parameters
    ----------
    parts
        In an order in which inputs that a part makes come after that part.
    builder
        The builder of the target.
    target
        Named in the report.
    folder_of
        Returns the version folder of a model by name.
    progress
        Receives one line for every part.

    Raises
    ------
    ParityError
        When a part disagrees with the torch reference; nothing after it is built.
    """
    samples = Samples(SAMPLE_SEED)
    found = {}
    for part in parts:
        started_s = perf_counter()
        path = builder.build(part, samples, folder_of(part.model.name))
        parity = gate_part(part, builder.load(part, path), samples, FP32_GATE)
        progress(_line(part, path, parity, perf_counter() - started_s))
        found[part.model.name] = parity
    return ParityReport(target=target, gate=FP32_GATE, parts=found)


def _line(part: Part, path: Path, parity: PartParity, elapsed_s: float) -> str:
    numbers = f"largest difference {parity.max_abs:.1e}, cosine {parity.cosine:.7f}"
    return f"{part.model.name:20} {numbers}, {path.stat().st_size / 1e6:.1f} MB, {elapsed_s:.1f} s"
