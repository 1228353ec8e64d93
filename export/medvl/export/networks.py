"""Every network of a checkpoint, one after another: built, loaded as its server would, compared."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from medvl.contracts.manifest import Target
from medvl.export import steps
from medvl.export.folders import link
from medvl.export.fresh import Cost, fresh
from medvl.export.gates import FP32_GATE
from medvl.export.parity import ParityReport, PartParity

_PARITY_FILE = "parity.json"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a build."""

    part: str
    kind: str
    """``build`` or ``compare``."""
    cost: Cost


@dataclass(frozen=True)
class Networks:
    """Networks that passed their gates."""

    report: ParityReport
    steps: tuple[Step, ...]
    """Those that were not done already."""


def build_networks(
    folder: Path, target: Target, work: Path, folder_of: Callable[[str], Path], progress: Callable[[str], None]
) -> Networks:
    """Build every part of a checkpoint into its version folder.

    Parameters
    ----------
    folder
        Checkpoint folder.
    target
        What the parts become.
    work
        Folder of the parts that are done: a build that ended early goes on behind them.
    folder_of
        Returns the version folder of a model by name.
    progress
        Receives one line for every part.

    Raises
    ------
    ParityError
        When a part disagrees with the torch reference; nothing after it is built.
    """
    found: dict[str, PartParity] = {}
    taken: list[Step] = []
    made: Path | None = None
    for name in fresh(steps.part_names, folder).value:
        done = work / name
        if not done.is_dir():
            new = _build(folder, name, target, made, done)
            taken += new
            progress(_line(name, _files(done), _parity(done), new))
        else:
            progress(f"{name:20} was built before")
        made, found[name] = done / steps.MADE_FILE, _parity(done)
        for path in _files(done):
            # The parts stay where they are until all are there: another build must find them.
            link(path, folder_of(name) / path.name)
    return Networks(ParityReport(target=target, gate=FP32_GATE, parts=found), tuple(taken))


def _build(folder: Path, name: str, target: Target, made: Path | None, done: Path) -> list[Step]:
    """Build and compare a part in a folder that is there when both have succeeded."""
    # A name of its own: the process of a build that was killed may still be writing.
    staging = Path(mkdtemp(prefix=f".{name}.", dir=done.parent))
    try:
        built = fresh(steps.build_part, folder, name, target, made, staging)
        compared = fresh(steps.compare_part, folder, name, target, made, staging / built.value, staging)
        (staging / _PARITY_FILE).write_text(compared.value.model_dump_json() + "\n", "utf-8")
        staging.rename(done)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [Step(name, "build", built.cost), Step(name, "compare", compared.cost)]


def _files(done: Path) -> list[Path]:
    """Return what of a finished part is to be served."""
    return sorted(p for p in done.iterdir() if p.name not in {_PARITY_FILE, steps.MADE_FILE})


def _parity(done: Path) -> PartParity:
    return PartParity.model_validate_json((done / _PARITY_FILE).read_bytes())


def _line(name: str, files: list[Path], parity: PartParity, taken: list[Step]) -> str:
    size_mb = sum(path.stat().st_size for path in files) / 1e6
    costs = ", ".join(f"{s.kind} {s.cost.elapsed_s:.1f} s {s.cost.peak_bytes / 1e6:.0f} MB" for s in taken)
    return f"{name:20} largest difference {parity.max_abs:.1e}, cosine {parity.cosine:.7f}, {size_mb:.1f} MB; {costs}"
