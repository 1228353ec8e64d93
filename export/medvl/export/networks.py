"""Every network of a checkpoint, one after another: built, loaded as its server would, compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter

from medvl.contracts.errors import BuildError, ParityError
from medvl.contracts.manifest import Target
from medvl.export.builders import Builder
from medvl.export.gates import GATES
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
    BuildError
        When the builder of the target refuses a part; as above.
    """
    samples = Samples(SAMPLE_SEED)
    found = {}
    for part in parts:
        started_s = perf_counter()
        path, parity = _first_that_holds(part, builder, samples, folder_of(part.model.name))
        progress(_line(part, path, parity, perf_counter() - started_s))
        found[part.model.name] = parity
    gates = {parity.precision: GATES[parity.precision] for parity in found.values()}
    return ParityReport(target=target, gates=gates, parts=found)


def _first_that_holds(part: Part, builder: Builder, samples: Samples, folder: Path) -> tuple[Path, PartParity]:
    """Build a part in the builder's precision, or where it cannot or breaks the gate, in that of its fallback."""
    try:
        path = builder.build(part, samples, folder)
        return path, gate_part(part, builder.load(part, path), samples, builder.precision)
    except (BuildError, ParityError) as error:
        if builder.fallback is None:
            raise
        path, parity = _first_that_holds(part, builder.fallback, samples, folder)
        return path, parity.model_copy(update={"refused": f"{builder.precision}: {error}"})


def _line(part: Part, path: Path, parity: PartParity, elapsed_s: float) -> str:
    numbers = f"largest difference {parity.max_abs:.1e}, cosine {parity.cosine:.7f}"
    line = f"{part.model.name:20} {parity.precision}, {numbers}, {path.stat().st_size / 1e6:.1f} MB, {elapsed_s:.1f} s"
    return line if parity.refused is None else f"{line}; not {parity.refused}"
