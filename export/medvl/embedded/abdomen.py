"""Organs of the abdomen and pelvis."""

from __future__ import annotations

import numpy as np

from medvl.embedded.parts import BODY, Densities, Part, lumpy, moved, near
from medvl.embedded.shapes import Bools, Floats, Shape, Vector, blob, capsule, narrowed, tube, turned, union
from medvl.embedded.skeleton import Spine
from medvl.embedded.torso import Torso

SPLEEN_LENGTH_MM = 98.0
_LOOPS = 24


def liver_parts(rng: np.random.Generator, densities: Densities, torso: Torso) -> list[Part]:
    """Return liver with its vessels, and the gallbladder under it."""
    z = torso.breath_mm
    size = float(rng.uniform(0.92, 1.06))
    x0, y0, z0 = moved(rng, torso.place(-72.0, 0.0, 308.0 + z), 3.0)
    right = blob((x0, y0, z0), (74.0 * size * torso.width, 86.0 * size * torso.depth, 92.0 * size),
                 turned(y_deg=10.0), lumps=lumpy(rng, 170.0, 0.10))  # fmt: skip
    left = blob(torso.place(2.0, -42.0, 345.0 + z), (78.0 * size * torso.width, 40.0 * torso.depth, 46.0 * size),
                turned(y_deg=14.0), taper=0.2, lumps=lumpy(rng, 140.0, 0.10))  # fmt: skip
    slope, foot = float(rng.uniform(0.42, 0.62)), float(rng.uniform(218.0, 240.0)) + z

    def wedge(x: Floats, y: Floats, z: Floats) -> Bools:
        # The visceral surface rises to the left and to the back, and is hollow.
        hollow = 0.007 * (y + 48.0) * (y + 48.0) - 0.0005 * (x + 10.0) * (x + 10.0)
        above: Bools = z > foot + slope * (x + 140.0) + hollow
        return narrowed(above, torso.below, x, y, z)

    whole = union(right, left).clipped(wedge)
    veins, doors = _liver_vessels(rng, torso)
    over = frozenset({"liver"})
    return [
        Part("liver", "liver", densities.liver, (whole,)),
        Part("hepatic veins", "liver", densities.liver_veins, veins, over),
        Part("portal branches", "liver", max(densities.portal, densities.liver_veins), doors, over),
        gallbladder(rng, torso, foot + slope * 86.0),
    ]


def _liver_vessels(rng: np.random.Generator, torso: Torso) -> tuple[tuple[Shape, ...], tuple[Shape, ...]]:
    z = torso.breath_mm
    crown, door = torso.place(-26.0, 4.0, 372.0 + z), torso.place(-34.0, -2.0, 312.0 + z)
    veins: list[Shape] = []
    doors: list[Shape] = []
    for x, y, height in ((-104.0, 30.0, 330.0), (-84.0, -38.0, 332.0), (-12.0, -46.0, 344.0)):
        end = moved(rng, torso.place(x, y, height + z), 8.0)
        veins += tube([crown, end], (4.6, 2.4))
    for x, y, height in ((-82.0, -30.0, 318.0), (-88.0, 26.0, 306.0), (-20.0, -38.0, 330.0)):
        end = moved(rng, torso.place(x, y, height + z), 8.0)
        doors += tube([door, end], (5.4, 2.6))
        doors.append(capsule(end, moved(rng, (end[0] - 14.0, end[1], end[2] - 14.0), 9.0), 2.6, 1.6))
    return tuple(veins), tuple(doors)


def gallbladder(rng: np.random.Generator, torso: Torso, liver_edge_z: float) -> Part:
    """Return the gallbladder, half in its bed at the liver's underside."""
    x, y, z = moved(rng, torso.place(-52.0, -44.0, liver_edge_z - 6.0), 3.0)
    radii = near(rng, (15.0, 16.0, 31.0), 0.1)
    shape = blob((x, y, z), radii, turned(x_deg=-24.0, y_deg=12.0), taper=-0.35)
    return Part("gallbladder", "gallbladder", float(rng.uniform(4.0, 16.0)), (shape,))


def stomach_parts(
    rng: np.random.Generator, densities: Densities, torso: Torso, up: tuple[float, float, float]
) -> list[Part]:
    """Return the stomach: wall, fluid, and gas above a level; ``up`` points to the ceiling, in the body frame."""
    z, fill = torso.breath_mm, float(rng.uniform(0.72, 1.1))
    chain = [(70.0, 14.0, 346.0, 34.0), (72.0, -14.0, 318.0, 31.0), (56.0, -44.0, 284.0, 27.0),
             (24.0, -56.0, 262.0, 22.0), (-12.0, -46.0, 264.0, 15.0)]  # fmt: skip
    line = [moved(rng, torso.place(x, y, height + z), 4.0) for x, y, height, _ in chain]
    outer = [max(r * fill, 11.0) for *_, r in chain]
    inner = [r - 4.5 for r in outer]
    walls = tuple(s.clipped(torso.below) for s in tube(line, outer))
    lumen = tuple(s.clipped(torso.below) for s in tube(line, inner))
    level = float(np.dot(up, line[1])) + outer[1] * float(rng.uniform(-0.3, 0.7))

    def over_level(x: Floats, y: Floats, z: Floats) -> Bools:
        above: Bools = x * up[0] + y * up[1] + z * up[2] > level
        return above

    gas = tuple(s.clipped(over_level) for s in lumen)
    organ = frozenset({"stomach"})
    return [
        Part("stomach", "stomach", densities.bowel, walls),
        Part("stomach fluid", "stomach", float(rng.uniform(8.0, 45.0)), lumen, organ),
        Part("stomach gas", "stomach", -985.0, gas, organ),
    ]


def spleen_shape(rng: np.random.Generator, torso: Torso, length_mm: float) -> Shape:
    """Return the spleen: a crescent under the left ribs, hollow towards the stomach."""
    share = length_mm / SPLEEN_LENGTH_MM
    x, y, z = moved(rng, torso.place(96.0, 32.0, 318.0 + torso.breath_mm - 26.0 * (share - 1.0)), 2.5)
    thick = share**0.7
    radii = near(rng, (27.0 * thick, 40.0 * share**0.8, length_mm / 2), 0.03)
    axes = turned(x_deg=-20.0, y_deg=-9.0, z_deg=14.0)
    crescent = blob((x - 16.0 * (thick - 1.0), y - 14.0 * (share - 1.0), z), radii, axes, bend=-0.3)
    return crescent.clipped(torso.below)


def kidney_parts(rng: np.random.Generator, densities: Densities, torso: Torso, spine: Spine, side: str) -> list[Part]:
    """Return a kidney: cortex, medulla, fat of its sinus, and the renal pelvis."""
    s = 1.0 if side == "left" else -1.0
    z = (276.0 if side == "left" else 262.0) + 0.6 * torso.breath_mm
    x, y, z = moved(rng, (s * 66.0 * torso.width, spine.y_at(z) + 8.0, z), 3.0)
    rx, ry, rz = near(rng, (28.0, 25.0, 54.0), 0.07)
    axes = turned(x_deg=-12.0, y_deg=s * 13.0, z_deg=s * 28.0)
    organ = f"kidney_{side}"
    # The ends of a bean point to the hilum, which is medial.
    bean = blob((x + s * 3.0, y, z), (rx, ry, rz), axes, bend=-0.22 * s)
    hilum = np.array([-s, -0.45, 0.0]) / np.hypot(1.0, 0.45)
    depth = 0.62 * rx
    fat, pelvis = ((x + float(v[0]), y + float(v[1]), z) for v in (hilum * depth, hilum * (depth + 1.0)))
    mine = frozenset({organ})
    return [
        Part(organ, organ, densities.cortex, (bean,)),
        Part(f"medulla of {organ}", organ, densities.medulla,
             (blob((x + s * 2.0, y, z), (rx * 0.72, ry * 0.70, rz * 0.80), axes, bend=-0.22 * s),), mine),
        Part(f"sinus of {organ}", BODY, densities.fat, (blob(fat, (15.0, 11.0, 25.0), axes),), mine | {BODY}),
        Part(f"pelvis of {organ}", organ, densities.urine, (blob(pelvis, (9.5, 6.0, 12.0), axes),)),
    ]  # fmt: skip


def bladder_parts(rng: np.random.Generator, densities: Densities, torso: Torso) -> list[Part]:
    """Return bladder, what lies behind it, and the rectum."""
    fill = float(rng.uniform(0.65, 1.2))
    height = 30.0 * fill
    x, y, z = torso.place(0.0, -26.0, 14.0 + height)
    radii = near(rng, (41.0 * fill, 33.0 * fill, height), 0.06)
    wall = (radii[0] + 3.0, radii[1] + 3.0, radii[2] + 3.0)
    behind = blob(torso.place(0.0, 8.0, 32.0), near(rng, (26.0, 18.0, 25.0), 0.12))
    rectum = [torso.place(0.0, 40.0, -10.0), torso.place(0.0, 42.0, 40.0), torso.place(6.0, 30.0, 80.0)]
    return [
        Part("behind the bladder", BODY, densities.muscle, (behind,)),
        Part("rectum", BODY, densities.bowel, tube(rectum, (11.0, 17.0, 15.0))),
        Part("rectal gas", BODY, -600.0, tube([rectum[1], rectum[2]], (8.0, 6.0))),
        Part("bladder wall", BODY, densities.muscle, (blob((x, y, z), wall),)),
        Part(
            "urinary_bladder", "urinary_bladder", densities.urine, (blob((x, y, z), radii, lumps=lumpy(rng, 90, 0.1)),)
        ),
    ]


def bowel_parts(rng: np.random.Generator, densities: Densities, torso: Torso, spine: Spine) -> list[Part]:
    """Return small bowel, colon and pancreas."""
    colon: list[Vector] = [(-94.0, -2.0, 100.0), (-100.0, 2.0, 160.0), (-98.0, -8.0, 214.0), (-70.0, -50.0, 226.0),
                           (0.0, -62.0, 214.0), (62.0, -48.0, 236.0), (96.0, 2.0, 268.0), (98.0, 18.0, 200.0),
                           (94.0, 12.0, 130.0), (50.0, -14.0, 96.0), (8.0, 18.0, 92.0)]  # fmt: skip
    line = [moved(rng, torso.place(*p), 6.0) for p in colon]
    radii = [float(rng.uniform(13.0, 22.0)) for _ in line]
    inner = [r - 3.0 for r in radii]
    gas = [
        capsule(a, b, r * 0.7, q * 0.7)
        for a, b, r, q in zip(line[:-1], line[1:], inner, inner[1:], strict=False)
        if rng.random() < 0.5
    ]
    loops, filled = [], []
    for _ in range(_LOOPS):
        middle = torso.place(float(rng.uniform(-72, 72)), float(rng.uniform(-62, -8)), float(rng.uniform(92, 250)))
        axes = turned(*(float(a) for a in rng.uniform(-90, 90, 3)))
        r = float(rng.uniform(11.0, 16.0))
        loops.append(blob(middle, (r, r, r * float(rng.uniform(1.6, 3.0))), axes, bend=float(rng.uniform(-0.9, 0.9))))
        if rng.random() < 0.3:
            filled.append(blob(middle, (r * 0.6, r * 0.6, r * 1.3), axes))
    y = spine.y_at(280.0) - 46.0
    pancreas = [
        (-36.0, y, 256.0),
        (-24.0, y - 6.0, 272.0),
        (8.0, y - 12.0, 286.0),
        (44.0, y + 10.0, 300.0),
        (72.0, y + 30.0, 312.0),
    ]
    return [
        Part("small bowel", BODY, densities.bowel, tuple(loops)),
        Part("bowel gas", BODY, -900.0, tuple(filled)),
        Part("colon", BODY, densities.bowel, tube(line, radii)),
        Part("stool", BODY, float(rng.uniform(-80.0, 40.0)), tube(line, inner)),
        Part("colon gas", BODY, -950.0, tuple(gas)),
        Part(
            "pancreas",
            BODY,
            densities.pancreas,
            tube([moved(rng, p, 2.0) for p in pancreas], (13.0, 12.0, 10.0, 9.5, 8.0)),
        ),
        Part(
            "portal vein",
            BODY,
            densities.portal,
            tube([(-2.0, y - 2.0, 272.0), torso.place(-34.0, -2.0, 312.0 + torso.breath_mm)], (6.5, 6.5)),
        ),
    ]
