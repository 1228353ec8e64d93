"""Simulated users: points, boxes and corrections, as people give them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from medvl.imaging.masks import most_interior
from medvl.network.prompts import BOX_FIRST, BOX_SECOND, NEGATIVE, NOT_A_POINT, POSITIVE, PromptPoint

_CENTRAL = 0.5
"""Share of clicks that go where the region is thickest; the others go anywhere in it."""
_BOX_NOISE = 0.1
"""Spread of a box's edges as a share of its sides, as in SAM."""
_BOX_NOISE_MAX_PX = 12.0
_ERODED = (1, 1, 2, 4, 8)
"""Pixels that are taken off a region, one after another, for as long as anything of it is left."""


def click(mask: NDArray[np.bool_], rng: np.random.Generator) -> PromptPoint:
    """Return a positive click on a mask bool [S, S] that is not empty."""
    if rng.random() < _CENTRAL:
        row, column = most_interior(mask)
    else:
        pixels = np.flatnonzero(mask)
        row, column = map(int, np.unravel_index(pixels[rng.integers(len(pixels))], mask.shape))
    return PromptPoint(column + 0.5, row + 0.5, POSITIVE)


def box(mask: NDArray[np.bool_], rng: np.random.Generator) -> tuple[PromptPoint, PromptPoint]:
    """Return the corners of a box around a mask, drawn by a hand that trembles."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    corners = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)
    sides = np.tile(corners[2:] - corners[:2], 2)
    corners += np.clip(rng.normal(0.0, _BOX_NOISE, 4) * sides, -_BOX_NOISE_MAX_PX, _BOX_NOISE_MAX_PX)
    corners = corners.clip(0, mask.shape[0])
    return PromptPoint(corners[0], corners[1], BOX_FIRST), PromptPoint(corners[2], corners[3], BOX_SECOND)


@torch.no_grad()
def corrections(wanted: Tensor, found: Tensor, elsewhere: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Click into the larger of what was missed and what was found wrongly; on the mask where all is right.

    Parameters
    ----------
    wanted, found
        BOOL [N, S, S], true and predicted masks.
    elsewhere
        BOOL [N, S, S], where objects are on another slice: a mask that is rightly empty is told there what it is not.

    Returns
    -------
    tuple[Tensor, Tensor]
        FP32 [N, 2] and INT32 [N], x and y with pixel centres at +0.5, and SAM2's label; the empty token where there is
        nothing to click on.
    """
    missed, wrong = wanted & ~found, found & ~wanted
    negative = wrong.sum((1, 2)) > missed.sum((1, 2))
    region = torch.where(negative[:, None, None], wrong, missed)
    region = torch.where(region.any(2).any(1)[:, None, None], region, wanted)
    if elsewhere is not None:
        nothing = ~region.any(2).any(1)
        region, negative = torch.where(nothing[:, None, None], elsewhere, region), negative | nothing
    central = torch.rand(len(region), 1, 1) < _CENTRAL
    where = torch.where(central, _inmost(region), region).flatten(1)
    at = (torch.rand(where.shape) * where).argmax(1)
    side = wanted.shape[-1]
    points = torch.stack([at % side, at // side], 1) + 0.5
    labels = torch.where(negative, NEGATIVE, POSITIVE)
    return points, torch.where(where.any(1), labels, NOT_A_POINT).int()


def _inmost(region: Tensor) -> Tensor:
    """Return what is left of regions BOOL [N, S, S] before they vanish, eroded from the edge of the image, too."""
    for pixels in _ERODED:
        outside = pad((~region).float()[:, None], (pixels,) * 4, value=1.0)
        width = 2 * pixels + 1
        eroded = max_pool2d(max_pool2d(outside, (1, width), 1), (width, 1), 1)[:, 0] == 0
        region = torch.where(eroded.any(2).any(1)[:, None, None], eroded, region)
    return region
