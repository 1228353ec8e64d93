"""How a patient lies in the scanner: a turn, a scale, a place, and a smooth warp that no two patients share.

The body frame is that of the blueprint patient: millimetres, x to the left, y to posterior, z to superior from the
pelvic floor. Patient coordinates are DICOM's (LPS, millimetres).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medvl.embedded.shapes import Floats, Shape, turned
from medvl.imaging.geometry import Geometry

PIVOT = np.array([0.0, 0.0, 300.0])
"""Point of the body frame about which a patient is turned and scaled."""
_TERMS = 2
_WAVELENGTH_MM, _AMPLITUDE_MM = (260.0, 520.0), 3.0
_INVERSIONS = 6


@dataclass(frozen=True, eq=False)
class BodyFrame:
    """The map from patient coordinates to the body frame.

    Attributes
    ----------
    rotation
        From LPS to body axes, [3, 3].
    scale
        Millimetres of the patient per millimetre of the body frame.
    place_mm
        LPS position of :data:`PIVOT`.
    amplitude_mm, wave, phase
        The warp: to each component i of the body position is added the sum over terms t of
        ``amplitude[i, t] * prod over j of sin(wave[i, t, j] * lps[j] + phase[i, t, j])``. Products of functions of one
        coordinate are cheap on a grid.
    """

    rotation: NDArray[np.float64]
    scale: float
    place_mm: NDArray[np.float64]
    amplitude_mm: NDArray[np.float64]
    wave: NDArray[np.float64]
    phase: NDArray[np.float64]

    @property
    def warp_mm(self) -> float:
        """Bound of the warp's displacement along any axis, in the body frame."""
        return float(np.abs(self.amplitude_mm).sum(axis=1).max())

    @property
    def reach_mm(self) -> float:
        """Bound of how far the warp moves anything in the patient."""
        return self.scale * float(np.linalg.norm(np.abs(self.amplitude_mm).sum(axis=1)))

    def to_lps(self, body_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return LPS positions [..., 3] of body positions [..., 3]; undoes the map to a thousandth of a mm."""
        lps = self.unwarped(body_mm)
        for _ in range(_INVERSIONS):
            lps = self.unwarped(body_mm - self._warp(lps))
        return lps

    def unwarped(self, body_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return LPS positions [..., 3] of body positions [..., 3] but for the warp."""
        return np.asarray((body_mm - PIVOT) @ self.rotation * self.scale + self.place_mm)

    def grid(self, geometry: Geometry, box: tuple[slice, slice, slice]) -> tuple[Floats, Floats, Floats]:
        """Return the body coordinates x, y, z, each float32 [d, r, c], of a box of an axis-aligned canonical grid."""
        at = [
            geometry.origin_mm[lps] + geometry.spacing_mm[axis] * np.arange(box[axis].start, box[axis].stop)
            for lps, axis in ((0, 2), (1, 1), (2, 0))
        ]
        x, y, z = self._component(0, at), self._component(1, at), self._component(2, at)
        return x, y, z

    def boxes(self, shapes: Sequence[Shape], geometry: Geometry) -> list[tuple[slice, slice, slice]]:
        """Return for each shape the index ranges (d, r, c) of a grid outside of which there is nothing of it."""
        sides = np.array([(shape.low, shape.high) for shape in shapes]).reshape(-1, 2, 3)
        picks = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
        corners = self.unwarped(sides[:, picks, [0, 1, 2]])[..., ::-1]
        margin = self.warp_mm * self.scale
        low, high = corners.min(axis=1) - margin, corners.max(axis=1) + margin
        origin, spacing = np.array(geometry.origin_mm[::-1]), np.array(geometry.spacing_mm)
        starts = np.clip(np.ceil((low - origin) / spacing), 0, geometry.shape).astype(int)
        stops = np.clip(np.floor((high - origin) / spacing) + 1, 0, geometry.shape).astype(int)
        ends = zip(starts.tolist(), stops.tolist(), strict=True)
        return [(slice(d, e), slice(r, s), slice(c, t)) for (d, r, c), (e, s, t) in ends]

    def _warp(self, lps_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        waves = np.sin(self.wave * lps_mm[..., None, None, :] + self.phase).prod(axis=-1)
        return np.asarray((self.amplitude_mm * waves).sum(axis=-1))

    def _component(self, i: int, at: list[NDArray[np.float64]]) -> Floats:
        offset = PIVOT[i] - float(self.rotation[i] @ self.place_mm) / self.scale
        x, y, z = (self.rotation[i, j] / self.scale * at[j] for j in range(3))
        plane = (x[None, :] + y[:, None] + offset).astype(np.float32)
        total: Floats = plane + z.astype(np.float32)[:, None, None]
        product = np.empty_like(total)
        for t in range(_TERMS):
            x, y, z = (np.sin(self.wave[i, t, j] * at[j] + self.phase[i, t, j]) for j in range(3))
            wave = (self.amplitude_mm[i, t] * y[:, None] * x[None, :]).astype(np.float32)
            total += np.multiply(wave, z.astype(np.float32)[:, None, None], out=product)
        return total


def draw_frame(rng: np.random.Generator, tilt_deg: float, place_mm: NDArray[np.float64]) -> BodyFrame:
    """Draw how a patient lies: turned by at most ``tilt_deg`` about any axis, most about the long one."""
    axis = rng.normal(0.0, [0.5, 0.5, 1.0])
    angles = axis / np.linalg.norm(axis) * rng.uniform(0.0, tilt_deg)
    wavelength = rng.uniform(*_WAVELENGTH_MM, (3, _TERMS, 3))
    return BodyFrame(
        rotation=turned(*(float(a) for a in angles)),
        scale=float(rng.uniform(0.92, 1.08)),
        place_mm=place_mm,
        amplitude_mm=rng.uniform(0.3, 1.0, (3, _TERMS)) * _AMPLITUDE_MM,
        wave=2 * np.pi / wavelength,
        phase=rng.uniform(0.0, 2 * np.pi, (3, _TERMS, 3)),
    )
