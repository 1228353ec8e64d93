"""Parts painted on a grid: one code per part, slab by slab, each shape within its own box only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from medvl.embedded.frame import BodyFrame
from medvl.embedded.parts import Part
from medvl.embedded.shapes import Shape, samples
from medvl.imaging.geometry import Geometry

Codes = NDArray[np.uint8]
Box = tuple[slice, slice, slice]
_SLAB = 4
"""Slices at a time: their coordinates stay in the processor's cache."""


def paint(parts: Sequence[Part], frame: BodyFrame, geometry: Geometry) -> Codes:
    """Return the code of the part at each voxel: 1 for the first part, 0 for none.

    Parameters
    ----------
    parts
        At most 255, in painting order. The first holds all others.
    geometry
        A canonical grid along the LPS axes.

    Returns
    -------
    uint8 [D, R, C].
    """
    codes = np.zeros(geometry.shape, np.uint8)
    allowed = [_allowed(parts, part) for part in parts]
    boxes = [[frame.box(piece, geometry) for piece in part.pieces] for part in parts]
    _, rows, columns = boxes[0][0]
    for start in range(0, geometry.shape[0], _SLAB):
        slab = slice(start, min(start + _SLAB, geometry.shape[0]))
        grid = frame.grid(geometry, (slab, rows, columns))
        view = codes[slab, rows, columns]
        for code, (part, over, of_part) in enumerate(zip(parts, allowed, boxes, strict=True), 1):
            for piece, box in _meeting(part.pieces, of_part, (slab, rows, columns)):
                target = view[box]
                x, y, z = (axis[box] for axis in grid)
                within = piece.inside(x, y, z)
                if over is not None:
                    within &= over[target]
                np.copyto(target, np.uint8(code), where=within)
    return codes


def _allowed(parts: Sequence[Part], part: Part) -> NDArray[np.bool_] | None:
    """Return which codes a part may replace, bool [256]; None for all."""
    if part.over is None:
        return None
    table = np.zeros(256, bool)
    for code, other in enumerate(parts, 1):
        table[code] = other.organ in part.over
    return table


def _meeting(pieces: Sequence[Shape], boxes: Sequence[Box], frame: Box) -> Iterator[tuple[Shape, Box]]:
    """Yield the pieces that reach into a box of the grid, with their own box counted from its corner."""
    for piece, box in zip(pieces, boxes, strict=True):
        cut = [
            slice(max(own.start, outer.start) - outer.start, min(own.stop, outer.stop) - outer.start)
            for own, outer in zip(box, frame, strict=True)
        ]
        if all(s.start < s.stop for s in cut):
            yield piece, (cut[0], cut[1], cut[2])


def visible_share(pieces: Sequence[Shape], frame: BodyFrame, geometry: Geometry, per_axis: int = 9) -> float:
    """Return the share of a region's volume that lies within the field of view, from lattices of points."""
    whole = seen = 0.0
    for piece in pieces:
        points, volume = samples(piece, per_axis)
        whole += len(points) * volume
        seen += volume * int(in_view(points, frame, geometry).sum())
    return seen / whole if whole else 0.0


def in_view(points: NDArray[np.float64], frame: BodyFrame, geometry: Geometry) -> NDArray[np.bool_]:
    """Tell which body positions [N, 3] lie within the field of view, bool [N]."""
    if not len(points):
        return np.zeros(0, bool)
    index = geometry.lps_to_index(frame.to_lps(points))
    return np.asarray(((index > -0.5) & (index < np.array(geometry.shape) - 0.5)).all(axis=1))
