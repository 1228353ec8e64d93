"""Findings that are lesions within an organ: nodules, cysts, masses, stones, hydronephrosis."""

from __future__ import annotations

import numpy as np

from medvl.embedded.findings import Case, Draft
from medvl.embedded.parts import BODY, Part, Phase, lumpy
from medvl.embedded.shapes import Shape, blob, turned, union
from medvl.embedded.truth import FindingKind, Side


def _ellipsoid(case: Case, centre: tuple[float, float, float], diameter: float, irregular: float = 0.0) -> Shape:
    a, b = case.uniform(0.82, 1.0), case.uniform(0.82, 1.0)
    r = diameter / 2
    axes = turned(*(float(v) for v in case.rng.uniform(-90.0, 90.0, 3)))
    return blob(centre, (r * a, r * b, r), axes, lumps=lumpy(case.rng, diameter * 0.9, irregular) if irregular else ())


def _skewed(case: Case, low: float, high: float) -> float:
    """Draw a size, the small ones more often."""
    return low + (high - low) * float(case.rng.beta(1.1, 2.2))


def lung_nodules(case: Case) -> bool:
    """Draw one to three nodules in the lungs."""
    least = case.least_mm(6.0)
    if least > 26.0:
        return False
    drawn = [
        _nodule(case, _skewed(case, least, 30.0)) for _ in range(int(case.rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15])))
    ]
    return any(drawn)


def _nodule(case: Case, diameter_mm: float) -> bool:
    side = case.sides()[0]
    organ = f"lung_{side}"
    diameter = case.body_mm(diameter_mm)
    vessels = case.anatomy.part(f"vessels of {organ}").pieces
    centre = case.spot(organ, diameter / 2, over=frozenset(), hiding=vessels)
    if centre is None:
        return False
    shape = _ellipsoid(case, centre, diameter, irregular=0.25)
    part = Part("lung nodule", organ, case.uniform(15.0, 70.0), (shape,), frozenset({organ}))
    size = case.measured(shape, centre)
    return case.accept(
        Draft(FindingKind.LUNG_NODULE, organ, side, size, (shape,), (part,), after=f"vessels of {organ}")
    )


def liver_cysts(case: Case) -> bool:
    """Draw one or two cysts in the liver."""
    least = case.least_mm(10.0)
    if least > 32.0:
        return False
    drawn = [_liver_cyst(case, _skewed(case, least, 50.0)) for _ in range(int(case.rng.integers(1, 3)))]
    return any(drawn)


def _liver_cyst(case: Case, diameter_mm: float) -> bool:
    return _liver_lesion(case, FindingKind.LIVER_CYST, diameter_mm, case.uniform(0.0, 14.0), 0.0)


def liver_mass(case: Case) -> bool:
    """Draw an irregular mass, darker or brighter than the liver."""
    least, liver = case.least_mm(15.0), case.anatomy.densities.liver
    if least > 45.0:
        return False
    native = case.anatomy.densities.phase is Phase.NATIVE
    darker = native or case.rng.random() < 0.6
    # A mass is denser than a cyst, so that the two can be told apart.
    hu = max(liver - case.uniform(24.0, 45.0), 22.0) if darker else liver + case.uniform(38.0, 80.0)
    return _liver_lesion(case, FindingKind.LIVER_MASS, _skewed(case, least, 75.0), hu, 0.45)


def _liver_lesion(case: Case, kind: FindingKind, diameter_mm: float, hu: float, irregular: float) -> bool:
    diameter = case.body_mm(diameter_mm)
    centre = case.spot("liver", diameter / 2, over=frozenset())
    if centre is None:
        return False
    shape = _ellipsoid(case, centre, diameter, irregular)
    part = Part(kind.value, "liver", hu, (shape,), frozenset({"liver"}))
    return case.accept(
        Draft(kind, "liver", None, case.measured(shape, centre), (shape,), (part,), after="portal branches")
    )


def kidney_cysts(case: Case) -> bool:
    """Draw one to three cysts of clearly different sizes in one kidney."""
    least = case.least_mm(12.0)
    side = case.sides()[0]
    if least > 34.0 or case.gone(f"kidney_{side}"):
        return False
    size, drawn = case.uniform(max(least, 22.0), max(least + 8.0, 58.0)), False
    for _ in range(int(case.rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))):
        if size < least:
            break
        made = _kidney_cyst(case, side, size)
        drawn |= made
        size *= case.uniform(0.45, 0.68) if made else 1.0
    return drawn


def _kidney_cyst(case: Case, side: Side, diameter_mm: float) -> bool:
    organ, diameter = f"kidney_{side}", case.body_mm(diameter_mm)
    pelvis = [piece for name in ("sinus", "pelvis") for piece in case.anatomy.part(f"{name} of {organ}").pieces]
    pelvis += [d.place[0] for d in case.drafts if d.kind is FindingKind.HYDRONEPHROSIS and d.organ == organ]
    centre = case.spot(organ, diameter / 2, over=frozenset({BODY}), share=0.3, hiding=pelvis)
    if centre is None:
        return False
    shape = _ellipsoid(case, centre, diameter)
    hu = case.uniform(0.0, 10.0)
    part = Part("kidney cyst", organ, hu, (shape,), frozenset({organ, BODY}))
    size = case.measured(shape, centre)
    return case.accept(
        Draft(FindingKind.KIDNEY_CYST, organ, side, size, (shape,), (part,), after=f"medulla of {organ}")
    )


def hydronephrosis(case: Case) -> bool:
    """Dilate the renal pelvis and calyces of a kidney."""
    for side in case.sides():
        organ = f"kidney_{side}"
        if case.gone(organ) or case.least_mm(20.0) > 40.0:
            continue
        shape, centre = _dilated(case, side)
        part = Part("hydronephrosis", organ, case.anatomy.densities.urine, (shape,), frozenset({organ, BODY}))
        size = case.measured(shape, centre)
        # A stone lies in what is dilated, whichever was drawn first.
        after = f"pelvis of {organ}"
        if case.accept(Draft(FindingKind.HYDRONEPHROSIS, organ, side, size, (shape,), (part,), after, beneath=True)):
            return True
    return False


def _dilated(case: Case, side: Side) -> tuple[Shape, tuple[float, float, float]]:
    x, y, z = case.anatomy.part(f"pelvis of kidney_{side}").pieces[0].centre
    s, swollen = (1.0 if side == "left" else -1.0), case.uniform(0.85, 1.35)
    middle = (x + s * 2.0, y, z)
    pelvis = blob(middle, (15.0 * swollen, 12.0 * swollen, 18.0 * swollen))
    calyces = [
        blob((x + s * across * swollen, y + 3.0, z + up * swollen), (8.5 * swollen, 8.0 * swollen, 9.0 * swollen))
        for across, up in ((9.0, 18.0), (14.0, 2.0), (9.0, -17.0))
    ]
    return union(pelvis, *calyces), middle


def kidney_stone(case: Case) -> bool:
    """Draw a stone in the renal pelvis."""
    least = case.least_mm(5.0, slices=1.4, pixels=3.0)
    if least > 18.0:
        return False
    for side in case.sides():
        organ = f"kidney_{side}"
        if case.gone(organ):
            continue
        pelvis = case.anatomy.part(f"pelvis of {organ}").pieces[0]
        x, y, z = pelvis.centre
        centre = (x, y, z + case.uniform(-4.0, 4.0))
        shape = _ellipsoid(case, centre, case.body_mm(_skewed(case, least, 20.0)), irregular=0.2)
        part = Part("kidney stone", organ, case.uniform(350.0, 1200.0), (shape,), frozenset({organ, BODY}))
        size, after = case.measured(shape, centre), f"pelvis of {organ}"
        if case.accept(Draft(FindingKind.KIDNEY_STONE, organ, side, size, (shape,), (part,), after)):
            case.taken.append((centre, float(np.max(np.subtract(shape.high, shape.low))) / 2))
            return True
    return False
