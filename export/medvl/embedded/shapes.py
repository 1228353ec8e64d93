"""Shapes of the phantom: what is inside, and a box around it.

Shapes live in the body frame of :mod:`medvl.embedded.frame`: millimetres, x to the left, y to posterior, z to
superior. They know nothing of voxels: the same shape is painted on any grid and asked at single points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
"""Coordinates; float32 on grids."""
Bools = NDArray[np.bool_]
Vector = tuple[float, float, float]
Inside = Callable[[Floats, Floats, Floats], Bools]

IDENTITY = np.eye(3)
_SLACK = 1e-3
"""More than the sum of a few float32 can be wrong by."""
_SURFACE_POINTS, _BISECTIONS = 160, 16
_GOLDEN_ANGLE = np.pi * (3.0 - np.sqrt(5.0))


@dataclass(frozen=True, eq=False)
class Shape:
    """A region of the body frame.

    Attributes
    ----------
    low, high
        Corners of a box that holds it, millimetres.
    inside
        From coordinates x, y, z (float32 of one shape) to bool of that shape, an array of its own.
    """

    low: Vector
    high: Vector
    inside: Inside

    @property
    def centre(self) -> Vector:
        """Middle of the box."""
        x, y, z = ((a + b) / 2 for a, b in zip(self.low, self.high, strict=True))
        return x, y, z

    def at(self, points: NDArray[np.float64]) -> Bools:
        """Tell which of points [N, 3] are inside, bool [N]."""
        x, y, z = np.ascontiguousarray(points.T, dtype=np.float32)
        return self.inside(x, y, z)

    def clipped(self, keep: Inside) -> Shape:
        """Return the part of it where ``keep`` holds too; the box stays."""
        return Shape(self.low, self.high, lambda x, y, z: narrowed(self.inside(x, y, z), keep, x, y, z))


def narrowed(within: Bools, keep: Inside, x: Floats, y: Floats, z: Floats) -> Bools:
    """Leave in ``within`` where ``keep`` holds too, which is asked at the positions that are still in; return it."""
    within[within] = keep(x[within], y[within], z[within])
    return within


def blob(
    centre: Vector,
    radii: Vector,
    rotation: NDArray[np.float64] = IDENTITY,
    *,
    boxy: bool = False,
    taper: float = 0.0,
    bend: float = 0.0,
    lumps: Sequence[tuple[Vector, float]] = (),
) -> Shape:
    """Return a deformed ellipsoid.

    Parameters
    ----------
    rotation
        Rows are the axes of the three radii.
    boxy
        Fourth powers instead of squares: a superquadric.
    taper
        Share by which the first two radii grow towards the end of the third axis, and shrink towards its beginning.
    bend
        Share of the first radius by which the ends of the third axis are moved along the first.
    lumps
        Waves on the surface: wave vector per millimetre (of the body frame, from the centre) and depth.
    """
    axes = [(float(a), float(b), float(c)) for a, b, c in np.asarray(rotation)]
    cx, cy, cz = centre
    depth = sum(abs(d) for _, d in lumps)

    def inside(x: Floats, y: Floats, z: Floats) -> Bools:
        x, y, z = x - cx, y - cy, z - cz
        u, v, w = (_dot(x, y, z, axis) for axis in axes)
        for along, r in zip((u, v, w), radii, strict=True):
            np.multiply(along, 1.0 / r, out=along)
        if bend:
            u -= bend * w * w
        if taper:
            width = 1.0 / (1.0 + taper * np.clip(w, -1.0, 1.0))
            u *= width
            v *= width
        for along in (u, v, w):
            np.square(along, out=along)
            if boxy:
                np.square(along, out=along)
        u += v
        u += w
        within: Bools = u < 1.0
        if lumps:
            # Elsewhere all waves together are too shallow to reach the surface.
            near = np.abs(u - 1.0) < depth + _SLACK
            within[near] = wavy(u[near], x[near], y[near], z[near])
        return within

    def wavy(total: Floats, x: Floats, y: Floats, z: Floats) -> Bools:
        for wave, d in lumps:
            total += d * np.sin(_dot(x, y, z, wave))
        within: Bools = total < 1.0
        return within

    grown = np.array(radii) * np.array([1 + abs(taper) + abs(bend), 1 + abs(taper), 1.0]) * np.sqrt(1 + depth)
    turned = np.asarray(rotation).T * grown
    half = np.abs(turned).sum(axis=1) if boxy or taper or bend else np.sqrt((turned**2).sum(axis=1))
    return boxed(np.array(centre) - half, np.array(centre) + half, inside)


def capsule(begin: Vector, end: Vector, begin_radius: float, end_radius: float) -> Shape:
    """Return a round bar between two points whose radius changes from one end to the other."""
    ax, ay, az = begin
    dx, dy, dz = (float(b - a) for a, b in zip(begin, end, strict=True))
    scale = 1.0 / max(dx * dx + dy * dy + dz * dz, 1e-6)
    growth = end_radius - begin_radius

    def inside(x: Floats, y: Floats, z: Floats) -> Bools:
        x, y, z = x - ax, y - ay, z - az
        along = _dot(x, y, z, (dx, dy, dz))
        along *= scale
        np.clip(along, 0.0, 1.0, out=along)
        x -= along * dx
        y -= along * dy
        z -= along * dz
        radius = along
        radius *= growth
        radius += begin_radius
        within: Bools = _dot(x, y, z, (x, y, z)) < np.square(radius, out=radius)
        return within

    ends, radii = np.array([begin, end]), np.array([[begin_radius], [end_radius]])
    return boxed((ends - radii).min(axis=0), (ends + radii).max(axis=0), inside)


def _dot(x: Floats, y: Floats, z: Floats, by: tuple[float | Floats, float | Floats, float | Floats]) -> Floats:
    total: Floats = x * by[0]
    total += y * by[1]
    total += z * by[2]
    return total


def tube(points: Sequence[Vector], radii: Sequence[float]) -> tuple[Shape, ...]:
    """Return the bars along a line of points with a radius at each."""
    ends = zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True)
    return tuple(capsule(a, b, ra, rb) for a, b, ra, rb in ends)


def union(*shapes: Shape) -> Shape:
    """Return what is inside any of the shapes."""

    def inside(x: Floats, y: Floats, z: Floats) -> Bools:
        within = shapes[0].inside(x, y, z)
        for shape in shapes[1:]:
            within |= shape.inside(x, y, z)
        return within

    return boxed(np.min([s.low for s in shapes], axis=0), np.max([s.high for s in shapes], axis=0), inside)


def boxed(low: NDArray[np.float64], high: NDArray[np.float64], inside: Inside) -> Shape:
    """Return a shape whose corners come as arrays."""
    a, b, c = (float(v) for v in low)
    d, e, f = (float(v) for v in high)
    return Shape((a, b, c), (d, e, f), inside)


def turned(x_deg: float = 0.0, y_deg: float = 0.0, z_deg: float = 0.0) -> NDArray[np.float64]:
    """Return the axes of a frame turned about x, then y, then z; rows are its axes."""
    rotation = IDENTITY
    for axis, angle in enumerate(np.deg2rad([x_deg, y_deg, z_deg])):
        j, k = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[j, j] = step[k, k] = np.cos(angle)
        step[j, k], step[k, j] = -np.sin(angle), np.sin(angle)
        rotation = step @ rotation
    return np.asarray(rotation.T)


def directions(count: int) -> NDArray[np.float64]:
    """Return unit vectors spread evenly over the sphere, [count, 3] (Fibonacci's spiral)."""
    height = 1.0 - (2.0 * np.arange(count) + 1.0) / count
    angle, ring = _GOLDEN_ANGLE * np.arange(count), np.sqrt(1.0 - height**2)
    return np.stack([ring * np.cos(angle), ring * np.sin(angle), height], axis=1)


def surface(shape: Shape, centre: Vector) -> NDArray[np.float64]:
    """Return points [N, 3] on the surface of a shape that is seen whole from ``centre``, found by bisection."""
    rays = directions(_SURFACE_POINTS)
    near, far = (
        np.zeros((len(rays), 1)),
        np.full((len(rays), 1), float(np.linalg.norm(np.subtract(shape.high, shape.low)))),
    )
    for _ in range(_BISECTIONS):
        middle = (near + far) / 2
        within = shape.at(np.array(centre) + middle * rays)[:, None]
        near, far = np.where(within, middle, near), np.where(within, far, middle)
    return np.asarray(np.array(centre) + near * rays)


def longest_diameter(points: NDArray[np.float64]) -> float:
    """Return the largest distance between two of the points [N, 3]."""
    return float(np.linalg.norm(points[:, None] - points[None], axis=2).max())


def samples(shape: Shape, per_axis: int = 9) -> tuple[NDArray[np.float64], float]:
    """Return the points [N, 3] of a regular lattice in the box that are inside, and the volume of a cell in mm3."""
    low, size = np.array(shape.low), np.subtract(shape.high, shape.low)
    steps = (np.arange(per_axis) + 0.5) / per_axis
    lattice = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    points = low + lattice * size
    return points[shape.at(points)], float(np.prod(size / per_axis))
