"""The acquisition: what is scanned, on which grid, with which kernel and noise, and the table."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import cv2
import numpy as np
from numpy.typing import NDArray

from medvl.embedded.parts import AIR_HU, Phase
from medvl.embedded.torso import SHOULDERS_Z, Z_LOW, Torso
from medvl.imaging.geometry import Geometry

LEAST_HU, MOST_HU = -1024, 3071
Range = tuple[float, float]


class Region(StrEnum):
    """What a scan covers."""

    CHEST = "chest"
    ABDOMEN = "abdomen"
    ABDOMEN_PELVIS = "abdomen and pelvis"
    CHEST_ABDOMEN = "chest and abdomen"
    TRUNK = "trunk"
    """From chest to pelvis."""


class Kernel(StrEnum):
    """Reconstruction kernels: they shape edges and noise alike."""

    SMOOTH = "smooth"
    STANDARD = "standard"
    SHARP = "sharp"


_REGIONS: dict[Region, tuple[Range, Range]] = {
    Region.CHEST: ((438.0, 462.0), (250.0, 330.0)),
    Region.ABDOMEN: ((285.0, 310.0), (200.0, 270.0)),
    Region.ABDOMEN_PELVIS: ((150.0, 190.0), (330.0, 400.0)),
    Region.CHEST_ABDOMEN: ((355.0, 385.0), (300.0, 400.0)),
    Region.TRUNK: ((285.0, 300.0), (610.0, 630.0)),
}
"""Middle along z of the body frame, and extent, millimetres."""
_LARGEST_OFFSET_MM = 18.0
_TABLE_GAP_MM, _TABLE_THICKNESS_MM, _SHELL_MM = 6.0, 34.0, 2.5
_TABLE_HU, _FOAM_HU = -250.0, -960.0


@dataclass(frozen=True)
class Protocol:
    """Ranges that an acquisition is drawn from; equal ends fix a value.

    Attributes
    ----------
    slices, spacing_mm
        Slices and their distance. The extent that is asked for gives way where these ranges cannot reach it.
    side, pixel_mm
        Rows and columns, and their spacing: as wide as the patient needs it. None: what gives a field of view of
        295 to 385 mm.
    extent_mm
        Bounds of what is covered along the patient.
    noise_hu
        Standard deviation in the finished image.
    tilt_deg
        Largest turn of the patient against the table.
    """

    slices: tuple[int, int] = (40, 64)
    spacing_mm: Range = (1.0, 5.0)
    side: int = 256
    pixel_mm: Range | None = None
    extent_mm: Range = (150.0, 400.0)
    noise_hu: Range = (5.0, 20.0)
    tilt_deg: float = 8.0
    regions: tuple[Region, ...] = (Region.CHEST, Region.ABDOMEN, Region.ABDOMEN_PELVIS, Region.CHEST_ABDOMEN)
    """What these slices can cover: the trunk takes more."""
    kernels: tuple[Kernel, ...] = tuple(Kernel)
    phases: tuple[Phase, ...] = (Phase.NATIVE, Phase.ARTERIAL, Phase.PORTAL, Phase.PORTAL)
    """Drawn evenly from this list: most scans of the trunk are portal venous."""


@dataclass(frozen=True, eq=False)
class Acquisition:
    """One scan.

    Attributes
    ----------
    geometry
        The canonical grid along the LPS axes.
    place_mm
        LPS position of the body frame's pivot.
    """

    region: Region
    kernel: Kernel
    phase: Phase
    noise_hu: float
    tilt_deg: float
    geometry: Geometry
    place_mm: NDArray[np.float64] = field(repr=False)


def draw_acquisition(rng: np.random.Generator, protocol: Protocol, torso: Torso, pivot_z: float) -> Acquisition:
    """Draw a scan of a patient.

    Parameters
    ----------
    pivot_z
        Height of the pivot in the body frame.
    """
    region = protocol.regions[int(rng.integers(len(protocol.regions)))]
    kernel = protocol.kernels[int(rng.integers(len(protocol.kernels)))]
    phase = protocol.phases[int(rng.integers(len(protocol.phases)))]
    middles, extents = _REGIONS[region]
    middle = rng.uniform(*middles)
    extent = float(np.clip(rng.uniform(*extents), *protocol.extent_mm))
    slices, spacing = _slices(rng, protocol, extent)
    pixel = _pixel(rng, protocol, torso, middle, extent)
    shape = (slices, protocol.side, protocol.side)
    lengths = np.array([spacing * (slices - 1), pixel * (protocol.side - 1), pixel * (protocol.side - 1)])
    offset = rng.uniform(-_LARGEST_OFFSET_MM, _LARGEST_OFFSET_MM, 2) * min(1.0, pixel * protocol.side / 350.0)
    bed = float(rng.uniform(-900.0, 300.0))
    origin = [round(float(v), 3) for v in (-lengths[2] / 2, -lengths[1] / 2, bed)]
    geometry = Geometry(
        shape, (spacing, pixel, pixel), (origin[0], origin[1], origin[2]), ((0, 0, 1), (0, 1, 0), (1, 0, 0))
    )
    place = np.array([offset[0], offset[1] - 8.0, bed + lengths[0] / 2 + pivot_z - middle])
    return Acquisition(
        region, kernel, phase, float(rng.uniform(*protocol.noise_hu)), protocol.tilt_deg, geometry, place
    )


def _slices(rng: np.random.Generator, protocol: Protocol, extent_mm: float) -> tuple[int, float]:
    least, most = protocol.slices
    needed = int(np.ceil(extent_mm / protocol.spacing_mm[1]))
    slices = int(rng.integers(min(max(least, needed), most), most + 1))
    return slices, round(float(np.clip(extent_mm / slices, *protocol.spacing_mm)), 3)


def _pixel(rng: np.random.Generator, protocol: Protocol, torso: Torso, middle_z: float, extent_mm: float) -> float:
    ends = protocol.pixel_mm or (1.15 * 256 / protocol.side, 1.5 * 256 / protocol.side)
    low, high = middle_z - extent_mm / 2, min(middle_z + extent_mm / 2, SHOULDERS_Z)
    width = 2.0 * float(torso.skin.half_width[max(int(low - Z_LOW), 0) : int(high - Z_LOW)].max())
    return round(float(np.clip(width * rng.uniform(1.03, 1.2) / protocol.side, *ends)), 4)


def image(rng: np.random.Generator, hu: NDArray[np.float32], acquisition: Acquisition) -> NDArray[np.int16]:
    """Return what the scanner makes of densities: partial volume, blur and noise of the kernel, rounded.

    Parameters
    ----------
    hu
        float32 [D, R, C] with sharp edges; overwritten.

    Returns
    -------
    int16 [D, R, C].
    """
    _blur_along_z(hu, acquisition.geometry.spacing_mm[0])
    kernel = _kernel_of(acquisition.kernel)
    gain = np.float32(acquisition.noise_hu / float(np.sqrt((kernel**2).sum())))
    row, column = _separated(acquisition.kernel)
    found = np.empty(hu.shape, np.int16)
    noisy = np.empty(hu.shape[1:], np.float32)
    for plane, out in zip(hu, found, strict=True):
        rng.standard_normal(dtype=np.float32, out=noisy)
        noisy *= gain
        noisy += plane
        wide = cv2.sepFilter2D(noisy, -1, row, column, borderType=cv2.BORDER_REPLICATE)
        if acquisition.kernel is Kernel.SHARP:
            wide = np.float32(1 + _EDGE) * noisy - np.float32(_EDGE) * wide
        np.clip(np.rint(wide, out=wide), LEAST_HU, MOST_HU, out=wide)
        out[:] = wide
    return found


_SIGMAS = {Kernel.SMOOTH: 1.0, Kernel.STANDARD: 0.65, Kernel.SHARP: 0.9}
"""Pixels; of the sharp kernel the width of what is taken away."""
_EDGE = 0.45
"""Share of the blurred image that the sharp kernel takes away."""


def _separated(kernel: Kernel) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    one = cv2.getGaussianKernel(7, _SIGMAS[kernel], cv2.CV_32F)
    return one, one


def _kernel_of(kernel: Kernel) -> NDArray[np.float64]:
    one = np.asarray(_separated(kernel)[0], np.float64)
    full: NDArray[np.float64] = one @ one.T
    if kernel is Kernel.SHARP:
        full = -_EDGE * full
        full[3, 3] += 1 + _EDGE
    return full


def _blur_along_z(hu: NDArray[np.float32], spacing_mm: float) -> None:
    """Mix each slice with its neighbours, as slices of the thickness of their distance do."""
    share = np.float32(np.clip(0.03 * spacing_mm, 0.0, 0.12))
    before = hu[0].copy()
    for d in range(1, len(hu) - 1):
        mixed = before + hu[d + 1]
        mixed *= share
        np.copyto(before, hu[d])
        hu[d] *= 1 - 2 * share
        hu[d] += mixed


def add_table(hu: NDArray[np.float32], outside: NDArray[np.bool_], geometry: Geometry, back_mm: float) -> None:
    """Put the table under a patient whose back reaches to ``back_mm`` (LPS y), where there is air: a shell of foam."""
    y = geometry.origin_mm[1] + geometry.spacing_mm[1] * np.arange(geometry.shape[1])[:, None]
    x = geometry.origin_mm[0] + geometry.spacing_mm[2] * np.arange(geometry.shape[2])[None, :]
    top = back_mm + _TABLE_GAP_MM - 0.00055 * x * x
    depth = y - top
    within = (depth > 0) & (depth < _TABLE_THICKNESS_MM - 0.0012 * x * x) & (np.abs(x) < 215.0)
    core = within & (depth > _SHELL_MM) & (depth < _TABLE_THICKNESS_MM - 0.0012 * x * x - _SHELL_MM)
    rows = slice(int(np.argmax(within.any(axis=1))), None) if within.any() else slice(0, 0)
    plane = np.where(core, np.float32(_FOAM_HU), np.float32(_TABLE_HU))[rows]
    np.copyto(hu[:, rows], plane, where=outside[:, rows] & within[rows])


__all__ = ["AIR_HU", "Acquisition", "Kernel", "Protocol", "Region", "add_table", "draw_acquisition", "image"]
