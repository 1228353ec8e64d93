"""Simulated users click where a person would."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvl.network.prompts import BOX_FIRST, BOX_SECOND, NEGATIVE, POSITIVE
from medvl.training.clicks import box, click, correction

SIDE = 64


def disc(row: float, column: float, radius: float) -> np.ndarray:
    rows, columns = np.ogrid[:SIDE, :SIDE]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


@given(st.integers(0, 2**32 - 1), st.integers(4, 59), st.integers(4, 59), st.integers(0, 4))
def test_a_click_lies_on_its_object(seed: int, row: int, column: int, radius: int):
    """Even on an object of one pixel; coordinates are pixel centres."""
    mask = disc(row, column, radius)
    point = click(mask, np.random.default_rng(seed))
    assert point.label == POSITIVE
    assert mask[int(point.y), int(point.x)]
    assert point.x % 1 == point.y % 1 == 0.5


@pytest.mark.parametrize("seed", range(10))
def test_a_correction_goes_to_the_larger_error(seed: int):
    """Negative where too much was found, positive where something was missed."""
    wanted, rng = disc(20, 20, 10), np.random.default_rng(seed)
    too_much, too_little = wanted | disc(50, 50, 8), wanted & (np.arange(SIDE) < 18)
    negative, positive = correction(wanted, too_much, rng), correction(wanted, too_little, rng)
    assert negative.label == NEGATIVE
    assert not wanted[int(negative.y), int(negative.x)]
    assert positive.label == POSITIVE
    assert (wanted & ~too_little)[int(positive.y), int(positive.x)]


def test_where_nothing_is_wrong_a_correction_confirms():
    wanted = disc(20, 20, 10)
    assert correction(wanted, wanted, np.random.default_rng(0)).label == POSITIVE


@given(st.integers(0, 2**32 - 1))
def test_a_box_is_about_its_object(seed: int):
    """Its corners are in order, and it overlaps most of the object."""
    first, second = box(disc(30, 20, 9), np.random.default_rng(seed))
    assert (first.label, second.label) == (BOX_FIRST, BOX_SECOND)
    assert 0 <= first.x < second.x <= SIDE
    assert 0 <= first.y < second.y <= SIDE
    assert abs((first.x + second.x) / 2 - 20.5) < 9
    assert abs((first.y + second.y) / 2 - 30.5) < 9
