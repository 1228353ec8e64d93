"""Lungs, heart, airways and the great vessels."""

from __future__ import annotations

import numpy as np

from medvl.embedded.parts import AIR_HU, BODY, Densities, Part, lumpy, moved, near
from medvl.embedded.shapes import Bools, Floats, Shape, Vector, blob, capsule, narrowed, tube, turned
from medvl.embedded.skeleton import Spine
from medvl.embedded.torso import Torso

LUNG_LOW, LUNG_HIGH = 262.0, 606.0
_BRANCHES = 11
_AORTIC_RADII = (16.0, 15.5, 15.0, 14.0, 13.0, 12.5, 12.0, 12.0, 11.5, 11.0, 10.5, 9.5, 9.0)
CARINA_Z = 500.0


def lung_shape(torso: Torso, sign: float) -> Shape:
    """Return the pleural cavity of a side (``sign`` of x): concave at heart, mediastinum, spine and diaphragm."""

    def inside(x: Floats, y: Floats, z: Floats) -> Bools:
        # The mediastinum is narrow in front, widest at the hila, and fades towards the apex.
        medial = np.clip(y + 78.0, 0.0, 62.0) * (17.0 / 62.0) + 5.0
        within: Bools = (sign * x > medial) & (z > LUNG_LOW)
        return narrowed(narrowed(within, torso.above, x, y, z), cavity, x, y, z)

    def cavity(x: Floats, y: Floats, z: Floats) -> Bools:
        within: Bools = torso.cavity.level(x, y, z) < 0.98
        return within

    section = torso.cavity.shape()
    edges = (0.0, section.high[0]) if sign > 0 else (section.low[0], 0.0)
    top = max(torso.diaphragm.right_top, torso.diaphragm.left_top)
    return Shape((edges[0], section.low[1], min(LUNG_LOW, top)), (edges[1], section.high[1], LUNG_HIGH), inside)


def lung_parts(rng: np.random.Generator, densities: Densities, torso: Torso) -> list[Part]:
    """Return both lungs and their vessels."""
    parts = []
    for side, sign in (("right", -1.0), ("left", 1.0)):
        organ = f"lung_{side}"
        parts.append(Part(organ, organ, densities.lung, (lung_shape(torso, sign),)))
        blood = max(densities.veins, 45.0)
        pieces = tuple(_vessels(rng, torso, sign))
        parts.append(Part(f"vessels of {organ}", organ, blood, pieces, frozenset({organ})))
    return parts


def _vessels(rng: np.random.Generator, torso: Torso, sign: float) -> list[Shape]:
    """Return a tree from the hilum, three generations of branches that grow thinner and spread out."""
    hilum = np.array(torso.place(sign * 34.0, 4.0, 466.0))
    shapes = []
    for _ in range(_BRANCHES):
        way = np.array([sign * rng.uniform(0.15, 1.0), rng.normal(0.1, 0.55), rng.normal(-0.1, 0.8)])
        tips = [(hilum, way / np.linalg.norm(way), float(rng.uniform(3.4, 5.0)))]
        for length in (36.0, 32.0, 30.0):
            grown = []
            for begin, along, radius in tips:
                end = begin + along * length
                shapes.append(capsule(_vector(begin), _vector(end), radius, radius * 0.75))
                for _ in range(2):
                    turn = along + rng.normal(0.0, 0.42, 3)
                    grown.append((end, turn / np.linalg.norm(turn), radius * 0.66))
            tips = grown
    return shapes


def _vector(point: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Vector:
    return float(point[0]), float(point[1]), float(point[2])


def heart_parts(rng: np.random.Generator, densities: Densities, torso: Torso) -> list[Part]:
    """Return the heart: muscle, and blood in its chambers."""
    size = float(rng.uniform(0.9, 1.12))
    turn = turned(x_deg=18.0, y_deg=-22.0, z_deg=float(rng.uniform(22.0, 38.0)))
    x, y, z = moved(rng, torso.place(16.0, -32.0, 424.0 + 0.6 * torso.breath_mm), 3.0)
    radii = near(rng, (58.0 * size, 43.0 * size, 54.0 * size), 0.04)
    whole = blob((x, y, z), radii, turn, taper=0.12, lumps=lumpy(rng, 120.0, 0.12)).clipped(torso.above)
    left = blob((x + 22 * size, y + 2, z - 8), (27.0 * size, 17.0 * size, 25.0 * size), turn)
    right = blob((x - 16 * size, y - 14, z - 4), (30.0 * size, 17.0 * size, 30.0 * size), turn)
    atria = blob((x - 4 * size, y + 22 * size, z + 16), (36.0 * size, 16.0 * size, 20.0 * size))
    over = frozenset({"heart"})
    return [
        Part("heart", "heart", densities.heart_muscle, (whole,)),
        Part("left chambers", "heart", densities.aorta * 0.93, (left, atria), over),
        Part("right chambers", "heart", densities.veins * 1.05, (right,), over),
    ]


def aorta_line(rng: np.random.Generator, torso: Torso, spine: Spine) -> tuple[list[Vector], list[float]]:
    """Return the middle line of the aorta, from the valve to its division, and its outer radii."""
    w, d = torso.width, torso.depth
    sway = float(rng.uniform(-5.0, 5.0))
    valve = (2.0 * w, -24.0 * d, 446.0 + 0.4 * torso.breath_mm)
    arch = [(-14.0 * w, -30.0 * d, 474.0), (-13.0 * w, -26.0 * d, 500.0), (-2.0 * w, -12.0 * d, 516.0)]
    arch += [(12.0 * w, 6.0 * d, 518.0), (22.0 * w, spine.y_at(506.0) - 16.0, 506.0)]
    down = [
        (24.0, 470.0),
        (22.0 + sway, 425.0),
        (16.0 + sway, 380.0),
        (9.0, 335.0),
        (7.0 - sway, 280.0),
        (6.0, 235.0),
        (4.0, 196.0),
    ]
    gap = (13.0, 16.0, 20.0, 26.0, 30.0, 31.0, 30.0)
    line = [(x * w, spine.y_at(z) - g, z) for (x, z), g in zip(down, gap, strict=True)]
    size = float(rng.uniform(0.85, 1.12))
    return [valve, *arch, *line], [r * size for r in _AORTIC_RADII]


def vessel_parts(
    densities: Densities, torso: Torso, spine: Spine, line: list[Vector], radii: list[float]
) -> list[Part]:
    """Return aorta, iliac arteries and the large veins."""
    w, d = torso.width, torso.depth
    x, y, z = line[-1]
    iliac: list[Shape] = []
    for s in (-1.0, 1.0):
        way = [
            (x, y, z),
            (s * 26 * w, y + 8, 160.0),
            (s * 50 * w, y + 6, 110.0),
            (s * 74 * w, y - 34, 45.0),
            (s * 78 * w, -46 * d, -20.0),
        ]
        iliac += tube(way, (6.5, 5.5, 5.0, 4.5, 4.5))
    cava = [(-20.0 * w, spine.y_at(190.0) - 26, 186.0), (-22.0 * w, spine.y_at(270.0) - 26, 270.0)]
    cava += [(-26.0 * w, spine.y_at(340.0) - 32, 340.0), (-24.0 * w, 0.0, 392.0)]
    superior = [(-27.0 * w, -22.0 * d, 450.0), (-26.0 * w, -20.0 * d, 520.0), (-18.0 * w, -24.0 * d, 560.0)]
    trunk = [(16.0 * w, -34.0 * d, 454.0), (19.0 * w, -20.0 * d, 478.0), (8.0 * w, -4.0 * d, 480.0)]
    right_artery = [trunk[-1], (-22.0 * w, 2.0 * d, 474.0), (-38.0 * w, 6.0 * d, 466.0)]
    left_artery = [trunk[1], (30.0 * w, 4.0 * d, 482.0), (42.0 * w, 12.0 * d, 472.0)]
    heart_veins = (
        tube(trunk, (13.0, 12.5, 11.0)) + tube(right_artery, (11.0, 10.0, 7.5)) + tube(left_artery, (10.0, 10.0, 7.0))
    )
    neck = tube([line[3], (-10.0 * w, -14.0 * d, 560.0), (-24.0 * w, -14.0 * d, 620.0)], (5.5, 5.0, 4.0))
    neck += tube([line[4], (20.0 * w, -2.0 * d, 560.0), (26.0 * w, -8.0 * d, 620.0)], (4.5, 4.0, 4.0))
    return [
        Part("iliac arteries", BODY, densities.aorta, tuple(iliac)),
        Part("neck arteries", BODY, densities.aorta, neck),
        Part("inferior cava", BODY, densities.veins, tube(cava, (10.0, 11.0, 12.0, 12.0))),
        Part("superior cava", BODY, densities.veins * 1.1, tube(superior, (9.0, 8.5, 7.5))),
        Part("pulmonary arteries", BODY, densities.veins * 1.1, heart_veins),
        Part("aorta", "aorta", densities.aorta, tube(line, radii)),
    ]


def airway_parts(densities: Densities, torso: Torso, spine: Spine) -> list[Part]:
    """Return trachea (down to the carina), main bronchi, esophagus and thyroid."""
    w = torso.width
    y, top = spine.y_at(CARINA_Z) - 34.0, spine.y_at(620.0) - 26.0
    carina = (-2.0 * w, y, CARINA_Z)
    line = [(0.0, top - 4.0, 660.0), (0.0, top, 610.0), (0.0, (y + top) / 2, 555.0), carina]
    right = [carina, (-20.0 * w, y + 3.0, 482.0), (-40.0 * w, y + 8.0, 464.0)]
    left = [carina, (18.0 * w, y + 4.0, 486.0), (42.0 * w, y + 10.0, 470.0)]
    gullet = [(6.0, spine.y_at(620.0) - 16.0, 640.0), (6.0, spine.y_at(500.0) - 21.0, 500.0)]
    gullet += [(9.0, spine.y_at(420.0) - 30.0, 420.0), (22.0, spine.y_at(380.0) - 38.0, 372.0)]
    walls = tube(line, (11.0,) * 4) + tube(right, (10.0, 9.0, 7.0)) + tube(left, (10.0, 8.5, 6.5))
    return [
        Part("esophagus", BODY, densities.muscle - 15.0, tube(gullet, (7.0, 8.0, 8.0, 9.0))),
        Part("airway walls", BODY, densities.muscle - 20.0, walls),
        Part("bronchi", BODY, AIR_HU, tube(right, (7.5, 6.5, 4.5)) + tube(left, (7.5, 6.0, 4.0))),
        Part("trachea", "trachea", AIR_HU, tube(line, (8.6,) * 4)),
    ]
