"""Goes through cases, conditions and tasks, and does what is not done yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

from medvl.contracts.checkpoint import Checkpoint
from medvl.contracts.errors import BackendUnavailable
from medvl.evaluation import language, masks
from medvl.evaluation.cases import Case, Condition, partner, shown
from medvl.evaluation.comparison import is_compared
from medvl.evaluation.items import Item, Segmented
from medvl.evaluation.records import Identity, Record, Records
from medvl.evaluation.subjects import Subject
from medvl.imaging.volume import Volume

Tell = Callable[[str], None]
_CASES_IN_MEMORY = 2
"""A case and its partner, which is the next case."""
_TRIES, _PAUSE_S = 60, 5.0
"""Of a task whose service ends, in the middle of an answer perhaps: an hour's work waits for one that starts again."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to evaluate.

    Attributes
    ----------
    seeds
        Cases for reports and questions.
    mask_cases
        The first so many of them for masks.
    control_cases
        The first so many of those also with masks on the empty and the shuffled volume: tracking is expensive.
    objects
        Organs, and again findings, of a case that are pointed at.
    texts
        Present findings of a case that are asked for in words, and again absent ones.
    """

    seeds: range
    mask_cases: int
    control_cases: int
    objects: int
    texts: int


@dataclass(frozen=True, slots=True)
class Participant:
    """A subject, the software that it is, and on how many of the first cases it is evaluated."""

    subject: Subject
    software: str
    cases: int


@dataclass(frozen=True, slots=True)
class _Task:
    name: str
    run: Callable[[Case, Volume, Subject], Sequence[Item]]


def evaluate(
    plan: Plan,
    participants: Sequence[Participant],
    checkpoint: Checkpoint,
    records: Records,
    *,
    make: Callable[[int], Case],
    tell: Tell,
) -> list[Record]:
    """Return the results of all participants, those that were there already among them.

    Parameters
    ----------
    make
        Makes the case of a seed.
    tell
        Takes a line for each task that is done now.
    """
    cached = lru_cache(_CASES_IN_MEMORY)(make)
    results = []
    for index, seed in enumerate(plan.seeds):
        for condition in Condition:
            scene = _Scene(cached, seed, condition)
            for participant in (p for p in participants if index < p.cases):
                for task in _tasks(plan, index, condition, checkpoint):
                    identity = Identity(
                        checkpoint=checkpoint.digest,
                        software=participant.software,
                        case=str(seed),
                        task=task.name,
                        subject=participant.subject.name,
                        condition=condition.value,
                    )
                    work = partial(_timed, task, scene, participant.subject, tell)
                    results.append(records.get(identity, work))
    return results


@dataclass(frozen=True, eq=False)
class _Scene:
    """A case in a condition, made when something has to be done with it."""

    make: Callable[[int], Case]
    seed: int
    condition: Condition

    @cached_property
    def case(self) -> Case:
        return self.make(self.seed)

    @cached_property
    def volume(self) -> Volume:
        """The same object for all tasks, which know it by its digest."""
        other = self.make(partner(self.seed)).volume if self.condition is Condition.SHUFFLED else None
        return shown(self.case.volume, self.condition, other)


def _timed(task: _Task, scene: _Scene, subject: Subject, tell: Tell) -> Sequence[Item]:
    case, volume = scene.case, scene.volume
    start_s = time.perf_counter()
    items = _done(task, case, volume, subject)
    took_s = time.perf_counter() - start_s
    tell(f"case {scene.seed}, {subject.name}, {scene.condition}: {task.name}, {took_s:.1f} s")
    return [_kept(item, scene.condition) for item in items]


def _done(task: _Task, case: Case, volume: Volume, subject: Subject) -> Sequence[Item]:
    for _ in range(_TRIES - 1):
        with suppress(BackendUnavailable):
            return task.run(case, volume, subject)
        time.sleep(_PAUSE_S)
    return task.run(case, volume, subject)


def _kept(item: Item, condition: Condition) -> Item:
    """Leave out masks that will not be compared."""
    compared = condition is Condition.OWN and is_compared(item)
    return item.without_voxels() if isinstance(item, Segmented) and not compared else item


def _tasks(plan: Plan, index: int, condition: Condition, checkpoint: Checkpoint) -> Iterator[_Task]:
    yield _Task("report", language.report)
    yield _Task(f"questions {language.QUESTIONS}", language.answers)
    own = condition is Condition.OWN
    if index < (plan.mask_cases if own else min(plan.mask_cases, plan.control_cases)):
        yield _Task("masks by name", partial(masks.by_name, checkpoint=checkpoint))
        yield _Task("masks of the report", masks.of_report)
        yield _Task(f"masks by text {plan.texts}", partial(masks.by_text, count=plan.texts))
        yield _Task(f"points {plan.objects} x {masks.MAX_CLICKS}", partial(masks.by_points, count=plan.objects))
