"""Parallel slices as they were acquired, and the regular grid that the geometry policy makes of them.

Gantry tilt, missing slices and uneven spacing are told from the slices' positions alone: tags that should announce them
are absent from real series.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from medvl.contracts.errors import GeometryRefused
from medvl.imaging.geometry import ORTHONORMAL_TOLERANCE, Geometry
from medvl.imaging.policy import FindingAction, FindingKind, GeometryFinding, GeometryPolicy

AIR_HU = -1024
"""What lies where no voxel was measured."""
TILT_TOLERANCE_DEGREES = 0.2
"""Decimal strings and rounded positions make up to a tenth of a degree."""
SPACING_TOLERANCE = 0.02
"""Share of the median spacing by which a distance may differ from it."""
_MULTIPLE_TOLERANCE = 0.1
_REMEDY = "choose the geometry policy resample or warn to load it all the same"


@dataclass(frozen=True, eq=False)
class SliceStack:
    """Slices in ascending order along their normal.

    Attributes
    ----------
    hu
        int16 [D, R, C] in HU.
    positions_mm
        float64 [D, 3], LPS of the centre of each slice's voxel [0, 0].
    row_axis, column_axis
        Unit LPS vectors along which the row index and the column index grow.
    spacing_mm
        Distances between rows and between columns.
    """

    hu: NDArray[np.int16]
    positions_mm: NDArray[np.float64]
    row_axis: NDArray[np.float64]
    column_axis: NDArray[np.float64]
    spacing_mm: tuple[float, float]

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector at right angles to the slices; with column and row axis it is right-handed."""
        return np.cross(self.column_axis, self.row_axis).astype(np.float64)


@dataclass(frozen=True, eq=False)
class RegularStack:
    """The slices on a regular grid at right angles, and what was done to bring them there."""

    hu: NDArray[np.int16]
    geometry: Geometry
    findings: tuple[GeometryFinding, ...]
    resampled: bool


def along_normal(positions_mm: NDArray[np.float64], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return where each slice lies along the normal, in millimetres."""
    return positions_mm @ normal


def regular(stack: SliceStack, policy: GeometryPolicy) -> RegularStack:
    """Bring slices to a regular grid, as the policy says.

    Raises
    ------
    GeometryRefused
        When slices share a position, lie scattered, or are irregular and the policy is to reject that.
    """
    if abs(float(stack.row_axis @ stack.column_axis)) > ORTHONORMAL_TOLERANCE:
        raise GeometryRefused("Rows and columns of the slices are not at right angles: the series cannot be loaded.")
    places_mm = along_normal(stack.positions_mm, stack.normal)
    gaps_mm = np.diff(places_mm)
    if (gaps_mm <= 1e-3).any():
        raise GeometryRefused("Two slices lie at the same position: send one series without duplicates.")
    found = [*_tilt(stack, places_mm), *_spacing(gaps_mm)]
    if not found:
        return RegularStack(stack.hu, _grid(stack, float(gaps_mm.mean())), (), resampled=False)
    if policy is GeometryPolicy.REJECT:
        raise GeometryRefused(f"{' '.join(f'{_words(*one)}.' for one in found)[:-1]}: {_REMEDY}.")
    if policy is GeometryPolicy.WARN:
        findings = tuple(_finding(*one, FindingAction.LOADED_AS_REGULAR) for one in found)
        return RegularStack(stack.hu, _grid(stack, float(np.median(gaps_mm))), findings, resampled=False)
    hu, geometry = _resampled(stack, places_mm, float(np.median(gaps_mm)))
    findings = tuple(_finding(*one, FindingAction.RESAMPLED) for one in found)
    return RegularStack(hu, geometry, findings, resampled=True)


_Found = tuple[FindingKind, float, str]


def _tilt(stack: SliceStack, places_mm: NDArray[np.float64]) -> list[_Found]:
    """Return the angle between the normal and the line on which the slices lie."""
    offsets = stack.positions_mm - stack.positions_mm[0]
    sideways = offsets - np.outer(places_mm - places_mm[0], stack.normal)
    slope = sideways[-1] / (places_mm[-1] - places_mm[0])
    scattered_mm = np.abs(sideways - np.outer(places_mm - places_mm[0], slope)).max()
    if scattered_mm > max(stack.spacing_mm):
        raise GeometryRefused(
            f"The slices do not lie on one line, by up to {scattered_mm:.1f} mm: the series cannot be loaded."
        )
    degrees = math.degrees(math.atan(float(np.linalg.norm(slope))))
    return [(FindingKind.GANTRY_TILT, degrees, "degrees")] if degrees > TILT_TOLERANCE_DEGREES else []


def _spacing(gaps_mm: NDArray[np.float64]) -> list[_Found]:
    median_mm = float(np.median(gaps_mm))
    multiples = gaps_mm / median_mm
    odd = np.abs(multiples - 1) > SPACING_TOLERANCE
    if not odd.any():
        return []
    whole = np.rint(multiples[odd])
    if (whole >= 2).all() and (np.abs(multiples[odd] - whole) <= _MULTIPLE_TOLERANCE).all():
        return [(FindingKind.MISSING_SLICES, float((whole - 1).sum()), "slices")]
    return [(FindingKind.UNEVEN_SPACING, float(gaps_mm.max()), "mm")]


def _words(kind: FindingKind, value: float, unit: str) -> str:
    match kind:
        case FindingKind.GANTRY_TILT:
            return f"The gantry was tilted by {value:.1f} {unit}"
        case FindingKind.MISSING_SLICES:
            return f"Slices are missing between the first and the last: {value:.0f}"
        case _:
            return f"The slices are unevenly spaced, with gaps of up to {value:.2f} {unit}"


def _finding(kind: FindingKind, value: float, unit: str, action: FindingAction) -> GeometryFinding:
    done = {
        FindingAction.RESAMPLED: "it was resampled onto a regular grid at right angles",
        FindingAction.LOADED_AS_REGULAR: "it was loaded as if it were regular, so distances are approximate",
    }
    return GeometryFinding(kind, value, unit, action, f"{_words(kind, value, unit)}; {done[action]}.")


def _grid(stack: SliceStack, spacing_mm: float) -> Geometry:
    depth, rows, columns = stack.hu.shape
    first = stack.positions_mm[0]
    return _geometry(stack, (depth, rows, columns), spacing_mm, first)


def _geometry(
    stack: SliceStack, shape: tuple[int, int, int], spacing_mm: float, origin_mm: NDArray[np.float64]
) -> Geometry:
    return Geometry(
        shape=shape,
        spacing_mm=(spacing_mm, *stack.spacing_mm),
        origin_mm=_three(origin_mm),
        direction=(_three(stack.normal), _three(stack.row_axis), _three(stack.column_axis)),
    )


def _resampled(
    stack: SliceStack, places_mm: NDArray[np.float64], spacing_mm: float
) -> tuple[NDArray[np.int16], Geometry]:
    """Move slices back along their planes, on a canvas that holds them all, and blend neighbours linearly."""
    sideways = stack.positions_mm - stack.positions_mm[0]
    shifts = np.stack(
        [sideways @ axis / mm for axis, mm in zip((stack.row_axis, stack.column_axis), stack.spacing_mm, strict=True)]
    )
    low, high = np.floor(shifts.min(axis=1) + 1e-6), np.ceil(shifts.max(axis=1) - 1e-6)
    _, rows, columns = stack.hu.shape
    canvas = (rows + int(high[0] - low[0]), columns + int(high[1] - low[1]))
    moved = [_moved(plane, shift - low, canvas) for plane, shift in zip(stack.hu, shifts.T, strict=True)]
    depth = round((places_mm[-1] - places_mm[0]) / spacing_mm) + 1
    hu = np.empty((depth, *canvas), np.int16)
    for number in range(depth):
        place_mm = min(places_mm[0] + number * spacing_mm, places_mm[-1])
        above = min(max(int(np.searchsorted(places_mm, place_mm)), 1), len(places_mm) - 1)
        weight = float((place_mm - places_mm[above - 1]) / (places_mm[above] - places_mm[above - 1]))
        hu[number] = np.rint(cv2.addWeighted(moved[above - 1], 1 - weight, moved[above], weight, 0.0))
    origin_mm = stack.positions_mm[0] + low[0] * stack.spacing_mm[0] * stack.row_axis
    origin_mm = origin_mm + low[1] * stack.spacing_mm[1] * stack.column_axis
    return hu, _geometry(stack, (depth, *canvas), spacing_mm, origin_mm)


def _moved(plane: NDArray[np.int16], shift: NDArray[np.float64], canvas: tuple[int, int]) -> NDArray[np.float32]:
    """Return a slice float32 moved by a shift (rows, columns) on a canvas filled with air."""
    matrix = np.array([[1.0, 0.0, shift[1]], [0.0, 1.0, shift[0]]])
    moved: NDArray[np.float32] = cv2.warpAffine(
        plane.astype(np.float32), matrix, canvas[::-1], borderMode=cv2.BORDER_CONSTANT, borderValue=AIR_HU
    )
    return moved


def _three(vector: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in vector)
    return x, y, z
