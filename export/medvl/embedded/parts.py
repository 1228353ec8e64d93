"""Parts of a phantom in painting order, and the densities that a contrast phase gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from medvl.embedded.shapes import Shape, Vector

AIR_HU = -1000.0
BODY = "body"


class Phase(StrEnum):
    """Contrast phases."""

    NATIVE = "native"
    ARTERIAL = "arterial"
    PORTAL = "portal venous"


@dataclass(frozen=True, eq=False)
class Part:
    """Something of one density.

    Attributes
    ----------
    name
        Of its own within a phantom.
    organ
        The organ whose value it has in the label map.
    hu
        Density.
    pieces
        Shapes that make it; it is painted piece by piece, each within its own box.
    over
        Organs that it may replace; None for all that lies there.
    """

    name: str
    organ: str
    hu: float
    pieces: tuple[Shape, ...]
    over: frozenset[str] | None = None


@dataclass(frozen=True)
class Densities:
    """HU of blood and enhancing tissue in one patient and phase."""

    phase: Phase
    aorta: float
    veins: float
    portal: float
    heart_muscle: float
    liver: float
    liver_veins: float
    spleen: float
    cortex: float
    medulla: float
    muscle: float
    bowel: float
    pancreas: float
    fat: float
    urine: float
    lung: float


_BY_PHASE = {
    Phase.NATIVE: Densities(
        phase=Phase.NATIVE, aorta=42, veins=42, portal=42, heart_muscle=48, liver=60, liver_veins=42, spleen=50,
        cortex=37, medulla=35, muscle=54, bowel=34, pancreas=42, fat=-103, urine=4, lung=-835,
    ),
    Phase.ARTERIAL: Densities(
        phase=Phase.ARTERIAL, aorta=320, veins=90, portal=95, heart_muscle=110, liver=72, liver_veins=70, spleen=125,
        cortex=185, medulla=95, muscle=58, bowel=60, pancreas=100, fat=-103, urine=5, lung=-835,
    ),
    Phase.PORTAL: Densities(
        phase=Phase.PORTAL, aorta=160, veins=145, portal=170, heart_muscle=120, liver=112, liver_veins=160, spleen=125,
        cortex=190, medulla=170, muscle=62, bowel=75, pancreas=95, fat=-103, urine=6, lung=-835,
    ),
}  # fmt: skip
"""Typical values; each patient's vary around them."""
_LEAST_LIVER_HU = 48.0


def draw_densities(rng: np.random.Generator, phase: Phase) -> Densities:
    """Draw the densities of a patient: more or less contrast, now and then a fatty liver."""
    base = _BY_PHASE[phase]
    strength = float(rng.uniform(0.88, 1.15))
    blood = ("aorta", "veins", "portal", "spleen", "cortex", "medulla")
    values = {name: getattr(base, name) * (1.0 if phase is Phase.NATIVE else strength) for name in blood}
    fatty = 18.0 if rng.random() < 0.12 else 0.0
    liver = max(base.liver + float(rng.normal(0.0, 5.0)) - fatty, _LEAST_LIVER_HU)
    soft = {name: getattr(base, name) + float(rng.normal(0.0, 3.0)) for name in ("muscle", "bowel", "pancreas", "fat")}
    return replace(base, **values, **soft, liver=liver, lung=base.lung + float(rng.uniform(-45.0, 45.0)))


def near(rng: np.random.Generator, values: Sequence[float], share: float = 0.07) -> Vector:
    """Return three values, each varied by about a share of itself, at most twice that."""
    a, b, c = (float(v) * (1 + share * float(np.clip(rng.normal(), -2, 2))) for v in values)
    return a, b, c


def moved(rng: np.random.Generator, point: Vector, by_mm: float = 4.0) -> Vector:
    """Return a point moved by about ``by_mm`` along each axis, at most twice that."""
    x, y, z = (float(v) + by_mm * float(np.clip(rng.normal(), -2, 2)) for v in point)
    return x, y, z


def lumpy(rng: np.random.Generator, wavelength_mm: float, depth: float, count: int = 3) -> list[tuple[Vector, float]]:
    """Return waves for :func:`medvl.embedded.shapes.blob`, of random directions."""
    waves: NDArray[np.float64] = rng.normal(size=(count, 3))
    waves *= 2 * np.pi / wavelength_mm / np.linalg.norm(waves, axis=1, keepdims=True)
    return [((float(x), float(y), float(z)), depth / count) for x, y, z in waves]
