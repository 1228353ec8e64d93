"""The trunk as nested tubes: skin, muscular wall, cavity; and the diaphragm that divides the cavity.

Cross-sections are superellipses whose half-axes are tables along z; all other anatomy is clipped by them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medvl.embedded.shapes import Bools, Floats, Shape, narrowed

Z_LOW, Z_HIGH = -80.0, 680.0
"""Ends of the tables; the trunk goes on unchanged beyond them."""
SHOULDERS_Z = 540.0
"""From here up fields of view cut the shoulders."""
_ROUND, _BOXY = 0.65, 0.35
"""Weights of the squares and fourth powers that make the superellipse."""
_MARKS = (0.0, 60.0, 120.0, 200.0, 300.0, 400.0, 500.0, 545.0, 575.0, 590.0, 602.0, 640.0)
_WALL_WIDTH = (148.0, 152.0, 146.0, 128.0, 132.0, 142.0, 150.0, 156.0, 156.0, 150.0, 140.0, 90.0)
_WALL_DEPTH = (88.0, 92.0, 90.0, 82.0, 92.0, 100.0, 98.0, 88.0, 78.0, 70.0, 66.0, 56.0)
_WALL_MIDDLE = (8.0, 8.0, 8.0, 4.0, 0.0, 0.0, 4.0, 8.0, 10.0, 12.0, 12.0, 12.0)
_FAT = (1.25, 1.3, 1.2, 1.05, 0.95, 0.65, 0.5, 0.45, 0.45, 0.45, 0.45, 0.45)
_CAVITY_WIDTH = (80.0, 92.0, 108.0, 112.0, 117.0, 126.0, 124.0, 108.0, 82.0, 56.0, 22.0, 20.0)
_CAVITY_FRONT = (60.0, 66.0, 72.0, 70.0, 80.0, 86.0, 78.0, 62.0, 42.0, 22.0, 4.0, 4.0)
_CAVITY_BACK = (50.0, 56.0, 50.0, 46.0, 58.0, 76.0, 78.0, 74.0, 64.0, 50.0, 30.0, 30.0)


@dataclass(frozen=True, eq=False)
class Section:
    """A tube along the trunk.

    Attributes
    ----------
    half_width, half_depth, middle_y
        float32, one value per millimetre from :data:`Z_LOW`.
    """

    half_width: Floats
    half_depth: Floats
    middle_y: Floats

    def level(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Return 0 on the axis of the tube, 1 on its surface, more outside."""
        row = (z - Z_LOW).astype(np.intp)
        u = x / self.half_width.take(row, mode="clip")
        v = y - self.middle_y.take(row, mode="clip")
        v /= self.half_depth.take(row, mode="clip")
        u *= u
        v *= v
        level: Floats = u + v
        level *= _ROUND
        u *= u
        v *= v
        u += v
        u *= _BOXY
        level += u
        return level

    def inside(self, x: Floats, y: Floats, z: Floats) -> Bools:
        """Tell which positions the tube holds."""
        within: Bools = self.level(x, y, z) < 1.0
        return within

    def grown(self, by_mm: float) -> Section:
        """Return a tube whose surface lies ``by_mm`` farther out."""
        least = np.float32(4.0)
        width, depth = (np.maximum(a + np.float32(by_mm), least) for a in (self.half_width, self.half_depth))
        return Section(width, depth, self.middle_y)

    def shape(self, low_z: float = Z_LOW, high_z: float = Z_HIGH) -> Shape:
        """Return the tube between two heights as a shape."""
        width = float(self.half_width.max())
        front, back = float((self.middle_y - self.half_depth).min()), float((self.middle_y + self.half_depth).max())
        return Shape((-width, front, low_z), (width, back, high_z), self.inside)


@dataclass(frozen=True)
class Diaphragm:
    """Two domes.

    Attributes
    ----------
    right_top, left_top
        Height of the tops, body millimetres.
    spread
        Factor of the domes' widths.
    """

    right_top: float
    left_top: float
    spread: float

    def height(self, x: Floats, y: Floats) -> Floats:
        """Return the height z of the diaphragm above or below each position."""
        domes = []
        for top, middle in ((self.right_top, -66.0), (self.left_top, 62.0)):
            u, v = (x - middle) * (1 / (92.0 * self.spread)), (y + 8.0) * (1 / (88.0 * self.spread))
            squares = u * u + v * v
            domes.append(top - 62.0 * squares - 26.0 * squares * squares)
        height: Floats = np.maximum(domes[0], domes[1])
        return height


@dataclass(frozen=True, eq=False)
class Torso:
    """The tubes of one patient, and the factors that place organs in them.

    Attributes
    ----------
    width, depth
        Factors of positions along x and y.
    breath_mm
        How far the upper abdomen is moved up.
    """

    skin: Section
    wall: Section
    ribs: Section
    cavity: Section
    diaphragm: Diaphragm
    width: float
    depth: float
    breath_mm: float

    def place(self, x: float, y: float, z: float) -> tuple[float, float, float]:
        """Return where a point of the blueprint lies in this patient."""
        return x * self.width, y * self.depth, z

    def below(self, x: Floats, y: Floats, z: Floats) -> Bools:
        """Tell which positions are in the abdominal cavity under the diaphragm."""
        within: Bools = self.cavity.level(x, y, z) < 0.97
        return narrowed(within, lambda x, y, z: z < self.diaphragm.height(x, y) - 3.0, x, y, z)

    def above(self, x: Floats, y: Floats, z: Floats) -> Bools:
        """Tell which positions are above the diaphragm."""
        within: Bools = z > self.diaphragm.height(x, y)
        return within


def draw_torso(rng: np.random.Generator) -> Torso:
    """Draw a trunk, thin to obese."""
    fat = float(5.0 + 40.0 * rng.beta(1.3, 2.4))
    width = float(rng.uniform(0.92, 1.06) + 0.0022 * fat)
    depth = float(rng.uniform(0.92, 1.06) + 0.0045 * fat)
    breath = float(rng.uniform(-14.0, 14.0))
    wall = Section(_table(_WALL_WIDTH, width), _table(_WALL_DEPTH, depth), _table(_WALL_MIDDLE, depth))
    layer = _table(_FAT, fat)
    front, back = float(rng.uniform(0.8, 1.2)), float(rng.uniform(0.7, 1.0))
    skin = Section(
        wall.half_width + layer + 2.0,
        wall.half_depth + layer * np.float32((front + back) / 2) + 2.0,
        wall.middle_y + layer * np.float32((back - front) / 2),
    )
    front_y, back_y = _table(_CAVITY_FRONT, depth), _table(_CAVITY_BACK, depth)
    cavity = Section(
        _table(_CAVITY_WIDTH, width), (front_y + back_y) * np.float32(0.5), (back_y - front_y) * np.float32(0.5)
    )
    tops = 388.0 + breath + rng.normal(0.0, 4.0), 376.0 + breath + rng.normal(0.0, 4.0)
    dome = Diaphragm(float(tops[0]), float(tops[1]), float(rng.uniform(0.95, 1.08)) * width)
    return Torso(skin, wall, cavity.grown(9.0), cavity, dome, width, depth, breath)


def _table(values: tuple[float, ...], factor: float) -> NDArray[np.float32]:
    z = np.arange(Z_LOW, Z_HIGH + 1.0)
    table = np.interp(z, _MARKS, values)
    # Rounds the corners that straight pieces between the marks leave.
    kernel = np.hanning(33)[1:-1]
    smooth = np.convolve(np.pad(table, 15, mode="edge"), kernel / kernel.sum(), mode="valid")
    return (factor * smooth).astype(np.float32)
