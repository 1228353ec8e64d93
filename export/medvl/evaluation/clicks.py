"""A simulated user who always clicks at the same place: points, boxes and corrections in voxels of the canonical grid.

A click goes to the most interior voxel of the largest slice of what is wanted. A correction goes to the most interior
voxel of the largest slice of the largest connected error in 3D: it is positive where the object was missed and negative
where something else was marked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medvl.evaluation.metrics import bounding_box
from medvl.imaging.cleanup import largest_component
from medvl.imaging.masks import most_interior

Voxel = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Click:
    """A point on the object, or, when ``negative``, beside it; slice, row and column."""

    voxel: Voxel
    negative: bool = False


@dataclass(frozen=True, slots=True)
class VoxelBox:
    """A box between two corners (slice, row, column): whole slices, edges of pixels at halves."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]


def first_click(mask: NDArray[np.bool_]) -> Click:
    """Return the click on a mask bool [D, R, C] that is not empty."""
    return Click(_interior(mask))


def correction(wanted: NDArray[np.bool_], found: NDArray[np.bool_]) -> Click | None:
    """Return the click that corrects a mask, None where there is nothing to correct."""
    missed, wrong = (largest_component(error) for error in (wanted & ~found, found & ~wanted))
    if not (missed.any() or wrong.any()):
        return None
    negative = bool(np.count_nonzero(wrong) > np.count_nonzero(missed))
    return Click(_interior(wrong if negative else missed), negative)


def box_around(mask: NDArray[np.bool_]) -> VoxelBox:
    """Return the box that a careful user draws around a mask bool [D, R, C] that is not empty.

    A box of the service spans slices and prompts the middle one. So its slices are the object's, and its rectangle is
    tight on the middle slice; where the object leaves that slice out, it is that of the whole object.
    """
    slices, rows, columns = bounding_box(mask)
    middle = (slices.start + slices.stop - 1) // 2
    if mask[middle].any():
        _, rows, columns = bounding_box(mask[middle : middle + 1])
    return VoxelBox(
        (slices.start, rows.start - 0.5, columns.start - 0.5), (slices.stop - 1, rows.stop - 0.5, columns.stop - 0.5)
    )


def _interior(mask: NDArray[np.bool_]) -> Voxel:
    number = int(mask.sum((1, 2)).argmax())
    return number, *most_interior(mask[number])
