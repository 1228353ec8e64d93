"""Findings that change an organ or its place: fluid and gas about lungs, aorta, spleen and spine, surgery."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from medvl.embedded.abdomen import spleen_shape
from medvl.embedded.findings import Case, Draft
from medvl.embedded.lesions import (
    hydronephrosis,
    kidney_cysts,
    kidney_stone,
    liver_cysts,
    liver_mass,
    lung_nodules,
)
from medvl.embedded.parts import AIR_HU, BODY, Part
from medvl.embedded.shapes import Bools, Floats, Shape, Vector, capsule
from medvl.embedded.skeleton import Vertebra
from medvl.embedded.torso import Z_LOW
from medvl.embedded.truth import PLEURAL, FindingKind, Side
from medvl.embedded.words import side_of

LARGE_SPLEEN_MM = 140.0


def pleural_effusion(case: Case) -> bool:
    """Draw fluid behind a lung, deepest at its base."""
    return any(_effusion(case, side) for side in case.sides())


def _effusion(case: Case, side: Side) -> bool:
    organ = f"lung_{side}"
    least = case.least_mm(14.0, slices=0.0)
    if least > 50.0 or case.touched(organ, *PLEURAL):
        return False
    depth_mm = case.uniform(least, max(least + 5.0, 58.0))
    depth = case.body_mm(depth_mm)
    full, top = 372.0, 400.0 + 2.6 * depth

    def share(z: Floats) -> Floats:
        return np.clip((top - z) * (1.0 / (top - full)), 0.0, 1.0)

    shape = _layer(case, side, depth, share, behind=True)
    low, high = shape.low, shape.high
    shape = replace(shape, low=(low[0], 0.0, low[2]), high=(high[0], high[1], min(top, high[2])))
    part = Part("effusion", organ, case.uniform(4.0, 22.0), (shape,), frozenset({organ}))
    return case.accept(
        Draft(FindingKind.PLEURAL_EFFUSION, organ, side, depth_mm, (shape,), (part,), after=f"vessels of {organ}")
    )


def pneumothorax(case: Case) -> bool:
    """Draw gas in front of a lung, and the lung's edge as a thin line."""
    return any(_gas(case, side) for side in case.sides())


def _gas(case: Case, side: Side) -> bool:
    organ = f"lung_{side}"
    least = case.least_mm(15.0, slices=0.0)
    if least > 40.0 or case.touched(organ, *PLEURAL):
        return False
    depth_mm = case.uniform(least, max(least + 5.0, 48.0))
    depth = case.body_mm(depth_mm)

    def share(z: Floats) -> Floats:
        return np.clip((z - 330.0) * (1.0 / 60.0), 0.0, 1.0)

    gas = _layer(case, side, depth, share, behind=False)
    edge = _layer(case, side, depth + 1.6, share, behind=False)
    line = Part("pleural line", organ, -350.0, (edge,), frozenset({organ}))
    part = Part("pneumothorax", organ, AIR_HU + 2.0, (gas,), frozenset({organ}))
    draft = Draft(
        FindingKind.PNEUMOTHORAX, organ, side, depth_mm, (gas,), (part,), f"vessels of {organ}", background=(line,)
    )
    return case.accept(draft)


def _layer(case: Case, side: Side, depth: float, share: Callable[[Floats], Floats], *, behind: bool) -> Shape:
    """Return the part of a pleural cavity within ``depth`` of its back or front wall, along y."""
    cavity, lung = case.anatomy.torso.cavity, case.anatomy.part(f"lung_{side}").pieces[0]
    sign = 1.0 if behind else -1.0

    def near_wall(x: Floats, y: Floats, z: Floats) -> Bools:
        reach = share(z) * (sign * depth)
        # Only towards the wall in question: the step must not leave the cavity at its other side.
        beyond: Bools = (cavity.level(x, y + reach, z) > 0.98) & (np.abs(reach) > 0.5)
        return beyond

    return lung.clipped(near_wall)


def aneurysm(case: Case) -> bool:
    """Widen the aorta in the chest or the abdomen, with a thrombus along its wall."""
    least = case.least_mm(40.0, pixels=2.5)
    if least > 70.0:
        return False
    places = [(222.0, 262.0), (395.0, 450.0)]
    return any(
        _aneurysm(case, places[int(i)], case.uniform(least, max(least + 5.0, 78.0))) for i in case.rng.permutation(2)
    )


def _aneurysm(case: Case, heights: tuple[float, float], diameter_mm: float) -> bool:
    line, radii = case.anatomy.aorta
    # The arch turns back: only the part below it has one point at each height.
    down, width = np.array(line[5:]), np.array(radii[5:])
    middle, outer = case.uniform(*heights), case.body_mm(diameter_mm) / 2
    half = case.uniform(32.0, 50.0)
    z = np.linspace(middle + half, middle - half, 13)
    swell = np.cos(np.linspace(-np.pi / 2, np.pi / 2, 13)) ** 2
    x, y = (np.interp(z, down[::-1, 2], down[::-1, i]) for i in (0, 1))
    inner = np.interp(z, down[::-1, 2], width[::-1])
    wall = inner + (outer - inner) * swell
    y = y - (wall - inner) * 0.75
    x = x + (wall - inner) * 0.15
    lumen = inner + (wall - inner) * case.uniform(0.25, 0.6)
    whole, blood = _chain(x, y, z, wall), _chain(x, y + 0.2 * (wall - lumen), z, lumen)
    over = frozenset({BODY, "aorta", "lung_left", "lung_right", "stomach", "liver"})
    parts = (
        Part("thrombus", "aorta", case.uniform(34.0, 50.0), whole, over),
        Part("lumen", "aorta", case.anatomy.densities.aorta, blood, frozenset({"aorta"})),
    )
    return case.accept(Draft(FindingKind.AORTIC_ANEURYSM, "aorta", None, diameter_mm, whole, parts, after="aorta"))


def _chain(x: Floats, y: Floats, z: Floats, radius: Floats) -> tuple[Shape, ...]:
    points: list[Vector] = [(float(a), float(b), float(c)) for a, b, c in zip(x, y, z, strict=True)]
    ends = zip(points[:-1], points[1:], radius[:-1], radius[1:], strict=True)
    return tuple(capsule(a, b, float(r), float(q)) for a, b, r, q in ends)


def splenomegaly(case: Case) -> bool:
    """Enlarge the spleen beyond 140 mm."""
    if case.gone("spleen"):
        return False
    wanted = case.uniform(LARGE_SPLEEN_MM + 8.0, 195.0)
    asked = wanted
    for _ in range(3):
        shape = spleen_shape(case.rng, case.anatomy.torso, case.body_mm(asked))
        length = case.measured(shape, shape.centre)
        if length > LARGE_SPLEEN_MM + 4.0:
            grown = replace(case.anatomy.part("spleen"), pieces=(shape,))
            return case.accept(Draft(FindingKind.SPLENOMEGALY, "spleen", None, length, (shape,), exchanged=grown))
        asked *= 1.15
    return False


def missing_organ(case: Case) -> bool:
    """Take out a kidney, the spleen or the gallbladder."""
    organs = ["kidney_left", "kidney_right", "spleen", "gallbladder"]
    for i in case.rng.permutation(len(organs)):
        organ = organs[int(i)]
        if case.touched(organ):
            continue
        names = [p.name for p in case.anatomy.parts if p.organ == organ or p.name.endswith(f" of {organ}")]
        place = case.anatomy.part(organ).pieces
        draft = Draft(FindingKind.MISSING_ORGAN, organ, side_of(organ), 0.0, place, removed=tuple(names))
        if case.accept(draft):
            return True
    return False


def vertebral_fracture(case: Case) -> bool:
    """Crush one vertebra to a wedge, most in front."""
    bodies = [v for v in case.anatomy.spine.vertebrae if v.name[0] in "TL" and v.name not in {"T1", "T2", "T3"}]
    least = 1.5 * case.geometry.spacing_mm[0]
    for i in case.rng.permutation(len(bodies))[:8]:
        height_mm = (bodies[int(i)].high - bodies[int(i)].low) * case.frame.scale
        if least < 0.5 * height_mm:
            lost_mm = case.uniform(max(least, 0.25 * height_mm), 0.6 * height_mm)
            if case.accept(_fracture(case, bodies[int(i)], lost_mm)):
                return True
    return False


def _fracture(case: Case, vertebra: Vertebra, lost_mm: float) -> Draft:
    spine, lost = case.anatomy.spine, case.body_mm(lost_mm)
    middle = (vertebra.low + vertebra.high) / 2
    y, depth = spine.y_at(middle), float(spine.half_depth[int(middle - Z_LOW)])
    section, gap = spine.bodies(1.06, None), spine.bodies(1.07, None)

    def endplate(y_at: Floats) -> Floats:
        front = np.clip((y - y_at) * (0.5 / depth) + 0.5, 0.0, 1.0)
        return vertebra.high - lost * (0.3 + 0.7 * front)

    def crushed(x: Floats, y: Floats, z: Floats) -> Bools:
        within: Bools = section(x, y, z) & (z > vertebra.low) & (z < endplate(y))
        return within

    def above(x: Floats, y: Floats, z: Floats) -> Bools:
        within: Bools = gap(x, y, z) & (z >= endplate(y)) & (z < vertebra.high + 1.0)
        return within

    low, high = spine.box(vertebra.low, vertebra.high + 1.0, 28.0, 4.0)
    low, high = (low[0], low[1] - 2.0, low[2]), (high[0], high[1], high[2])
    column, shape = "vertebral_column", Shape(low, high, crushed)
    part = Part("crushed", column, 400.0, (shape,))
    filling = Part("collapsed space", column, 60.0, (Shape(low, high, above),))
    return Draft(
        FindingKind.VERTEBRAL_FRACTURE, column, None, lost_mm, (shape,), (part,), after="marrow", background=(filling,)
    )


MAKERS = (
    (FindingKind.LUNG_NODULE, lung_nodules),
    (FindingKind.PLEURAL_EFFUSION, pleural_effusion),
    (FindingKind.PNEUMOTHORAX, pneumothorax),
    (FindingKind.LIVER_CYST, liver_cysts),
    (FindingKind.LIVER_MASS, liver_mass),
    (FindingKind.KIDNEY_STONE, kidney_stone),
    (FindingKind.KIDNEY_CYST, kidney_cysts),
    (FindingKind.HYDRONEPHROSIS, hydronephrosis),
    (FindingKind.AORTIC_ANEURYSM, aneurysm),
    (FindingKind.SPLENOMEGALY, splenomegaly),
    (FindingKind.MISSING_ORGAN, missing_organ),
    (FindingKind.VERTEBRAL_FRACTURE, vertebral_fracture),
)
"""How each kind is drawn."""
