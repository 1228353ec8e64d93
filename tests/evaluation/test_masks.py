"""What subjects are asked to segment, and a user who corrects what comes back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from medvl.contracts.checkpoint import Checkpoint
from medvl.embedded.truth import Coverage, Finding, FindingKind, Truth
from medvl.embedded.words import NOUNS
from medvl.evaluation.cases import Case
from medvl.evaluation.clicks import Click, VoxelBox, box_around, correction, first_click
from medvl.evaluation.masks import Target, by_name, by_text, of_report, pointed, targets
from medvl.imaging.geometry import Geometry
from medvl.imaging.volume import Volume

SHAPE = (4, 6, 8)
GEOMETRY = Geometry(SHAPE, (5.0, 1.0, 2.0), (0.0, 0.0, 0.0), ((0, 0, 1), (0, 1, 0), (1, 0, 0)))
VOLUME = Volume(np.zeros(SHAPE, np.int16), GEOMETRY)
NOTHING = np.zeros(SHAPE, bool)
CYST, MASS, LIVER, SPLEEN, KIDNEY, BLADDER, BODY = 100, 101, 2, 3, 4, 5, 1
"""Values of the label map."""


def box(d: slice, r: slice, c: slice) -> np.ndarray:
    mask = NOTHING.copy()
    mask[d, r, c] = True
    return mask


OBJECT = box(slice(1, 2), slice(1, 4), slice(1, 4))


class Scripted:
    """Answers clicks with these masks, one after another, and a box with the last; notes what it is asked."""

    name = "scripted"

    def __init__(self, *masks: np.ndarray) -> None:
        self.masks = masks
        self.clicks: list[list[Click]] = []
        self.boxes: list[VoxelBox] = []

    def segment_points(self, volume: Volume, clicks: Sequence[Click]) -> np.ndarray:
        assert volume is VOLUME
        self.clicks.append(list(clicks))
        return self.masks[len(clicks) - 1]

    def segment_box(self, volume: Volume, box: VoxelBox) -> np.ndarray:
        assert volume is VOLUME
        self.boxes.append(box)
        return self.masks[-1]


def test_each_click_corrects_the_mask_that_came_back():
    """All clicks before it come with it: the next slice is marked, then everything, then the object itself."""
    beside, too_much = box(slice(2, 3), slice(1, 4), slice(1, 3)), ~NOTHING
    subject = Scripted(beside, too_much, OBJECT)
    items = list(pointed(Target("liver 1", "liver", "organ", OBJECT), VOLUME, subject, clicks=3))
    first = Click((1, 2, 2))
    second, third = correction(OBJECT, beside), correction(OBJECT, too_much)
    assert (second, third) == (Click((1, 2, 2)), Click((0, 2, 2), negative=True))
    assert subject.clicks == [[first], [first, second], [first, second, third]]
    assert subject.boxes == [box_around(OBJECT)]
    assert [(i.prompt, i.clicks, i.dice) for i in items] == [
        ("point", 1, 0.0),
        ("point", 2, pytest.approx(2 * 9 / (9 + 192))),
        ("point", 3, 1.0),
        ("box", 0, 1.0),
    ]
    assert {(i.asked, i.object, i.kind) for i in items} == {("liver 1", "liver", "organ")}
    assert items[0].hd95_mm == pytest.approx(np.hypot(5.0, 2.0)), "a slice and a column away"


def test_who_makes_no_error_is_given_no_further_click():
    """The mask counts for the clicks that it spared."""
    subject = Scripted(OBJECT, NOTHING)
    items = list(pointed(Target("liver", "liver", "organ", OBJECT), VOLUME, subject, clicks=4))
    assert subject.clicks == [[first_click(OBJECT)]]
    assert [(i.prompt, i.clicks, i.dice) for i in items] == [
        ("point", 1, 1.0),
        ("point", 2, 1.0),
        ("point", 3, 1.0),
        ("point", 4, 1.0),
        ("box", 0, 0.0),
    ]


class Constant:
    """Answers every word with one mask; notes the words."""

    name = "constant"

    def __init__(self, mask: np.ndarray) -> None:
        self.mask = mask
        self.words: list[str] = []

    def segment_label(self, volume: Volume, name: str) -> np.ndarray:
        assert volume is VOLUME
        self.words.append(name)
        return self.mask

    segment_text = segment_label

    def report_masks(self, volume: Volume) -> tuple[str, list[np.ndarray]]:
        assert volume is VOLUME
        named = "The liver shows a 150 mm cyst [SEG]. The left kidney shows a 10 mm stone [SEG]."
        return f"Findings: {named}\nImpression: Liver cyst.", [self.mask, self.mask]


def finding(kind: FindingKind, organ: str, value: int | None) -> Finding:
    return Finding(kind=kind, organ=organ, side=None, size_mm=150.0, centre_lps_mm=(0, 0, 0), value=value)


@pytest.fixture
def tiny() -> Case:
    """Slice 1 is a liver with a cyst of 20 and a mass of 19 voxels, slice 2 holds others of 20, 19 and 1."""
    labels = np.full(SHAPE, BODY, np.uint8)
    labels[1] = np.repeat([CYST, MASS, LIVER], [20, 19, 9]).reshape(SHAPE[1:])
    labels[2] = np.repeat([SPLEEN, KIDNEY, BLADDER, BODY], [20, 19, 1, 8]).reshape(SHAPE[1:])
    shown = {"body": Coverage.WHOLE, "liver": Coverage.WHOLE, "spleen": Coverage.PARTIAL, "kidney_left": Coverage.WHOLE}
    truth = Truth(
        seed=7,
        organs=dict.fromkeys(NOUNS, Coverage.OUTSIDE) | shown | {"gallbladder": Coverage.REMOVED},
        findings=(
            finding(FindingKind.SPLENOMEGALY, "spleen", None),
            finding(FindingKind.LIVER_CYST, "liver", CYST),
            finding(FindingKind.LIVER_MASS, "liver", MASS),
        ),
        names={
            BODY: "body",
            LIVER: "liver",
            SPLEEN: "spleen",
            KIDNEY: "kidney_left",
            BLADDER: "urinary_bladder",
            CYST: "liver_cyst",
            MASS: "liver_mass",
        },
    )
    return Case(7, VOLUME, labels, truth)


def test_classes_are_there_or_absent(tiny: Case, contract: Checkpoint):
    """An organ holds its lesions; removed or outside is absent; of the bladder too little is shown to say either."""
    subject = Constant(box(slice(2, 3), slice(None), slice(None)))
    items = by_name(tiny, VOLUME, subject, contract)
    assert subject.words == [i.asked for i in items] == [n.name for n in contract.labels if n.name != "urinary_bladder"]
    assert {i.asked: i.dice for i in items if i.present} == {
        "liver": 0.0,
        "spleen": 2 * 20 / (48 + 20),
        "kidney_left": 2 * 19 / (48 + 19),
    }
    assert next(i.hd95_mm for i in items if i.asked == "liver") == 5.0, "the whole slice beside it"
    assert all(i.dice is None and i.found for i in items if not i.present)
    assert {(i.prompt, i.kind) for i in items} == {("name", "organ")}


def test_findings_are_asked_for_in_words(tiny: Case):
    """Each that is there once, and as many that are not; the cyst is what words for a cyst mean."""
    subject = Constant(tiny.labels == CYST)
    items = by_text(tiny, VOLUME, subject, 2)
    assert subject.words == [i.asked for i in items]
    assert {i.object: i.dice for i in items if i.present} == {"liver_cyst": 1.0, "liver_mass": 0.0}
    assert [(i.dice, i.found) for i in items if not i.present] == [(None, True)] * 2
    assert [i.present for i in by_text(tiny, VOLUME, subject, 1)] == [True, False]
    in_next_slice = Constant(np.roll(tiny.labels == CYST, 1, axis=0))
    assert [i.hd95_mm for i in by_text(tiny, VOLUME, in_next_slice, 2) if i.object == "liver_cyst"] == [5.0]


def test_what_a_report_names_is_segmented(tiny: Case):
    """The cyst that it names beside the one that is there, a slice away; a stone that is not there."""
    (cyst, stone) = of_report(tiny, VOLUME, Constant(np.roll(tiny.labels == CYST, 1, axis=0)))
    assert (cyst.object, cyst.present, cyst.dice, cyst.hd95_mm) == ("liver_cyst", True, 0.0, 5.0)
    assert (stone.object, stone.present, stone.dice, stone.found) == ("kidney_stone", False, None, True)
    assert {(i.prompt, i.kind) for i in (cyst, stone)} == {("report", "finding")}


def test_objects_to_point_at_are_large_enough(tiny: Case):
    """Twenty voxels or more of an organ with its lesions or of a finding, never the body; the same each time."""
    found = {t.asked: t for t in targets(tiny, 9)}
    assert {t.asked: (t.name, t.kind) for t in found.values()} == {
        "liver": ("liver", "organ"),
        "spleen": ("spleen", "organ"),
        "liver_cyst": ("liver_cyst", "finding"),
    }
    assert np.array_equal(found["liver"].mask, np.isin(tiny.labels, [LIVER, CYST, MASS]))
    assert np.array_equal(found["liver_cyst"].mask, tiny.labels == CYST)
    assert [t.kind for t in targets(tiny, 1)] == ["organ", "finding"]
    assert [t.asked for t in targets(tiny, 9)] == list(found)
