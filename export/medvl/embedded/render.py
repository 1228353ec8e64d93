"""Parts painted on a grid: one code per part, slab by slab, each shape within its own box only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medvl.embedded.frame import BodyFrame
from medvl.embedded.parts import Part
from medvl.embedded.shapes import Inside, Shape, samples
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
    _, rows, columns = frame.boxes(parts[0].pieces, geometry)[0]
    strokes = list(_strokes(parts, frame, geometry, (rows, columns)))
    for start in range(0, geometry.shape[0], _SLAB):
        slab = slice(start, min(start + _SLAB, geometry.shape[0]))
        grid, view = frame.grid(geometry, (slab, rows, columns)), codes[slab, rows, columns]
        for stroke in strokes:
            depth = _shared(stroke.box[0], slab)
            if depth.start < depth.stop:
                box = (depth, *stroke.box[1:])
                target = view[box]
                x, y, z = (axis[box] for axis in grid)
                within = stroke.inside(x, y, z)
                if stroke.over is not None:
                    within[within] = stroke.over[target[within]]
                # Codes grow in painting order: the larger one is the later one.
                np.maximum(target, within * stroke.code, out=target)
    return codes


@dataclass(frozen=True, eq=False)
class _Stroke:
    """A piece of a part as it is painted.

    Attributes
    ----------
    over
        Which codes it may replace, bool [256]; None for all.
    box
        Slices of the grid; rows and columns counted from the corner of the body's box.
    """

    code: np.uint8
    inside: Inside
    over: NDArray[np.bool_] | None
    box: Box


def _strokes(
    parts: Sequence[Part], frame: BodyFrame, geometry: Geometry, body: tuple[slice, slice]
) -> Iterator[_Stroke]:
    """Yield in painting order the pieces that reach into the body's rows and columns."""
    for code, part in enumerate(parts, 1):
        over = _allowed(parts, part)
        for piece, (depth, *plane) in zip(part.pieces, frame.boxes(part.pieces, geometry), strict=True):
            rows, columns = (_shared(own, outer) for own, outer in zip(plane, body, strict=True))
            if rows.start < rows.stop and columns.start < columns.stop:
                yield _Stroke(np.uint8(code), piece.inside, over, (depth, rows, columns))


def _shared(own: slice, outer: slice) -> slice:
    """Return what a range shares with another, counted from the start of that; it ends early when there is nothing."""
    return slice(max(own.start, outer.start) - outer.start, min(own.stop, outer.stop) - outer.start)


def _allowed(parts: Sequence[Part], part: Part) -> NDArray[np.bool_] | None:
    """Return which codes a part may replace, bool [256]; None for all."""
    if part.over is None:
        return None
    table = np.zeros(256, bool)
    for code, other in enumerate(parts, 1):
        table[code] = other.organ in part.over
    return table


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
    depth = _depth_mm(frame.unwarped(points), geometry)
    # The warp is costly to undo; it matters near the edges only.
    near = np.abs(depth) <= frame.reach_mm
    depth[near] = _depth_mm(frame.to_lps(points[near]), geometry)
    return np.asarray(depth > 0)


def _depth_mm(lps_mm: NDArray[np.float64], geometry: Geometry) -> NDArray[np.float64]:
    """Return how deep within the field of view LPS positions [N, 3] lie; negative outside of it."""
    index = geometry.lps_to_index(lps_mm)
    depths = np.minimum(index + 0.5, np.array(geometry.shape) - 0.5 - index) * geometry.spacing_mm
    return np.asarray(depths.min(axis=1))
