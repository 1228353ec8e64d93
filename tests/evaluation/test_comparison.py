"""Two subjects that differ a little: how much, counted by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medvl.evaluation.comparison import Comparison, compare
from medvl.evaluation.items import Answered, Item, PromptKind, Reported, Segmented, segmented
from medvl.evaluation.records import Record

SPACING_MM = (5.0, 1.0, 2.0)


def record(subject: str, *items: Item, case: str = "1", condition: str = "own", task: str = "task") -> Record:
    return Record(key=case, case=case, task=task, subject=subject, condition=condition, items=items)


def report(text: str) -> Reported:
    return Reported(text=text, wanted={}, stated={}, matched={}, sided=0, side_right=0, unread=0, errors_mm=())


def answer(question: str, text: str) -> Answered:
    return Answered(topic="side", closed=True, question=question, answer=text, right=True)


def mask(asked: str, *slices: int, prompt: PromptKind = "name", clicks: int = 0) -> Segmented:
    """A mask of one voxel on each of these slices, whatever is wanted."""
    voxels = np.zeros((6, 4, 4), bool)
    voxels[list(slices), 2, 2] = True
    return segmented(voxels, None, SPACING_MM, prompt=prompt, asked=asked, name=asked, kind="organ", clicks=clicks)


def test_texts_agree_to_the_letter():
    """Reports and answers, each with the answer to the same question; a capital is another letter."""
    one = (report("Normal."), answer("Which side?", "Left."), answer("Which kidney?", "None."))
    other = (answer("Which kidney?", "None."), answer("Which side?", "left."), report("Normal."))
    found = compare([record("a", *one), record("b", *other)], "a", "b")
    assert (found.first, found.second, found.cases) == ("a", "b", 1)
    assert (found.texts, found.identical_texts, found.masks, found.mean_dice) == (3, 2, 0, None)


def test_masks_are_laid_over_those_of_the_same_prompt():
    """Two that are empty agree, an empty one and another have nothing in common."""
    one = (
        mask("liver", 1, 2),
        mask("spleen"),
        mask("aorta", 1),
        mask("liver", 3, prompt="point", clicks=1),
        mask("liver", prompt="box"),
    )
    other = (
        mask("liver", prompt="box"),
        mask("liver", 3, prompt="point", clicks=1),
        mask("aorta"),
        mask("spleen"),
        mask("liver", 1),
    )
    found = compare([record("a", *one), record("b", *other)], "a", "b")
    assert (found.masks, found.found_alike, found.least_dice) == (5, 4, 0.0)
    assert found.mean_dice == pytest.approx((2 / 3 + 1 + 0 + 1 + 1) / 5)


def test_only_what_both_were_asked_alike_is_compared():
    """Their own volumes, the same task and prompt, and no click that follows from a mask."""
    first, second = mask("liver", 1, prompt="point", clicks=1), mask("liver", 2, prompt="point", clicks=2)
    of_a = [
        record("a", first, second),
        record("a", mask("liver", 1), answer("Which side?", "Left."), case="2"),
        record("a", mask("liver", 1), case="2", condition="empty"),
        record("a", mask("liver", 1), case="3"),
        record("a", mask("liver", 1), case="4"),
    ]
    of_b = [
        record("b", first, mask("liver", 5, prompt="point", clicks=2)),
        record("b", mask("spleen", 5), mask("liver", 5, prompt="text"), answer("Which kidney?", "None."), case="2"),
        record("b", mask("liver", 5), case="2", condition="empty"),
        record("b", mask("liver", 5), case="3", task="another task"),
        record("c", mask("liver", 5), case="4"),
    ]
    found = compare([*of_a, *of_b], "a", "b")
    assert (found.cases, found.texts, found.masks, found.least_dice) == (2, 0, 1, 1.0)


JUST_ALIKE = Comparison(
    "a", "b", cases=1, texts=100, identical_texts=99, masks=100, found_alike=99, mean_dice=0.99, least_dice=0.0
)


@pytest.mark.parametrize("name", ["identical_texts", "found_alike", "mean_dice"])
def test_each_difference_is_a_disagreement(name: str):
    """One hundredth of the texts, of what is found and of the masks may differ; more of any of them is too much."""
    assert JUST_ALIKE.agrees
    less = {"identical_texts": 98, "found_alike": 98, "mean_dice": 0.989}[name]
    assert not replace(JUST_ALIKE, **{name: less}).agrees
