"""Overlap and surface distance are those of their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medvl.evaluation.metrics import bounding_box, dice, hd95_mm

MASKS = arrays(np.bool_, (4, 5, 6))
SPACINGS = st.tuples(*[st.floats(0.5, 5.0)] * 3)


def surface(mask: np.ndarray) -> np.ndarray:
    """Return the voxels with a face on the outside, one by one."""
    padded = np.pad(mask, 1)
    steps = [step for axis in np.eye(3, dtype=int) for step in (axis, -axis)]
    return np.array([v for v in np.argwhere(mask) if not all(padded[tuple(v + 1 + step)] for step in steps)])


def slow_hd95_mm(first: np.ndarray, second: np.ndarray, spacing_mm: tuple[float, ...]) -> float:
    a, b = (surface(mask) * np.array(spacing_mm) for mask in (first, second))
    apart = np.linalg.norm(a[:, None] - b[None], axis=2)
    return max(np.percentile(apart.min(1), 95), np.percentile(apart.min(0), 95))


@given(MASKS, MASKS, SPACINGS)
def test_surface_distance_equals_brute_force(first: np.ndarray, second: np.ndarray, spacing_mm):
    """For any masks and any spacing along the three axes; none where a mask is empty."""
    found = hd95_mm(first, second, spacing_mm)
    if first.any() and second.any():
        assert found == pytest.approx(slow_hd95_mm(first, second, spacing_mm), rel=1e-5, abs=1e-5)
    else:
        assert found is None


@given(MASKS, SPACINGS)
def test_a_mask_lies_on_itself(mask: np.ndarray, spacing_mm):
    """Dice 1 and distance 0; two empty masks agree as well."""
    assert dice(mask, mask) == 1.0
    assert hd95_mm(mask, mask, spacing_mm) == (0.0 if mask.any() else None)


@pytest.mark.parametrize("axis", range(3))
def test_distance_is_physical(axis: int):
    """Two voxels that are 3 apart along an axis are 3 of its spacings apart."""
    spacing_mm = (5.0, 0.7, 1.3)
    first, second = np.zeros((2, 8, 8, 8), bool)
    at = [2, 2, 2]
    first[tuple(at)] = True
    at[axis] += 3
    second[tuple(at)] = True
    assert hd95_mm(first, second, spacing_mm) == pytest.approx(3 * spacing_mm[axis], rel=1e-6)


def test_dice_by_hand():
    """Half of each mask in common is a half; nothing in common, or a mask beside none, is 0."""
    first, second = np.zeros((2, 1, 2, 4), bool)
    first[0, 0, :2] = second[0, 0, 1:3] = True
    assert dice(first, second) == 0.5
    assert dice(first, np.zeros_like(first)) == 0.0
    assert dice(first, np.roll(first, 1, axis=1)) == 0.0


@given(MASKS)
def test_a_bounding_box_holds_all_and_no_more(mask: np.ndarray):
    """Every voxel lies within, and each face of the box touches one."""
    if not mask.any():
        return
    box = bounding_box(mask)
    assert mask[box].sum() == mask.sum()
    assert all(mask[box].take(end, axis).any() for axis in range(3) for end in (0, -1))
