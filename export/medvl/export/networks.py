"""Every network of a checkpoint, one after another: built, loaded as its server would, compared."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from pydantic import BaseModel, ConfigDict

from medvl.contracts.engines import EngineRecord, Precision
from medvl.contracts.errors import BuildError, ParityError
from medvl.contracts.manifest import PARITY_FILE, FileRecord, Manifest, sha256_of
from medvl.export import steps
from medvl.export.folders import link
from medvl.export.fresh import Cost, fresh
from medvl.export.gates import GATES
from medvl.export.parity import ParityReport, PartParity
from medvl.export.repository import version_folder
from medvl.export.steps import Making

_DONE_FILE = "done.json"


class _Part(BaseModel):
    """:data:`_DONE_FILE`: a part that has passed its gate, told to a later build."""

    model_config = ConfigDict(frozen=True)

    parity: PartParity
    engine: EngineRecord | None
    files: dict[str, str]
    """SHA-256 of what was compared, by file name."""


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
    engines: dict[str, EngineRecord]
    """By model, where its file is an engine."""
    steps: tuple[Step, ...]
    """Those that were not done already."""
    files: dict[str, dict[str, str]]
    """SHA-256 of what was compared, by model and file name."""

    def changed(self, repository: Path, served: Mapping[str, FileRecord]) -> list[str]:
        """Return the models of which other files are to be served than those that passed.

        Parameters
        ----------
        repository
            What is to be served.
        served
            What :func:`medvl.contracts.manifest.record_files` says of it.
        """
        return [name for name, files in self.files.items() if _hashes(repository, name, served) != files]


def build_networks(
    making: Making, work: Path, folder_of: Callable[[str], Path], progress: Callable[[str], None]
) -> Networks:
    """Build every part of a checkpoint into its version folder.

    Parameters
    ----------
    making
        What is made of which checkpoint.
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
    BuildError
        When the builder of the target refuses a part; as above.
    SetupError
        When this machine lacks what the target needs.
    """
    found: dict[str, _Part] = {}
    taken: list[Step] = []
    made: Path | None = None
    plan = fresh(steps.plan, making).value
    for name in plan.parts:
        done = work / name
        new = [] if done.is_dir() else _first_that_holds(making, name, plan.precisions, made, done)
        made, found[name] = done / steps.MADE_FILE, _Part.model_validate_json((done / _DONE_FILE).read_bytes())
        progress(_line(name, _files(done), found[name].parity, new))
        for path in _files(done):
            # They stay in the work folder, too, until all parts are there: another build may have to find them.
            link(path, folder_of(name) / path.name)
        taken += new
    parities = {name: part.parity for name, part in found.items()}
    gates = {parity.precision: GATES[parity.precision] for parity in parities.values()}
    return Networks(
        ParityReport(target=making.target, gates=gates, parts=parities),
        {name: part.engine for name, part in found.items() if part.engine},
        tuple(taken),
        {name: part.files for name, part in found.items()},
    )


def take_over(repository: Path, manifest: Manifest, work: Path) -> None:
    """Put the parts of a repository into a work folder, as if an earlier build had finished them.

    Parameters
    ----------
    repository
        One whose networks depended on the same inputs.
    manifest
        Its manifest, which its files may have ceased to hold.
    work
        As in :func:`build_networks`; parts that are there already stay.
    """
    engines = manifest.engines.engines if manifest.engines else {}
    report = ParityReport.model_validate_json((repository / PARITY_FILE).read_bytes())
    for name, parity in report.parts.items():
        if (work / name).is_dir():
            continue
        staging = Path(mkdtemp(prefix=f".{name}.", dir=work))
        for path in version_folder(repository, name).iterdir():
            link(path, staging / path.name)
        part = _Part(parity=parity, engine=engines.get(name), files=_hashes(repository, name, manifest.files))
        (staging / _DONE_FILE).write_text(part.model_dump_json() + "\n", "utf-8")
        staging.rename(work / name)


def _first_that_holds(
    making: Making, name: str, precisions: tuple[Precision, ...], made: Path | None, done: Path
) -> list[Step]:
    """Build a part in the first precision, or where it cannot or breaks the gate, in the next."""
    first, *others = precisions
    try:
        return _build(making, name, first, made, done, refused=None)
    except (BuildError, ParityError) as error:
        if not others:
            raise
        return _build(making, name, others[0], made, done, refused=f"{first}: {error}")


def _build(
    making: Making, name: str, precision: Precision, made: Path | None, done: Path, *, refused: str | None
) -> list[Step]:
    """Build and compare a part; its folder appears when both have succeeded."""
    # A name of its own: the process of a build that was killed may still be writing.
    staging = Path(mkdtemp(prefix=f".{name}.", dir=done.parent))
    try:
        built = fresh(steps.build_part, making, name, precision, made, staging)
        path = staging / built.value.file
        compared = fresh(steps.compare_part, making, name, precision, made, path)
        part = _Part(
            parity=compared.value.model_copy(update={"refused": refused}),
            engine=built.value.engine,
            files={path.name: sha256_of(path) for path in _files(staging)},
        )
        (staging / _DONE_FILE).write_text(part.model_dump_json() + "\n", "utf-8")
        staging.rename(done)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [Step(name, "build", built.cost), Step(name, "compare", compared.cost)]


def _files(done: Path) -> list[Path]:
    """Return what of a finished part is to be served."""
    return sorted(p for p in done.iterdir() if p.name not in {_DONE_FILE, steps.MADE_FILE})


def _hashes(repository: Path, name: str, files: Mapping[str, FileRecord]) -> dict[str, str]:
    """Return the SHA-256 of a model's files, by file name."""
    folder = version_folder(repository, name).relative_to(repository)
    return {Path(path).name: record.sha256 for path, record in files.items() if Path(path).parent == folder}


def _line(name: str, files: list[Path], parity: PartParity, taken: list[Step]) -> str:
    size_mb = sum(path.stat().st_size for path in files) / 1e6
    line = (
        f"{name:20} {parity.precision}, largest difference {parity.max_abs:.1e}, cosine {parity.cosine:.7f}, "
        f"{size_mb:.1f} MB; "
    )
    costs = [f"{s.kind} {s.cost.elapsed_s:.1f} s with {s.cost.peak_bytes / 1e6:.0f} MB" for s in taken]
    line += ", ".join(costs) or "was built before"
    return line if parity.refused is None else f"{line}; not {parity.refused}"
