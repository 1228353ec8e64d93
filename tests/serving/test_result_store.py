"""Answers that are given again: to the same prompts only, and within their bound."""

from __future__ import annotations

import numpy as np
import pytest

from medvl.contracts.messages import (
    BoxPrompt,
    GivenMask,
    ObjectMask,
    ObjectPrompts,
    PointPrompt,
    SegmenterRequest,
    SliceMask,
)
from medvl.serving.feature_store import SeriesKey
from medvl.serving.past import Past, Stores
from medvl.serving.result_store import EVENT_BYTES, SCORE_BYTES, BoundedStore, Result, result_key

SERIES = SeriesKey("a" * 64, (-160.0, 240.0), "c" * 64)
STATES = np.arange(8, dtype=np.float32).reshape(2, 4)
MASKS = np.arange(10, dtype=np.uint8)
POINT = PointPrompt(slice=1, row=2.0, column=3.0)
OVERHEAD = 2 * EVENT_BYTES + SCORE_BYTES
"""Bytes of the two events and the one score of a result here."""
BOX = BoxPrompt(slice=1, first_slice=0, last_slice=2, row_min=1, column_min=1, row_max=4, column_max=4)


def result(size: int, number: int = 1) -> Result:
    preview = SliceMask(object_id=number, slice=2, score=0.5)
    mask = ObjectMask(object_id=number, found=True, score=0.5, key_slices=(2,), slice_scores={2: 0.9})
    return Result(((preview, b"p"),), (mask, b"m" * (size - 1)))


def key(series: SeriesKey = SERIES, **prompts):
    return result_key(series, ObjectPrompts(**({"object_id": 1} | prompts)), STATES, MASKS)


DIFFERENT = {
    "point": {"points": (POINT,)},
    "negative": {"points": (POINT.model_copy(update={"positive": False}),)},
    "two": {"points": (POINT, POINT)},
    "corrected": {"points": (POINT, POINT.model_copy(update={"correction": 1}))},
    "box": {"boxes": (BOX,)},
    "words": {"seg_row": 0},
    "other words": {"seg_row": 1},
    "words and point": {"seg_row": 0, "points": (POINT,)},
    "mask": {"mask": GivenMask(start=0, length=4)},
    "other mask": {"mask": GivenMask(start=4, length=4)},
}


def test_a_result_follows_from_all_that_prompts_its_object():
    """Any difference of series, window, checkpoint, words, points, boxes or mask is another result."""
    keys = [key(**prompts) for prompts in DIFFERENT.values()]
    keys += [
        key(SeriesKey("b" * 64, SERIES.window_hu, SERIES.checkpoint), points=(POINT,)),
        key(SeriesKey(SERIES.series, (0.0, 1.0), SERIES.checkpoint), points=(POINT,)),
        key(SeriesKey(SERIES.series, SERIES.window_hu, "d" * 64), points=(POINT,)),
    ]
    regions = np.ones((2, 12), np.float32)
    words, points = (ObjectPrompts(object_id=1, **DIFFERENT[name]) for name in ("words", "point"))
    keys.append(result_key(SERIES, words, STATES, MASKS, regions))
    assert len(set(keys)) == len(keys)
    assert result_key(SERIES, points, STATES, MASKS, regions) in keys, "only words mean regions"


@pytest.mark.parametrize("prompts", DIFFERENT.values(), ids=DIFFERENT)
def test_what_an_object_is_called_and_where_its_words_stand_changes_nothing(prompts):
    """Nor do the other objects of the request, whose states and masks move its own."""
    moved = dict(prompts)
    states, masks = STATES, MASKS
    if "seg_row" in prompts:
        moved["seg_row"], states = prompts["seg_row"] + 3, np.concatenate([np.ones((3, 4), np.float32), STATES])
    if "mask" in prompts:
        moved["mask"] = GivenMask(start=prompts["mask"].start + 2, length=prompts["mask"].length)
        masks = np.concatenate([np.zeros(2, np.uint8), MASKS])
    assert result_key(SERIES, ObjectPrompts(object_id=9, **moved), states, masks) == key(**prompts)


def test_what_was_used_least_recently_makes_room():
    """And what is larger than the bound is not kept at all."""
    store = BoundedStore[Result](2 * OVERHEAD + 100)
    names = [(SERIES, name) for name in "abc"]
    store.put(names[0], result(40))
    store.put(names[1], result(40))
    assert store.get(names[0])
    store.put(names[2], result(40))
    assert [store.get(name) is not None for name in names] == [True, False, True]
    store.put(names[0], result(OVERHEAD + 101))
    assert [store.get(name) is not None for name in names] == [False, False, True]
    store.put(names[0], result(OVERHEAD + 90))
    assert [store.get(name) for name in names] == [result(OVERHEAD + 90), None, None]


def test_what_was_not_found_takes_room_too():
    """However many answers have no mask, they are not kept for ever; more slices take more."""
    absent = ObjectMask(object_id=1, found=False, score=0.1, key_slices=(), slice_scores=dict.fromkeys(range(9), 0.1))
    nowhere = Result((), (absent, b""))
    assert nowhere.nbytes == EVENT_BYTES + 9 * SCORE_BYTES
    store = BoundedStore[Result](3 * nowhere.nbytes)
    for name in "abcd":
        store.put((SERIES, name), nowhere)
    assert [store.get((SERIES, name)) is not None for name in "abcd"] == [False, True, True, True]


def test_no_mask_is_looked_for_where_none_was_named():
    """What is kept of a series is read only for a caller who names the mask that it holds."""

    class Unread(BoundedStore[Result]):
        def of(self, series: SeriesKey):
            raise AssertionError

    prompts = ObjectPrompts(object_id=1, points=(POINT,))
    asked = SegmenterRequest(series="a" * 64, window_hu=SERIES.window_hu, shape=(3, 4, 5), objects=(prompts,))
    past = Past(Stores(Unread(100), BoundedStore(100)), SERIES, asked, None, MASKS)
    said, packed = result(10).mask
    assert past.compared(said, packed) is said


def test_a_result_comes_under_the_number_that_is_asked_for():
    """All of its events do; nothing else changes."""
    other = result(10, number=7)
    assert result(10).events(7) == (*other.previews, other.mask)
