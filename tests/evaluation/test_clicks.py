"""Clicks go where a careful user puts them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medvl.evaluation.clicks import Click, box_around, correction, first_click, largest_component

MASKS = arrays(np.bool_, (3, 4, 5))


def flooded(mask: np.ndarray) -> list[set[tuple[int, ...]]]:
    """Return the connected parts of a mask, voxel by voxel."""
    left, parts = {tuple(v) for v in np.argwhere(mask).tolist()}, []
    steps = [tuple(step) for axis in np.eye(3, dtype=int) for step in (axis, -axis)]
    while left:
        edge, part = {left.pop()}, set()
        while edge:
            part |= edge
            edge = {tuple(np.add(v, s).tolist()) for v in edge for s in steps} & left
            left -= edge
        parts.append(part)
    return parts


@given(MASKS)
def test_the_largest_component_is_connected_and_largest(mask: np.ndarray):
    """As a flood fill finds it; nothing of nothing."""
    found = {tuple(v) for v in np.argwhere(largest_component(mask)).tolist()}
    parts = flooded(mask)
    assert found in parts if parts else not found
    assert len(found) == max(map(len, parts), default=0)


@given(MASKS, st.data())
def test_a_click_hits(wanted: np.ndarray, data: st.DataObject):
    """The first click lies on the object, a positive correction where it was missed, a negative one beside it."""
    if not wanted.any():
        return
    assert wanted[first_click(wanted).voxel]
    found = data.draw(MASKS)
    further = correction(wanted, found)
    if further is None:
        assert np.array_equal(wanted, found)
    else:
        assert (found & ~wanted if further.negative else wanted & ~found)[further.voxel]


def test_the_first_click_is_in_the_middle_of_the_largest_slice():
    """Not in the middle of the volume."""
    mask = np.zeros((5, 20, 20), bool)
    mask[1, 4:8, 4:8] = mask[3, 5:14, 6:15] = True
    assert first_click(mask) == Click((3, 9, 10))


def test_the_edge_of_the_image_is_an_edge():
    """An object that the field of view cuts is clicked in the middle of what is shown."""
    mask = np.zeros((1, 9, 9), bool)
    mask[0, :5, :5] = True
    assert first_click(mask) == Click((0, 2, 2))


def test_a_correction_goes_into_the_largest_error():
    """Of two errors the one with more voxels in 3D is clicked, though the other is larger on its slice."""
    wanted, found = np.zeros((2, 6, 20, 20), bool)
    wanted[0, 1:6, 1:6] = True
    found[1:6, 10:13, 10:13] = True
    assert correction(wanted, found) == Click((1, 11, 11), negative=True)
    found[1:6] = False
    assert correction(wanted, found) == Click((0, 3, 3))


def test_a_box_is_tight_on_the_slice_that_it_prompts():
    """The service prompts the middle slice of a box: its rectangle ends at the pixels' edges there."""
    mask = np.zeros((9, 20, 20), bool)
    mask[2:7, 5:9, 3:12] = True
    mask[6, 0:19, 0:19] = True
    box = box_around(mask)
    assert (box.low, box.high) == ((2, 4.5, 2.5), (6, 8.5, 11.5))


def test_of_an_even_number_of_slices_the_lower_middle_is_prompted():
    """As the service does."""
    mask = np.zeros((9, 20, 20), bool)
    mask[2:6] = True
    mask[3] = False
    mask[3, 5:9, 3:12] = True
    box = box_around(mask)
    assert (box.low, box.high) == ((2, 4.5, 2.5), (5, 8.5, 11.5))


def test_a_box_around_parts_holds_them_all():
    """Where the middle slice shows nothing of the object, the rectangle is that of the whole."""
    mask = np.zeros((5, 9, 9), bool)
    mask[0, 1:3, 1:3] = mask[4, 5:8, 5:8] = True
    box = box_around(mask)
    assert (box.low, box.high) == ((0, 0.5, 0.5), (4, 7.5, 7.5))
