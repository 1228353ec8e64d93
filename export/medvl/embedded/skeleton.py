"""Spine, rib cage, pelvis and the muscles along the spine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medvl.embedded.parts import BODY, Densities, Part
from medvl.embedded.shapes import Bools, Floats, Inside, Shape, blob, narrowed, tube, turned
from medvl.embedded.torso import Z_HIGH, Z_LOW, Torso

SACRUM_TOP = 146.0
_LUMBAR, _THORACIC, _CERVICAL = (33.0, 8.5), (24.0, 4.5), (18.0, 4.5)
"""Height of a vertebra with its disc, and of the disc."""
_MARKS = (0.0, 60.0, 130.0, 180.0, 240.0, 330.0, 430.0, 520.0, 600.0, 680.0)
_MIDDLE_Y = (68.0, 64.0, 44.0, 30.0, 26.0, 36.0, 50.0, 47.0, 30.0, 18.0)
_HALF_WIDTH = (23.0, 23.0, 24.0, 24.0, 22.5, 19.5, 17.0, 15.0, 13.5, 12.0)
_HALF_DEPTH = (17.0, 17.0, 18.0, 18.0, 17.0, 16.0, 15.0, 13.0, 10.0, 8.0)
_RIB_PITCH, _FIRST_RIB, _RIBS, _RIB_SLOPE = 24.0, 590.0, 12, 0.45
_RIB_END_Y = (-58.0, -62.0, -64.0, -64.0, -64.0, -60.0, -54.0, -40.0, -18.0, 6.0, 34.0, 50.0)
"""Where the bone of each rib ends in front."""


@dataclass(frozen=True)
class Vertebra:
    """A vertebral body: its name and its lower and upper endplate along z."""

    name: str
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Spine:
    """The vertebral column of a patient: tables along z as in :mod:`medvl.embedded.torso`."""

    middle_y: Floats
    half_width: Floats
    half_depth: Floats
    bone: Bools
    marrow: Bools
    arch: Bools
    vertebrae: tuple[Vertebra, ...]

    def bodies(self, share: float, rows: Bools | None) -> Inside:
        """Return the test of what lies in the bodies' cross-section made ``share`` as wide, where ``rows`` allows."""

        def inside(x: Floats, y: Floats, z: Floats) -> Bools:
            row = (z - Z_LOW).astype(np.int32)
            u = x / (share * self.half_width.take(row, mode="clip"))
            v = (y - self.middle_y.take(row, mode="clip")) / (share * self.half_depth.take(row, mode="clip"))
            within: Bools = u * u + v * v < 1.0
            return within if rows is None else within & rows.take(row, mode="clip")

        return inside

    def arches(self, x: Floats, y: Floats, z: Floats) -> Bools:
        """Tell what lies in the pedicles, laminae and processes."""
        row = (z - Z_LOW).astype(np.int32)
        back = y - (self.middle_y + self.half_depth).take(row, mode="clip")
        side = np.abs(x)
        radius = side * side + (back - 8.0) * (back - 8.0)
        ring = (radius > 64.0) & (radius < 196.0) & (back > -6.0)
        transverse = (side < 36.0) & (np.abs(back - 6.0 - 0.15 * side) < 4.5)
        within = (ring | transverse) & self.arch.take(row, mode="clip")
        lower = (z + 0.55 * back - Z_LOW).astype(np.int32)
        spinous = (side < 3.5) & (back > 14.0) & (back < 38.0) & self.arch.take(lower, mode="clip")
        whole: Bools = within | spinous
        return whole

    def canal(self, x: Floats, y: Floats, z: Floats) -> Bools:
        """Tell what lies in the spinal canal."""
        row = (z - Z_LOW).astype(np.int32)
        back = y - (self.middle_y + self.half_depth).take(row, mode="clip") - 8.0
        within: Bools = x * x + back * back < 56.0
        return within

    def y_at(self, z: float) -> float:
        """Return the middle of the bodies at a height."""
        return float(self.middle_y[int(np.clip(z - Z_LOW, 0, len(self.middle_y) - 1))])

    def box(self, low: float, high: float, half_width: float, back: float) -> tuple[tuple[float, float, float], ...]:
        """Return the corners of a box around the column between two heights."""
        rows = slice(int(max(low - Z_LOW, 0)), int(high - Z_LOW) + 1)
        front = float((self.middle_y - self.half_depth)[rows].min())
        rear = float((self.middle_y + self.half_depth)[rows].max())
        return (-half_width, front - 2.0, low), (half_width, rear + back, high)


def draw_spine(rng: np.random.Generator, torso: Torso) -> Spine:
    """Draw the column of a patient."""
    z = np.arange(Z_LOW, Z_HIGH + 1.0)
    size = float(rng.uniform(0.93, 1.07))
    vertebrae = tuple(_vertebrae())
    bone, marrow, arch = np.zeros(len(z), bool), np.zeros(len(z), bool), np.zeros(len(z), bool)
    for vertebra in vertebrae:
        bone |= (z >= vertebra.low) & (z <= vertebra.high)
        marrow |= (z >= vertebra.low + 2.0) & (z <= vertebra.high - 2.0)
        arch |= (z >= vertebra.low + 0.35 * (vertebra.high - vertebra.low)) & (z <= vertebra.high)
    middle, width, depth = _smooth(_MIDDLE_Y, torso.depth), _smooth(_HALF_WIDTH, size), _smooth(_HALF_DEPTH, size)
    return Spine(middle, width, depth, bone, marrow, arch, vertebrae)


def _vertebrae() -> list[Vertebra]:
    names = [f"L{n}" for n in range(5, 0, -1)] + [f"T{n}" for n in range(12, 0, -1)] + ["C7", "C6", "C5", "C4"]
    kinds = {"L": _LUMBAR, "T": _THORACIC, "C": _CERVICAL}
    found, z = [], SACRUM_TOP
    for name in names:
        height, disc = kinds[name[0]]
        found.append(Vertebra(name, z + disc, z + height))
        z += height
    return found


def _smooth(values: tuple[float, ...], factor: float) -> NDArray[np.float32]:
    table = factor * np.interp(np.arange(Z_LOW, Z_HIGH + 1.0), _MARKS, values)
    kernel = np.hanning(63)[1:-1]
    return np.convolve(np.pad(table, 30, mode="edge"), kernel / kernel.sum(), mode="valid").astype(np.float32)


def spine_parts(rng: np.random.Generator, spine: Spine) -> list[Part]:
    """Return the column: discs, bodies, arches, canal, sacrum."""
    low, high = spine.box(SACRUM_TOP - 4.0, Z_HIGH, 26.0, 0.0)
    wide_low, wide_high = spine.box(SACRUM_TOP - 20.0, Z_HIGH, 38.0, 42.0)
    column, marrow_hu = "vertebral_column", float(rng.uniform(120.0, 220.0))
    y = spine.y_at(95.0)
    sacrum = blob((0.0, y + 8.0, 92.0), (47.0, 17.0, 56.0), turned(x_deg=24.0), taper=0.5)
    core = blob((0.0, y + 8.0, 92.0), (41.0, 13.0, 50.0), turned(x_deg=24.0), taper=0.5)
    return [
        Part("arches", column, 380.0, (Shape(wide_low, wide_high, spine.arches),)),
        Part("discs", column, 85.0, (Shape(low, high, spine.bodies(0.97, None)),)),
        Part("vertebrae", column, 430.0, (Shape(low, high, spine.bodies(1.0, spine.bone)),)),
        Part("marrow", column, marrow_hu, (Shape(low, high, spine.bodies(0.86, spine.marrow)),)),
        Part("sacrum", column, 360.0, (sacrum,)),
        Part("marrow of the sacrum", column, marrow_hu * 0.8, (core,)),
        Part("canal", BODY, 28.0, (Shape(low, wide_high, spine.canal),)),
    ]


def rib_parts(torso: Torso) -> list[Part]:
    """Return ribs, their cartilage and the sternum."""

    def wall(x: Floats, y: Floats, z: Floats) -> Bools:
        outside: Bools = torso.cavity.level(x, y, z) > 1.0
        return narrowed(outside, torso.ribs.inside, x, y, z)

    def ribs(x: Floats, y: Floats, z: Floats) -> Bools:
        number, within = _rib(torso, x, y, z)
        within &= y > _rib_end(number) * torso.depth
        return narrowed(within, wall, x, y, z)

    def cartilage(x: Floats, y: Floats, z: Floats) -> Bools:
        number, within = _rib(torso, x, y, z)
        within &= (y <= _rib_end(number) * torso.depth) & (number < 9.5) & (y < -10.0)
        return narrowed(within, wall, x, y, z)

    width = float(torso.ribs.half_width.max())
    front, back = torso.ribs.shape().low[1], torso.ribs.shape().high[1]
    low, high = (-width, front, 240.0), (width, back, 600.0)
    sternum = blob(torso.place(0.0, -86.0, 468.0), (19.0, 6.0, 74.0), turned(x_deg=9.0), boxy=True)
    return [
        Part("cartilage", BODY, 110.0, (Shape(low, (width, -10.0, 560.0), cartilage),)),
        Part("ribs", "rib", 480.0, (Shape(low, high, ribs),)),
        Part("sternum", BODY, 230.0, (sternum,)),
    ]


def _rib(torso: Torso, x: Floats, y: Floats, z: Floats) -> tuple[Floats, Bools]:
    """Return the number of the rib (from 0, between ribs a fraction), and whether a position is at its height."""
    number = (_FIRST_RIB - z - _RIB_SLOPE * (70.0 * torso.depth - y)) * (1.0 / _RIB_PITCH)
    within = (np.abs(number - np.rint(number)) < 0.24) & (number > -0.3) & (number < _RIBS - 0.7)
    within &= np.abs(x) > 12.0
    return number, within


def _rib_end(number: Floats) -> Floats:
    ends = np.array(_RIB_END_Y, np.float32)
    return ends.take(np.rint(number).astype(np.int32), mode="clip")


def back_muscles(densities: Densities, spine: Spine) -> list[Part]:
    """Return the muscles along the spine, and the fat that sets them off from the wall."""
    fat: list[Shape] = []
    muscle: list[Shape] = []
    for s in (-1.0, 1.0):
        heights = (0.0, 110.0, 180.0, 260.0, 350.0, 460.0, 580.0)
        line = [(s * 25.0, spine.y_at(z) + float(spine.half_depth[int(z - Z_LOW)]) + 24.0, z) for z in heights]
        radii = (7.0, 13.0, 21.0, 22.0, 19.0, 15.0, 12.0)
        muscle += tube(line, radii)
        fat += tube(line, [r + 1.6 for r in radii])
    return [
        Part("fat of the back", BODY, densities.fat, tuple(fat), frozenset({BODY})),
        Part("muscles of the back", BODY, densities.muscle, tuple(muscle), frozenset({BODY})),
    ]


def pelvis_parts(densities: Densities, torso: Torso, spine: Spine) -> list[Part]:
    """Return hip bones, femoral heads, shoulder blades, collar bones and psoas muscles, left and right."""
    parts: dict[str, list[Shape]] = {
        "psoas": [],
        "hips": [],
        "marrow of the hips": [],
        "shoulders": [],
        "marrow of the shoulders": [],
    }
    for s in (-1.0, 1.0):
        w, y = torso.width, spine.y_at(250.0)
        line = [
            (s * 24 * w, y + 4, 318.0),
            (s * 36 * w, y + 4, 250.0),
            (s * 46 * w, y - 6, 180.0),
            (s * 62 * w, y - 34, 95.0),
        ]
        parts["psoas"] += tube([*line, (s * 84 * w, y - 30, 20.0)], (7.0, 16.0, 20.0, 17.0, 12.0))
        wing = turned(x_deg=-14.0, z_deg=s * 34.0)
        ilium = torso.place(s * 92.0, 28.0, 142.0)
        parts["hips"] += [
            blob(ilium, (8.0, 52.0, 62.0), wing, bend=-0.4 * s),
            blob(torso.place(s * 92.0, 8.0, 38.0), (27.0, 28.0, 34.0)),
            *tube([torso.place(s * 70.0, -14.0, 30.0), torso.place(s * 8.0, -42.0, 10.0)], (10.0, 8.0)),
            *tube([torso.place(s * 84.0, 28.0, 20.0), torso.place(s * 64.0, 34.0, -20.0)], (13.0, 14.0)),
            *tube([torso.place(s * 102.0, 6.0, 36.0), torso.place(s * 138.0, 12.0, 8.0)], (17.0, 18.0)),
        ]
        parts["marrow of the hips"] += [
            blob(torso.place(s * 93.0, 8.0, 38.0), (23.0, 24.0, 30.0)),
            blob(ilium, (5.0, 46.0, 56.0), wing, bend=-0.4 * s),
        ]
        blade = turned(x_deg=8.0, z_deg=s * 52.0)
        parts["shoulders"] += [
            blob(torso.place(s * 104.0, 80.0, 500.0), (5.0, 42.0, 62.0), blade),
            *tube(
                [
                    torso.place(s * 18.0, -56.0, 566.0),
                    torso.place(s * 70.0, -52.0, 580.0),
                    torso.place(s * 132.0, 0.0, 596.0),
                ],
                (7.0, 6.0, 6.0),
            ),
            blob(torso.place(s * 140.0, 18.0, 582.0), (22.0, 23.0, 24.0)),
        ]
        parts["marrow of the shoulders"] += [
            blob(torso.place(s * 140.0, 18.0, 582.0), (18.5, 19.0, 20.0)),
        ]  # fmt: skip
    hu = {
        "psoas": densities.muscle,
        "hips": 390.0,
        "marrow of the hips": 170.0,
        "shoulders": 380.0,
        "marrow of the shoulders": 150.0,
    }
    # Over the body only: nothing may stand out of a thin patient's skin.
    return [Part(name, BODY, hu[name], tuple(pieces), frozenset({BODY})) for name, pieces in parts.items()]
