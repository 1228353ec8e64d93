"""``medvl-export evaluate``: figures with intervals and controls, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medvl.client import Client
from medvl.contracts.checkpoint import Checkpoint, load_checkpoint
from medvl.contracts.disclaimer import DISCLAIMER
from medvl.contracts.errors import InvalidRequest, ParityError
from medvl.contracts.paths import data_folder
from medvl.evaluation import masks, real, statistics
from medvl.evaluation.cases import Case, held_out
from medvl.evaluation.comparison import Comparison, compare
from medvl.evaluation.document import require_place, write_document
from medvl.evaluation.evaluate import Participant, Plan, Tell, evaluate
from medvl.evaluation.figures import Figure, figures
from medvl.evaluation.goals import goal_table
from medvl.evaluation.language import QUESTIONS
from medvl.evaluation.records import Records
from medvl.evaluation.subjects import ReferenceSubject, ServedSubject
from medvl.evaluation.table import comparison_table, markdown, plain, table
from medvl.export.fingerprint import sources_digest
from medvl.export.presets import PHANTOM, resolve_checkpoint

COMPARED_CASES = 20
"""The first cases, on which the reference answers beside the served system."""
MASK_CASES, CONTROL_CASES = 60, 20
_SOURCES = ("medvl.contracts", "medvl.imaging", "medvl.network", "medvl.embedded", "medvl.evaluation")
"""Packages whose code decides what a result is."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a user asks for; see the command's help."""

    checkpoint: str
    cases: int
    seed: int
    mask_cases: int | None = None
    control_cases: int = CONTROL_CASES
    objects: int = 2
    texts: int = 3
    served: str | None = None
    real: Path | None = None
    json: Path | None = None
    work: Path | None = None
    markdown: bool = False

    @property
    def plan(self) -> Plan:
        """The cases and tasks.

        Raises
        ------
        InvalidRequest
            When a number is negative, or a seed is one of training.
        """
        if min(self.mask_cases or 0, self.control_cases, self.objects, self.texts) < 0:
            raise InvalidRequest("Numbers of cases, objects and texts are not negative.")
        wanted = MASK_CASES if self.mask_cases is None else self.mask_cases
        return Plan(
            seeds=held_out(self.seed, self.cases),
            mask_cases=min(self.cases, wanted),
            control_cases=self.control_cases,
            objects=self.objects,
            texts=self.texts,
        )

    @property
    def folder(self) -> Path:
        """Where results are kept, by default beside the JSON."""
        if self.work is not None:
            return self.work
        return self.json.with_suffix(".work") if self.json is not None else data_folder() / "evaluation"


def run(settings: Settings, tell: Tell, show: Callable[[str], object]) -> None:
    """Evaluate, write the JSON if one is asked for, and show the tables.

    Raises
    ------
    InvalidRequest
        As :attr:`Settings.plan`, or where the JSON would have to replace what is no file.
    ParityError
        In the end, where what is served is not what the reference says.
    OSError
        Where the JSON cannot be written; before anything is evaluated.
    """
    plan = settings.plan
    folder = resolve_checkpoint(settings.checkpoint)
    # What is wrong with what is needed in the end is said before the hours that lead there.
    if settings.real is not None:
        real.require(settings.real)
    if settings.json is not None:
        require_place(settings.json)
        if settings.json.resolve() == settings.folder.resolve():
            raise InvalidRequest(f"{settings.json} is where results are kept: name another file for the JSON.")
    checkpoint = load_checkpoint(folder)
    with Records(settings.folder) as records, _participants(settings, folder, checkpoint) as participants:
        results = evaluate(plan, participants, checkpoint, records, make=Case.make, tell=tell)
        if settings.real is not None:
            results += real.evaluate_real(settings.real, participants, checkpoint.digest, records, tell)
    found = figures(results)
    compared = compare(results, "served", "reference") if settings.served else None
    software = {participant.subject.name: participant.software for participant in participants}
    document = describe(settings, checkpoint, software, found, compared)
    if settings.json is not None:
        write_document(settings.json, document)
    show(_printed(settings, checkpoint, found, compared))
    if compared is not None and not compared.agrees:
        raise ParityError(
            "What is served is not what the torch reference says of the same checkpoint: build the repository again, "
            "and look into what the tables compare."
        )


def describe(
    settings: Settings,
    checkpoint: Checkpoint,
    software: dict[str, str],
    found: list[Figure],
    compared: Comparison | None,
) -> dict[str, Any]:
    """Return everything that is known of an evaluation, for JSON; the same on every machine."""
    plan = settings.plan
    return {
        "disclaimer": DISCLAIMER,
        "checkpoint": {"name": checkpoint.name, "digest": checkpoint.digest, "trained": checkpoint.trained},
        "software": software,
        "parameters": {
            "first_seed": plan.seeds.start,
            "cases": len(plan.seeds),
            "mask_cases": plan.mask_cases,
            "control_cases": min(plan.mask_cases, plan.control_cases),
            "objects": plan.objects,
            "texts": plan.texts,
            "questions": QUESTIONS,
            "clicks": masks.MAX_CLICKS,
            "served": settings.served is not None,
            "real": settings.real is not None,
            "bootstrap": {"draws": statistics.DRAWS, "seed": statistics.SEED},
        },
        "figures": [
            {**asdict(figure.row), "subject": figure.subject, "condition": figure.condition, **asdict(figure.estimate)}
            for figure in found
        ],
        "comparison": asdict(compared) if compared else None,
        "caveats": [real.CAVEAT] if settings.real is not None else [],
    }


@contextmanager
def _participants(settings: Settings, folder: Path, checkpoint: Checkpoint) -> Iterator[list[Participant]]:
    """Yield who is evaluated: the reference, or the served system and the reference on the first cases."""
    reference = ReferenceSubject(folder)
    own = f"medvl-sam2 {version('medvl-sam2')}, sources {sources_digest(_SOURCES)[:12]}"
    if settings.served is None:
        yield [Participant(reference, own, settings.cases)]
        return
    with Client(settings.served) as client:
        served = ServedSubject(client, checkpoint.digest)
        software = f"{served.software}, Triton {served.triton_version}, judged by {own}"
        yield [Participant(served, software, settings.cases), Participant(reference, own, COMPARED_CASES)]


def _printed(settings: Settings, checkpoint: Checkpoint, found: list[Figure], compared: Comparison | None) -> str:
    layout = markdown if settings.markdown else plain
    trained = "trained" if checkpoint.trained else "random weights"
    plan = settings.plan
    blocks = [
        f"Checkpoint {checkpoint.name} {checkpoint.digest[:12]}, {trained}. {DISCLAIMER}\n",
        *([goal_table(found, layout)] if checkpoint.name == PHANTOM else []),
        table(found, layout),
        f"empty, shuffled: the same subject, shown water and air or the voxels of another case; masks on the first "
        f"{min(plan.mask_cases, plan.control_cases)} cases.\n",
    ]
    if compared is not None:
        blocks.append(comparison_table(compared, layout))
    if settings.real is not None:
        blocks.append(real.CAVEAT + "\n")
    return "\n".join(blocks)
