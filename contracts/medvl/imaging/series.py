"""One entrance for CT series of either format: a canonical volume, what was unusual, and the way back to the source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from medvl.contracts.errors import InvalidRequest
from medvl.imaging.dicom import read_dicom
from medvl.imaging.geometry import AxisMap, Geometry, Triple
from medvl.imaging.nifti import is_nifti, read_nifti
from medvl.imaging.policy import GeometryFinding, GeometryPolicy
from medvl.imaging.regular_grid import to_regular
from medvl.imaging.volume import Volume


@dataclass(frozen=True, eq=False)
class Source:
    """What a series was read from, and how its grid becomes the canonical one.

    Attributes
    ----------
    kind
        Format of the files.
    geometry
        Grid of the source in LPS millimetres: DICOM slices sorted by position along the normal, rows and columns as
        stored; for NIfTI (i, j, k) the axes k, j, i.
    axis_map
        From arrays on that grid to canonical arrays, and back.
    files
        The file of each slice of a single-frame DICOM series; otherwise the one file.
    resampled
        Whether a policy interpolated the voxels, so that the grid is not that of the stored pixels.
    """

    kind: Literal["dicom", "nifti"]
    geometry: Geometry
    axis_map: AxisMap
    files: tuple[Path, ...]
    resampled: bool


@dataclass(frozen=True, eq=False)
class LoadedSeries:
    """A CT series that is ready to be sent.

    Attributes
    ----------
    volume
        Voxels in HU with canonical axes.
    findings
        What was unusual, and what was done about it.
    source
        Where it came from.
    """

    volume: Volume
    findings: tuple[GeometryFinding, ...]
    source: Source


def read_series(path: Path, policy: GeometryPolicy | str = GeometryPolicy.REJECT) -> LoadedSeries:
    """Read a CT series.

    Parameters
    ----------
    path
        A folder of DICOM files (searched recursively), one multi-frame DICOM file, or one .nii or .nii.gz file.
    policy
        What to do about gantry tilt, missing slices and uneven spacing.

    Raises
    ------
    InvalidRequest
        When there is nothing at the path, or no such policy.
    SeriesError
        When the files are not one readable CT series.
    GeometryRefused
        When the slices do not lie regularly and the policy rejects that, or do not say where they lie.
    """
    chosen = _policy(policy)
    if not path.exists():
        raise InvalidRequest(
            "There is no such file or folder: pass a folder of DICOM files, or a .nii or .nii.gz file."
        )
    kind: Literal["dicom", "nifti"] = "nifti" if path.is_file() and is_nifti(path) else "dicom"
    slices = read_nifti(path) if kind == "nifti" else read_dicom(path)
    regular = to_regular(slices, chosen)
    geometry, axis_map = regular.geometry.canonical()
    return LoadedSeries(
        volume=Volume(axis_map.apply(regular.hu), geometry),
        findings=(*slices.findings, *regular.findings),
        source=Source(kind, regular.geometry, axis_map, slices.files, regular.resampled),
    )


def source_to_lps(loaded: LoadedSeries, xyz: Triple) -> Triple:
    """Return the place of a voxel of the source in LPS millimetres.

    Parameters
    ----------
    loaded
        The series.
    xyz
        Column, row and slice index on ``loaded.source.geometry``, not necessarily whole; i, j, k of a NIfTI file.
    """
    column, row, slice_ = xyz
    x, y, z = (float(v) for v in loaded.source.geometry.index_to_lps(np.array([slice_, row, column])))
    return x, y, z


def _policy(policy: GeometryPolicy | str) -> GeometryPolicy:
    try:
        return GeometryPolicy(policy)
    except ValueError:
        raise InvalidRequest(f"A geometry policy is one of {', '.join(GeometryPolicy)}.") from None
