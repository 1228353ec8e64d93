"""Simulated users: points, boxes and corrections, as people give them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medvl.imaging.masks import most_interior
from medvl.network.prompts import BOX_FIRST, BOX_SECOND, NEGATIVE, POSITIVE, PromptPoint

_CENTRAL = 0.5
"""Share of clicks that go where the region is thickest; the others go anywhere in it."""
_BOX_NOISE = 0.1
"""Spread of a box's edges as a share of its sides, as in SAM."""
_BOX_NOISE_MAX_PX = 12.0


def click(mask: NDArray[np.bool_], rng: np.random.Generator) -> PromptPoint:
    """Return a positive click on a mask bool [S, S] that is not empty."""
    x, y = _inside(mask, rng)
    return PromptPoint(x, y, POSITIVE)


def correction(wanted: NDArray[np.bool_], found: NDArray[np.bool_], rng: np.random.Generator) -> PromptPoint:
    """Return a click into the larger of what was missed and what was found wrongly; on the mask where all is right."""
    missed, wrong = wanted & ~found, found & ~wanted
    if not (missed.any() or wrong.any()):
        return click(wanted, rng)
    negative = wrong.sum() > missed.sum()
    x, y = _inside(wrong if negative else missed, rng)
    return PromptPoint(x, y, NEGATIVE if negative else POSITIVE)


def box(mask: NDArray[np.bool_], rng: np.random.Generator) -> tuple[PromptPoint, PromptPoint]:
    """Return the corners of a box around a mask, drawn by a hand that trembles."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    corners = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)
    sides = np.tile(corners[2:] - corners[:2], 2)
    corners += np.clip(rng.normal(0.0, _BOX_NOISE, 4) * sides, -_BOX_NOISE_MAX_PX, _BOX_NOISE_MAX_PX)
    corners = corners.clip(0, mask.shape[0])
    return PromptPoint(corners[0], corners[1], BOX_FIRST), PromptPoint(corners[2], corners[3], BOX_SECOND)


def _inside(region: NDArray[np.bool_], rng: np.random.Generator) -> tuple[float, float]:
    """Return x and y of a pixel's centre in a region."""
    if rng.random() < _CENTRAL:
        row, column = most_interior(region)
    else:
        pixels = np.flatnonzero(region)
        row, column = map(int, np.unravel_index(pixels[rng.integers(len(pixels))], region.shape))
    return column + 0.5, row + 0.5
