"""Masks follow the edges of their slices, and nothing else moves them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from medvl.contracts.checkpoint import EdgeRule
from medvl.imaging.resample import FitTransform
from medvl.network.slice_mask import slice_mask

SIDE, INSIDE, OUTSIDE, NOISE = 128, 130.0, 90.0, 3.0
WHOLE = FitTransform(SIDE, SIDE, SIDE, "pad")
RULE = EdgeRule(within_px=4.0, sigma_px=1.8, noise=3.0)
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]


def disc(row: float, column: float, radius: float) -> NDArray[np.bool_]:
    return np.hypot(ROWS - row, COLUMNS - column) < radius


def drawn(mask: NDArray[np.bool_], inside: float = INSIDE) -> NDArray[np.uint8]:
    """Draw a slice in two grey values, with noise."""
    noise = np.random.default_rng(0).normal(0.0, NOISE, mask.shape)
    return (np.where(mask, inside, OUTSIDE) + noise).clip(0, 255).astype(np.uint8)


def logits_of(mask: NDArray[np.bool_], moved: int = 0) -> NDArray[np.float32]:
    """Return what a network might say of a mask that it sees a few pixels away, on a grid of a quarter."""
    cells = np.roll(mask, moved, 1).reshape(SIDE // 4, 4, SIDE // 4, 4).mean((1, 3))
    return (12.0 * cells - 6.0).astype(np.float32)


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


@pytest.mark.parametrize(("radius", "moved"), [(4, 0), (8, 2), (25, 2)])
def test_an_edge_is_found_where_the_slice_has_it(radius: float, moved: int):
    """Small and large, and where the network is some pixels off."""
    wanted = disc(60.3, 50.8, radius)
    logits, plane = logits_of(wanted, moved), drawn(wanted)
    left_to_sam2 = dice(slice_mask(logits, WHOLE, plane, None), wanted)
    assert dice(slice_mask(logits, WHOLE, plane, RULE), wanted) > max(0.96, left_to_sam2 + 0.01)


def test_a_slice_without_an_edge_leaves_the_mask_to_the_network():
    """Noise alone moves a few pixels on the very edge at most."""
    wanted = disc(60, 50, 12)
    plane = drawn(wanted, inside=OUTSIDE)
    assert (
        dice(slice_mask(logits_of(wanted), WHOLE, plane, RULE), slice_mask(logits_of(wanted), WHOLE, plane, None))
        > 0.97
    )


def test_what_is_far_from_the_edge_stays():
    """A bright spot in the middle of a mask, and one beside it, are what the network says."""
    wanted, inner, beside = disc(60, 50, 20), disc(60, 50, 3), disc(60, 100, 3)
    plane = drawn(wanted)
    plane[inner | beside] = 250
    found = slice_mask(logits_of(wanted), WHOLE, plane, RULE)
    assert found[inner].all()
    assert not found[beside].any()


def test_a_mask_neither_vanishes_nor_appears():
    """What is found of an object is never taken away by its edges, and nothing comes of nothing."""
    plane = drawn(disc(60, 50, 1))
    one_cell = np.full((SIDE // 4, SIDE // 4), -6.0, np.float32)
    one_cell[20, 20] = 3.0
    assert slice_mask(one_cell, WHOLE, plane, RULE).any()
    assert not slice_mask(np.full_like(one_cell, -1.0), WHOLE, plane, RULE).any()
    assert slice_mask(np.ones_like(one_cell), WHOLE, plane, RULE).all()


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_the_mask_has_the_pixels_of_the_source(fit: str):
    """A slice of twice as many columns as rows is followed on SAM2's square, and comes back as it was."""
    transform = FitTransform(100, 200, SIDE, fit)
    rows, columns = np.mgrid[:100, :200]
    wanted = np.hypot(rows - 40, columns - 120) < 20
    plane = transform.to_model(np.where(wanted, INSIDE, OUTSIDE).astype(np.uint8))
    logits = logits_of(transform.mask_to_model(wanted))
    found = slice_mask(logits, transform, plane, RULE)
    assert found.shape == wanted.shape
    assert dice(found, wanted) > 0.97
