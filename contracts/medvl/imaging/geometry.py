"""Where the voxels of a volume lie, and the permutation and flips that bring a grid to canonical axes.

Positions are DICOM patient coordinates (LPS: +x left, +y posterior, +z superior) in millimetres. The canonical axes of
an array [D, R, C] run closest to superior, posterior and left.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from medvl.contracts.errors import GeometryRefused

Triple = tuple[float, float, float]
_Scalar = TypeVar("_Scalar", bound=np.generic)

CANONICAL_LPS_AXES = (2, 1, 0)
"""LPS component that each canonical axis follows: superior (z), posterior (y), left (x)."""
ORTHONORMAL_TOLERANCE = 1e-3
"""Largest deviation of the axes' dot products from those of unit vectors at right angles: DICOM writes direction
cosines as decimal strings, some with four digits only."""
_TIE = 1e-6


@dataclass(frozen=True)
class AxisMap:
    """A permutation and flips: how an array on a source grid becomes canonical, exactly and reversibly.

    Attributes
    ----------
    permutation
        Source axis that becomes each canonical axis.
    flips
        Whether each canonical axis runs against its source axis.
    """

    permutation: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def apply(self, array: NDArray[_Scalar]) -> NDArray[_Scalar]:
        """Return a view of an array [source axes 0, 1, 2] with canonical axes [D, R, C]."""
        return np.flip(array.transpose(self.permutation), self._flipped)

    def invert(self, array: NDArray[_Scalar]) -> NDArray[_Scalar]:
        """Return a view of a canonical array [D, R, C] with the source's axes; undoes :meth:`apply`."""
        inverse = np.argsort(self.permutation)
        return np.flip(array, self._flipped).transpose(*inverse)

    @property
    def _flipped(self) -> tuple[int, ...]:
        return tuple(axis for axis, flip in enumerate(self.flips) if flip)


@dataclass(frozen=True)
class Geometry:
    """A regular grid at right angles in patient space, without its voxels.

    Attributes
    ----------
    shape
        Slices, rows and columns (D, R, C) of the array.
    spacing_mm
        Distance between voxel centres along the axes d, r, c.
    origin_mm
        LPS position of the centre of voxel [0, 0, 0].
    direction
        Unit LPS vectors of the axes d, r and c, one after another. Any 9 numbers or 3 x 3 array is accepted.

    Raises
    ------
    GeometryRefused
        When an axis is empty, a spacing is not positive, a value is not finite, or the axes are not unit vectors at
        right angles.
    """

    shape: tuple[int, int, int]
    spacing_mm: Triple
    origin_mm: Triple
    direction: tuple[Triple, Triple, Triple]

    def __post_init__(self) -> None:
        axes = np.asarray(self.direction, np.float64).reshape(3, 3)
        d, r, c = self.shape
        object.__setattr__(self, "shape", (int(d), int(r), int(c)))
        object.__setattr__(self, "spacing_mm", _triple(self.spacing_mm))
        object.__setattr__(self, "origin_mm", _triple(self.origin_mm))
        object.__setattr__(self, "direction", tuple(_triple(axis) for axis in axes))
        self._check(axes)

    def _check(self, axes: NDArray[np.float64]) -> None:
        if min(self.shape) < 1:
            raise GeometryRefused(f"A volume has voxels on each of its axes, not the shape {list(self.shape)}.")
        if not all(map(math.isfinite, (*self.spacing_mm, *self.origin_mm, *axes.flat))) or min(self.spacing_mm) <= 0:
            raise GeometryRefused("Spacing, origin and axes of a volume must be finite, and the spacing positive.")
        if not np.allclose(axes @ axes.T, np.eye(3), rtol=0.0, atol=ORTHONORMAL_TOLERANCE):
            raise GeometryRefused("The axes of the volume are not unit vectors at right angles.")

    @cached_property
    def affine(self) -> NDArray[np.float64]:
        """4 x 4 matrix from array index (d, r, c, 1) to LPS millimetres (x, y, z, 1); read-only."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.array(self.direction).T * self.spacing_mm
        matrix[:3, 3] = self.origin_mm
        matrix.flags.writeable = False
        return matrix

    def index_to_lps(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """Return LPS millimetres [..., 3] of array indices [..., 3] (d, r, c); whole numbers are voxel centres."""
        return np.asarray(points, np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def lps_to_index(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """Return array indices [..., 3] (d, r, c) of LPS millimetres [..., 3]; undoes :meth:`index_to_lps`."""
        offsets = np.asarray(points, np.float64) - self.affine[:3, 3]
        return offsets @ np.linalg.inv(self.affine[:3, :3]).T

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel in mm3."""
        return math.prod(self.spacing_mm)

    @property
    def extent_mm(self) -> Triple:
        """Lengths of the volume along d, r, c in mm, from edge to edge."""
        d, r, c = (n * spacing for n, spacing in zip(self.shape, self.spacing_mm, strict=True))
        return d, r, c

    @property
    def is_canonical(self) -> bool:
        """Whether the axes run closest to superior, posterior and left already."""
        axis_map = self._axis_map()
        return axis_map.permutation == (0, 1, 2) and not any(axis_map.flips)

    def canonical(self) -> tuple[Geometry, AxisMap]:
        """Return this grid with canonical axes, and the map that takes arrays there.

        Every voxel keeps its place in the patient: only the order of the indices changes.
        """
        axis_map = self._axis_map()
        corner = np.zeros(3)
        direction = []
        for source_axis, flip in zip(axis_map.permutation, axis_map.flips, strict=True):
            axis = np.array(self.direction[source_axis])
            corner[source_axis] = self.shape[source_axis] - 1 if flip else 0
            direction.append(_triple(-axis if flip else axis))
        first, second, third = axis_map.permutation
        geometry = Geometry(
            shape=(self.shape[first], self.shape[second], self.shape[third]),
            spacing_mm=(self.spacing_mm[first], self.spacing_mm[second], self.spacing_mm[third]),
            origin_mm=_triple(self.index_to_lps(corner)),
            direction=(direction[0], direction[1], direction[2]),
        )
        return geometry, axis_map

    def to_json_bytes(self) -> bytes:
        """Return the one serialisation that digests cover: compact JSON, sorted keys, shortest exact decimals."""
        fields = {
            "direction": [x for axis in self.direction for x in axis],
            "origin_mm": self.origin_mm,
            "shape": self.shape,
            "spacing_mm": self.spacing_mm,
        }
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    def _axis_map(self) -> AxisMap:
        """Choose the permutation that lies closest to the canonical axes; of equals the first, identity before all."""
        along = np.array(self.direction)[:, CANONICAL_LPS_AXES]
        orders = [(a, b, c) for a, b, c in permutations((0, 1, 2))]
        closeness = [abs(along[a, 0]) + abs(along[b, 1]) + abs(along[c, 2]) for a, b, c in orders]
        best = next(o for o, close in zip(orders, closeness, strict=True) if close >= max(closeness) - _TIE)
        d, r, c = (bool(along[source, canonical] < 0) for canonical, source in enumerate(best))
        return AxisMap(permutation=best, flips=(d, r, c))


def _triple(values: Iterable[float]) -> Triple:
    """Return three plain floats, without negative zeros, which would make two digests of one grid."""
    x, y, z = (float(v) + 0.0 for v in values)
    return x, y, z
