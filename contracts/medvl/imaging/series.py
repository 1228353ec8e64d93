"""A CT series from files, on canonical axes, with everything that was unusual about it and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medvl.contracts.errors import EmptySeries, InvalidRequest
from medvl.imaging.dicom import read_dicom
from medvl.imaging.geometry import AxisMap, Geometry
from medvl.imaging.nifti import read_nifti
from medvl.imaging.policy import GeometryFinding, GeometryPolicy
from medvl.imaging.stack import RegularStack, regular
from medvl.imaging.volume import Volume


@dataclass(frozen=True, eq=False)
class Source:
    """Where a volume came from.

    Attributes
    ----------
    kind
        What the files are.
    geometry
        The grid [slice, row, column] of the source, slices in ascending order along the normal of their rows and
        columns.
    axis_map
        Turns arrays on that grid to canonical axes.
    files
        The file of each slice; for NIfTI the one file.
    frames
        DICOM: the frame of each slice in its file, counted from 0.
    resampled
        Whether the geometry policy interpolated: the grid is then not that of the stored pixels.
    slices_reversed
        Whether the file stores its slices against that order, as some NIfTI files do.
    """

    kind: Literal["dicom", "nifti"]
    geometry: Geometry
    axis_map: AxisMap
    files: tuple[Path, ...]
    frames: tuple[int, ...]
    resampled: bool
    slices_reversed: bool = False


@dataclass(frozen=True, eq=False)
class LoadedSeries:
    """A volume on canonical axes, what was found on the way, and its source."""

    volume: Volume
    findings: tuple[GeometryFinding, ...]
    source: Source


def read_series(path: Path | list[Path], policy: GeometryPolicy | str = GeometryPolicy.REJECT) -> LoadedSeries:
    """Read a CT series.

    Parameters
    ----------
    path
        A folder of DICOM files (searched in its sub-folders), one DICOM file, or ``.nii`` or ``.nii.gz``; or the DICOM
        files themselves, for whoever knows them already.
    policy
        What to do about gantry tilt, missing slices and uneven spacing.

    Raises
    ------
    SeriesError
        When the files are not exactly one whole CT series.
    GeometryRefused
        When their geometry cannot be loaded, or the policy is to reject it.
    """
    policy = GeometryPolicy(policy)
    if isinstance(path, list):
        return _from_dicom(path, policy)
    path = Path(path)
    if not path.exists():
        raise EmptySeries("There is no such file or folder: name a folder of DICOM files or a NIfTI file.")
    if path.name.lower().endswith((".nii", ".nii.gz")):
        stack = read_nifti(path)
        made = regular(stack, policy)
        reversed_ = bool(stack.hu.strides[0] < 0)
        return _loaded(made, (), kind="nifti", files=(path,), frames=(), slices_reversed=reversed_)
    return _from_dicom(sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path], policy)


def _from_dicom(paths: list[Path], policy: GeometryPolicy) -> LoadedSeries:
    if not paths:
        raise EmptySeries("The folder is empty: name a folder with the files of one CT series.")
    series = read_dicom(paths)
    made = regular(series.stack, policy)
    return _loaded(made, series.findings, kind="dicom", files=series.files, frames=series.frames)


def _loaded(made: RegularStack, findings: tuple[GeometryFinding, ...], **source: Any) -> LoadedSeries:  # noqa: ANN401
    geometry, axis_map = made.geometry.canonical()
    volume = Volume(np.ascontiguousarray(axis_map.apply(made.hu)), geometry)
    origin = Source(geometry=made.geometry, axis_map=axis_map, resampled=made.resampled, **source)
    return LoadedSeries(volume, (*findings, *made.findings), origin)


def source_to_lps(loaded: LoadedSeries, xyz: tuple[float, float, float]) -> tuple[float, float, float]:
    """Return LPS millimetres of indices of the source's own grid as viewers show it.

    Parameters
    ----------
    xyz
        DICOM: column, row, slice in ascending order along the normal; NIfTI: i, j, k of the file.

    Raises
    ------
    InvalidRequest
        When the series was resampled: viewers show the stored slices, which are not those of the grid any more.
    """
    if loaded.source.resampled:
        raise InvalidRequest(
            "The series was resampled, so its voxels are not those that viewers show: "
            "give points and boxes in patient coordinates (LPS, mm)."
        )
    column, row, number = xyz
    if loaded.source.slices_reversed:
        number = loaded.source.geometry.shape[0] - 1 - number
    x, y, z = loaded.source.geometry.index_to_lps(np.array([number, row, column]))
    return float(x), float(y), float(z)
