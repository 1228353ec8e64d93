"""Simulated users click where a person would."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medvl.network.prompts import BOX_FIRST, BOX_SECOND, NEGATIVE, NOT_A_POINT, POSITIVE
from medvl.training.clicks import box, click, corrections

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
    """Negative where too much was found, positive where something was missed, on every object of a batch."""
    torch.manual_seed(seed)
    wanted = disc(20, 20, 10)
    found = np.stack([wanted | disc(50, 50, 8), wanted & (np.arange(SIDE) < 18)])
    points, labels = corrections(torch.from_numpy(np.stack([wanted, wanted])), torch.from_numpy(found))
    assert labels.tolist() == [NEGATIVE, POSITIVE]
    (wrong, missed) = points.long().tolist()
    assert not wanted[wrong[1], wrong[0]]
    assert (wanted & ~found[1])[missed[1], missed[0]]
    assert (points % 1 == 0.5).all()


def test_half_of_the_corrections_go_where_the_error_is_thickest():
    """Away from its edge, and from a tail that is thin."""
    torch.manual_seed(0)
    error = disc(20, 20, 9)
    error[20, 20:60] = True
    many = torch.from_numpy(np.repeat(error[None], 200, 0))
    points, _ = corrections(many, torch.zeros_like(many))
    central = ((points - 20.5).norm(dim=1) < 4).float().mean()
    assert 0.5 <= central < 0.75


def test_where_nothing_is_wrong_a_correction_confirms():
    """And where there is nothing at all, nobody clicks."""
    masks = torch.from_numpy(np.stack([disc(20, 20, 10), np.zeros((SIDE, SIDE), np.bool_)]))
    _, labels = corrections(masks, masks)
    assert labels.tolist() == [POSITIVE, NOT_A_POINT]


def test_a_slice_that_is_rightly_empty_is_told_what_the_object_is_not():
    """Where it is on another slice, as where a mask had leaked; other objects are corrected as they are elsewhere."""
    disc_here, nothing = disc(20, 20, 10), np.zeros((SIDE, SIDE), np.bool_)
    wanted, found = (torch.from_numpy(np.stack(m)) for m in ([nothing, disc_here], [nothing, nothing]))
    points, labels = corrections(wanted, found, torch.from_numpy(np.stack([disc(50, 50, 8)] * 2)))
    assert labels.tolist() == [NEGATIVE, POSITIVE]
    (x, y), (u, v) = points.long().tolist()
    assert disc(50, 50, 8)[y, x]
    assert disc_here[v, u]


@given(st.integers(0, 2**32 - 1))
def test_a_box_is_about_its_object(seed: int):
    """Its corners are in order, and it overlaps most of the object."""
    first, second = box(disc(30, 20, 9), np.random.default_rng(seed))
    assert (first.label, second.label) == (BOX_FIRST, BOX_SECOND)
    assert 0 <= first.x < second.x <= SIDE
    assert 0 <= first.y < second.y <= SIDE
    assert abs((first.x + second.x) / 2 - 20.5) < 9
    assert abs((first.y + second.y) / 2 - 30.5) < 9
