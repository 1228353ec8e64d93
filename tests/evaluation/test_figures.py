"""Figures of subjects that are right in part, worked out by hand."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from medvl.evaluation.figures import ALL, Figure, figures
from medvl.evaluation.items import Answered, Item, ObjectKind, PromptKind, Reported, Segmented, segmented
from medvl.evaluation.records import Record

SHAPE, SPACING_MM = (6, 8, 8), (5.0, 1.0, 2.0)
NOTHING = np.zeros(SHAPE, bool)
Values = dict[tuple[str, str], float | None]


def record(*items: Item, case: str = "1", task: str = "task", subject: str = "s", condition: str = "own") -> Record:
    return Record(key=case, case=case, task=task, subject=subject, condition=condition, items=items)


def of_section(found: Iterable[Figure], section: str) -> Values:
    """Values of a section by metric and group."""
    return {(f.row.metric, f.row.group): f.estimate.value for f in found if f.row.section == section}


def items_of(found: Iterable[Figure], metric: str, group: str = ALL) -> int:
    """How many items a figure counts."""
    return next(f.estimate.n for f in found if (f.row.metric, f.row.group) == (metric, group))


HALF_RIGHT = Reported(
    text="",
    wanted={"liver_cyst": 3, "liver_mass": 1},
    stated={"liver_cyst": 2, "kidney_cyst": 1},
    matched={"liver_cyst": 1},
    sided=4,
    side_right=3,
    unread=2,
    errors_mm=(1.0, 2.0, 9.0),
)
"""Of 4 findings it names 1, beside one cyst too many in the liver and one in a kidney."""
ALL_RIGHT = Reported(
    text="", wanted={"liver_cyst": 1}, stated={"liver_cyst": 1}, matched={"liver_cyst": 1},
    sided=0, side_right=0, unread=0, errors_mm=(3.0,),
)  # fmt: skip


def test_a_report_that_misses_and_invents():
    """What is missed makes up for nothing that is invented."""
    found = figures([record(HALF_RIGHT)])
    assert of_section(found, "reports") == {
        ("finding precision", ALL): 1 / 3,
        ("finding recall", ALL): 1 / 4,
        ("finding F1", ALL): 2 / 7,
        ("finding precision", "liver_cyst"): 1 / 2,
        ("finding recall", "liver_cyst"): 1 / 3,
        ("finding F1", "liver_cyst"): 2 / 5,
        ("finding precision", "liver_mass"): None,
        ("finding recall", "liver_mass"): 0.0,
        ("finding F1", "liver_mass"): 0.0,
        ("finding precision", "kidney_cyst"): 0.0,
        ("finding recall", "kidney_cyst"): None,
        ("finding F1", "kidney_cyst"): 0.0,
        ("invented findings per report", ALL): 2.0,
        ("side right, of findings named", ALL): 3 / 4,
        ("unreadable sentences per report", ALL): 2.0,
        ("size error, median mm", ALL): 2.0,
    }
    assert items_of(found, "finding precision") == 3
    assert items_of(found, "finding recall") == 4
    assert items_of(found, "side right, of findings named") == 4


def test_findings_are_counted_over_all_reports():
    """Shares are of findings, numbers of reports, and the median is that of every size."""
    found = of_section(figures([record(HALF_RIGHT), record(ALL_RIGHT, case="2")]), "reports")
    assert found["finding precision", ALL] == 2 / 4
    assert found["finding recall", ALL] == 2 / 5
    assert found["finding F1", ALL] == 4 / 9
    assert found["invented findings per report", ALL] == 2 / 2
    assert found["unreadable sentences per report", ALL] == 2 / 2
    assert found["side right, of findings named", ALL] == 3 / 4
    assert found["size error, median mm", ALL] == (2.0 + 3.0) / 2


def answered(
    topic: str,
    right: bool,
    *,
    closed: bool,
    mirrored: bool = False,
    several: bool = False,
    error_mm: float | None = None,
) -> Answered:
    return Answered(
        topic=topic,
        closed=closed,
        question="?",
        answer="",
        right=right,
        mirrored=mirrored,
        several=several,
        error_mm=error_mm,
    )


def test_answers_that_are_right_in_part():
    """Laterality is of the closed questions for a side; a size is near within 5 mm, or where its grade is right."""
    found = figures(
        [
            record(
                answered("side", right=True, closed=True),
                answered("side", right=False, closed=True, mirrored=True),
                answered("side", right=False, closed=True),
                answered("side", right=False, closed=True),
                answered("presence", right=True, closed=True),
                answered("number", right=True, closed=True),
                answered("number", right=False, closed=True, several=True),
                answered("size", right=True, closed=True),
                answered("size", right=True, closed=False),
                answered("size", right=False, closed=False, error_mm=5.0),
                answered("size", right=False, closed=False, error_mm=5.5),
                answered("size", right=False, closed=False),
                answered("description", right=False, closed=False),
            )
        ]
    )
    assert of_section(found, "questions") == {
        ("closed, accuracy", ALL): 4 / 8,
        ("closed, accuracy", "side"): 1 / 4,
        ("closed, accuracy", "presence"): 1.0,
        ("closed, accuracy", "number"): 1 / 2,
        ("closed, accuracy", "number, of several"): 0.0,
        ("closed, accuracy", "size"): 1.0,
        ("laterality, accuracy", ALL): 1 / 4,
        ("left and right confused", ALL): 1 / 4,
        ("open, share right", ALL): 1 / 5,
        ("open, share right", "size"): 1 / 4,
        ("open, share right", "description"): 0.0,
        ("size within 5 mm", ALL): 2 / 4,
    }


def test_shares_of_cases_have_wilsons_interval():
    """Of answers and of what is found, with one a case; what is no share has the bootstrap's."""
    right, wrong = answered("side", right=True, closed=True), answered("side", right=False, closed=True)
    there, absent = mask(voxels(1), voxels(1)), mask(NOTHING, None)
    found = figures([record(right, there, absent, ALL_RIGHT), record(wrong, there, absent, HALF_RIGHT, case="2")])
    intervals = {f.row.metric: f.estimate.interval for f in found if f.row.group == ALL}
    assert {metric for metric, interval in intervals.items() if interval == "wilson"} == {
        *("closed, accuracy", "laterality, accuracy", "left and right confused"),
        *("present, found", "absent, not found"),
    }


def voxels(*slices: int) -> np.ndarray:
    """A mask of one voxel on each of these slices."""
    mask = NOTHING.copy()
    mask[list(slices), 3, 3] = True
    return mask


def mask(
    found: np.ndarray,
    wanted: np.ndarray | None,
    name: str = "liver",
    prompt: PromptKind = "name",
    *,
    kind: ObjectKind = "organ",
    clicks: int = 0,
) -> Segmented:
    return segmented(found, wanted, SPACING_MM, prompt=prompt, asked=name, name=name, kind=kind, clicks=clicks)


def test_masks_by_words_that_are_right_in_part():
    """What is there and not found has Dice 0 and no distance; what is not there says only whether it is found."""
    items = (
        mask(voxels(1, 2), voxels(1)),  # Dice 2/3; one slice beyond, 5 mm
        mask(voxels(4), voxels(1)),  # Dice 0; three slices away, 15 mm
        mask(NOTHING, voxels(1), "spleen"),
        mask(NOTHING, None, "spleen"),
        mask(voxels(1), None, "spleen"),
        mask(voxels(1), None, "liver"),
    )
    found = of_section(figures([record(*items)]), "masks by class name")
    one_slice_beyond_mm = 0.95 * 5.0  # 95th percentile of the distances 0 and 5 mm
    assert found == pytest.approx(
        {
            ("Dice", ALL): 2 / 9,
            ("Dice", "liver"): 1 / 3,
            ("Dice", "spleen"): 0.0,
            ("HD95 mm", ALL): (one_slice_beyond_mm + 15.0) / 2,
            ("HD95 mm", "liver"): (one_slice_beyond_mm + 15.0) / 2,
            ("present, found", ALL): 2 / 3,
            ("present, found", "liver"): 1.0,
            ("present, found", "spleen"): 0.0,
            ("absent, not found", ALL): 1 / 3,
            ("absent, not found", "liver"): 0.0,
            ("absent, not found", "spleen"): 1 / 2,
        }
    )


def test_every_way_to_ask_has_its_section():
    """Findings by words and of reports by kind, what is pointed at by organs and findings, real CT by its series."""
    right, half = (mask(found, voxels(1), "liver_cyst", "text", kind="finding") for found in (voxels(1), voxels(1, 2)))
    of_report = mask(NOTHING, voxels(1), "liver_cyst", "report", kind="finding")
    by_words = figures([record(right, half, of_report)])
    assert of_section(by_words, "findings by text")["Dice", "liver_cyst"] == pytest.approx(5 / 6)
    assert of_section(by_words, "findings of reports")["present, found", ALL] == 0.0
    pointed = (
        mask(voxels(1, 2), voxels(1), "liver", "point", clicks=1),
        mask(voxels(1), voxels(1), "liver", "point", clicks=2),
        mask(NOTHING, voxels(1), "liver_cyst", "point", kind="finding", clicks=1),
        mask(voxels(1), voxels(1), "liver", "box"),
    )
    at_places = figures([record(*pointed)])
    assert of_section(at_places, "points") == pytest.approx(
        {
            ("Dice, 1 click", "organs"): 2 / 3,
            ("HD95 mm, 1 click", "organs"): 0.95 * 5.0,
            ("Dice, 2 clicks", "organs"): 1.0,
            ("HD95 mm, 2 clicks", "organs"): 0.0,
            ("Dice, 1 click", "findings"): 0.0,
        }
    )
    assert of_section(at_places, "box") == {("Dice, box", "organs"): 1.0, ("HD95 mm, box", "organs"): 0.0}
    real = figures([record(pointed[0], case="chest", task="real 0a1b x 3")])
    assert of_section(real, "real CT chest")["Dice, 1 click", "liver"] == pytest.approx(2 / 3)


def test_subjects_and_conditions_have_figures_of_their_own():
    right, wrong = answered("side", right=True, closed=True), answered("side", right=False, closed=True)
    found = figures(
        [record(right), record(wrong, condition="empty"), record(wrong, subject="other"), record(wrong, case="2")]
    )
    accuracy = {
        (f.subject, f.condition): f.estimate.value
        for f in found
        if (f.row.metric, f.row.group) == ("closed, accuracy", ALL)
    }
    assert accuracy == {("s", "own"): 1 / 2, ("s", "empty"): 0.0, ("other", "own"): 0.0}
