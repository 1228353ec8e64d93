"""Mask tasks: classes by name, findings by words and of reports, and objects by points, boxes and corrections.

Organs hold the lesions inside them. What lies outside the field of view or was removed is to be answered "not found".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from medvl.contracts.checkpoint import Checkpoint
from medvl.embedded.facts import findings_named
from medvl.embedded.report_reader import parse_report
from medvl.embedded.requests import Wanted, request_pool
from medvl.evaluation.cases import Case
from medvl.evaluation.clicks import box_around, correction, first_click
from medvl.evaluation.items import ObjectKind, PromptKind, Segmented, segmented
from medvl.evaluation.subjects import Subject
from medvl.imaging.volume import Volume

MAX_CLICKS = 4
_LEAST_VOXELS = 20
"""Of an object that points and boxes are put on."""
_OBJECTS, _TEXTS = 2, 3
"""Set the draws of each task apart from others of the same seed."""


@dataclass(frozen=True, eq=False)
class Target:
    """An object to point at.

    Attributes
    ----------
    asked
        Tells it from the others of its case.
    name
        The organ, or the kind of the finding.
    mask
        bool [D, R, C], not empty.
    """

    asked: str
    name: str
    kind: ObjectKind
    mask: NDArray[np.bool_]


def by_name(case: Case, volume: Volume, subject: Subject, checkpoint: Checkpoint) -> tuple[Segmented, ...]:
    """Ask for every class of the checkpoint that the truth knows.

    An organ of which so thin a slice is shown that it counts as outside is neither there nor absent: it is left out.
    """
    items = []
    for name in (label.name for label in checkpoint.labels if label.name in case.truth.organs):
        mask, seen = case.organ(name), case.truth.seen(name)
        if seen != mask.any():
            continue
        items.append(
            segmented(
                subject.segment_label(volume, name),
                mask if seen else None,
                volume.geometry.spacing_mm,
                prompt="name",
                asked=name,
                name=name,
                kind="organ",
            )
        )
    return tuple(items)


def by_text(case: Case, volume: Volume, subject: Subject, count: int) -> tuple[Segmented, ...]:
    """Ask for at most ``count`` findings that are there, and as many that are not, in words that mean one thing."""
    rng = np.random.default_rng([case.seed, _TEXTS])
    items = []
    for wanted in chosen_texts(case, count, rng):
        request = wanted.phrased(rng)
        items.append(
            segmented(
                subject.segment_text(volume, request.text),
                case.findings(request.findings) if request.present else None,
                volume.geometry.spacing_mm,
                prompt="text",
                asked=request.text,
                name=request.kind.value if request.kind else "lesion",
                kind="finding",
            )
        )
    return tuple(items)


def of_report(case: Case, volume: Volume, subject: Subject) -> tuple[Segmented, ...]:
    """Have a report written, and segmented what it names: every finding that is followed by its [SEG].

    What a report does not name is left out here: its recall tells that. Masks of other words are of other findings.
    """
    said, found = subject.report_masks(volume)
    report = hashlib.sha256(said.encode()).hexdigest()[:12]
    return tuple(
        segmented(
            found[seg],
            None if number is None else case.findings((number,)),
            volume.geometry.spacing_mm,
            prompt="report",
            asked=f"finding {seg} of {report}",
            name=kind.value,
            kind="finding",
        )
        for seg, kind, number in findings_named(case.truth, parse_report(said))
    )


def chosen_texts(case: Case, count: int, rng: np.random.Generator) -> list[Wanted]:
    """Return what to ask for in words: each finding once, and absent things."""
    pool = [wanted for wanted in request_pool(case.truth) if wanted.stratum[0] == "finding"]
    shuffled = [pool[i] for i in rng.permutation(len(pool))]
    present = {wanted.findings: wanted for wanted in shuffled if wanted.present}
    absent = {(wanted.kind, wanted.organ): wanted for wanted in shuffled if not wanted.present}
    return [*list(present.values())[:count], *list(absent.values())[:count]]


def by_points(case: Case, volume: Volume, subject: Subject, count: int) -> tuple[Segmented, ...]:
    """Point at ``count`` organs and ``count`` findings of a case: up to :data:`MAX_CLICKS` clicks, and a box."""
    return tuple(i for target in targets(case, count) for i in pointed(target, volume, subject, clicks=MAX_CLICKS))


def targets(case: Case, count: int) -> list[Target]:
    """Return the organs and findings of a case to point at, at most ``count`` of each; the same for the same seed."""
    rng, truth = np.random.default_rng([case.seed, _OBJECTS]), case.truth
    organs = [name for name in truth.organs if name != "body" and truth.seen(name)]
    of_organs = (Target(organs[i], organs[i], "organ", case.organ(organs[i])) for i in rng.permutation(len(organs)))
    of_findings = (
        Target(truth.names[f.value], f.kind.value, "finding", case.findings((int(i),)))
        for i in rng.permutation(len(truth.findings))
        if (f := truth.findings[i]).value is not None
    )
    return [
        target
        for candidates in (of_organs, of_findings)
        for target in islice((t for t in candidates if np.count_nonzero(t.mask) >= _LEAST_VOXELS), count)
    ]


def pointed(target: Target, volume: Volume, subject: Subject, *, clicks: int) -> Iterator[Segmented]:
    """Yield the masks of an object after each of so many clicks, and by a box.

    A subject that makes no error any more is given no further click; its mask counts for the clicks that it spared.
    """

    def judged(found: NDArray[np.bool_], prompt: PromptKind, number: int) -> Segmented:
        return segmented(
            found,
            target.mask,
            volume.geometry.spacing_mm,
            prompt=prompt,
            asked=target.asked,
            name=target.name,
            kind=target.kind,
            clicks=number,
        )

    for number, found in enumerate(_corrected(target, volume, subject, clicks), 1):
        yield judged(found, "point", number)
    yield judged(subject.segment_box(volume, box_around(target.mask)), "box", 0)


def _corrected(target: Target, volume: Volume, subject: Subject, clicks: int) -> Iterator[NDArray[np.bool_]]:
    given = [first_click(target.mask)]
    found = subject.segment_points(volume, given)
    yield found
    for _ in range(clicks - 1):
        further = correction(target.mask, found)
        if further is not None:
            given.append(further)
            found = subject.segment_points(volume, given)
        yield found
