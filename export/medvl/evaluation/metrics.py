"""How well a mask agrees with another: overlap, and distance of their surfaces in millimetres."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from medvl.imaging.geometry import Triple

_EXACT_TREE = {"algorithm": 4, "leaf_max_size": 16}
"""FLANN's single k-d tree, the one of its indices that is exact."""
_ALL_CHECKS = {"checks": -1}


def dice(found: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> float:
    """Return the Dice coefficient of two masks of one shape; 1 when both are empty."""
    sizes = int(np.count_nonzero(found)) + int(np.count_nonzero(wanted))
    return 2.0 * int(np.count_nonzero(found & wanted)) / sizes if sizes else 1.0


def hd95_mm(found: NDArray[np.bool_], wanted: NDArray[np.bool_], spacing_mm: Triple) -> float | None:
    """Return the 95 % Hausdorff distance: the larger of the 95th percentiles of both directed surface distances.

    That is the definition of MONAI and of Metrics Reloaded (Maier-Hein et al. 2024). Distances run between the centres
    of surface voxels.

    Parameters
    ----------
    found, wanted
        bool [D, R, C].
    spacing_mm
        Along d, r, c.

    Returns
    -------
    float | None
        Millimetres; None when a mask is empty, for which no distance is defined.
    """
    if not (found.any() and wanted.any()):
        return None
    first, second = (_surface_mm(mask, spacing_mm) for mask in (found, wanted))
    return max(float(np.percentile(_nearest_mm(a, b), 95)) for a, b in ((first, second), (second, first)))


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    """Return the smallest box of a mask [D, R, C] that is not empty."""
    d, r, c = (np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3))
    return slice(int(d[0]), int(d[-1]) + 1), slice(int(r[0]), int(r[-1]) + 1), slice(int(c[0]), int(c[-1]) + 1)


def _surface_mm(mask: NDArray[np.bool_], spacing_mm: Triple) -> NDArray[np.float32]:
    """Return the places [n, 3] of the voxels that touch the outside with a face; the edge of the grid is outside."""
    box = bounding_box(mask)
    cropped = np.pad(mask[box], 1)
    inside = cropped[1:-1, 1:-1, 1:-1].copy()
    for axis in range(3):
        for shift in (1, -1):
            inside &= np.roll(cropped, shift, axis)[1:-1, 1:-1, 1:-1]
    at = np.argwhere(mask[box] & ~inside) + [s.start for s in box]
    return np.asarray(at * np.array(spacing_mm), np.float32)


def _nearest_mm(points: NDArray[np.float32], surface: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the distance of each of points [n, 3] to the nearest of a surface [m, 3]."""
    tree = cv2.flann.Index(surface, _EXACT_TREE)
    _, squares = tree.knnSearch(points, 1, params=_ALL_CHECKS)
    return np.sqrt(np.asarray(squares[:, 0], np.float64))
