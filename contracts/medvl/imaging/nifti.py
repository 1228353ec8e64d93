"""A CT volume from a NIfTI file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from medvl.contracts.errors import GeometryRefused, NotCt, SeriesTooLarge, TooFewSlices
from medvl.imaging.dicom import MAX_VOXELS, MIN_SLICES, damaged
from medvl.imaging.stack import SliceStack

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""NIfTI's x and y run to the right and to the front, DICOM's the other way; undoes itself."""
_TO_MM = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}
_AGREE_MM = 1e-2
_INT16 = np.iinfo(np.int16)


def read_nifti(path: Path) -> SliceStack:
    """Read a volume; its slices are the planes of the third axis.

    Parameters
    ----------
    path
        ``.nii`` or ``.nii.gz``, values in HU.

    Raises
    ------
    CorruptFile
        When the file is not whole.
    NotCt
        When it holds several volumes or values that no CT has.
    GeometryRefused
        When it does not say, or says in two ways, where its voxels lie.
    TooFewSlices, SeriesTooLarge
        When it is no volume of a size that is served.
    OSError
        When the file cannot be read. That says nothing about the volume: the same call may succeed later.
    """
    with damaged("The NIfTI file is damaged or cut off: fetch it again."), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # nibabel takes a file that it cannot read for one of no format that it knows.
        with path.open("rb") as file:
            file.read(1)
        image: Any = nibabel.load(path)
        _check_shape(image.shape)
        affine = _affine(image.header)
        values = np.asanyarray(image.dataobj).reshape(image.shape[:3])
    return _stack(_hu(values), affine)


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise NotCt(f"The NIfTI file has the shape {list(shape)}: it must hold one 3D volume.")
    if shape[2] < MIN_SLICES:
        raise TooFewSlices(
            f"A volume needs {MIN_SLICES} slices at least and this file has {shape[2]}: name a whole series."
        )
    if int(np.prod(shape[:3], dtype=np.int64)) > MAX_VOXELS:
        raise SeriesTooLarge(
            f"The NIfTI file claims the shape {list(shape)}, more than {MAX_VOXELS} voxels: "
            "name a smaller one, or fetch it again if that is not so."
        )


def _affine(header: Any) -> NDArray[np.float64]:  # noqa: ANN401 - nibabel has no types
    """Return the matrix from indices (i, j, k) to LPS millimetres."""
    sform, qform = (header.get_sform(coded=True), header.get_qform(coded=True))
    coded = [matrix for matrix, code in (sform, qform) if code and matrix is not None]
    if not coded:
        raise GeometryRefused(
            "The NIfTI file does not say where its voxels lie (sform and qform are unset): left and right are unknown."
        )
    if len(coded) > 1:
        corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)
        corners[:, :3] *= np.array(header.get_data_shape()[:3]) - 1
        apart_mm = np.abs(corners @ (coded[0] - coded[1]).T).max()
        if apart_mm > max(_AGREE_MM, 1e-3 * float(np.abs(coded[0]).max())):
            raise GeometryRefused(f"sform and qform of the NIfTI file differ by up to {apart_mm:.1f} mm: correct one.")
    unit = header.get_xyzt_units()[0]
    if unit not in _TO_MM:
        raise GeometryRefused(f"The NIfTI file has the unit {unit}: write it in millimetres.")
    scale = np.diag([_TO_MM[unit]] * 3 + [1.0])
    return np.asarray(RAS_TO_LPS @ scale @ coded[0], np.float64)


def _hu(values: NDArray[Any]) -> NDArray[np.int16]:
    if values.dtype.kind not in "iuf" or (values.dtype.kind == "f" and not np.isfinite(values).all()):
        raise NotCt("The NIfTI file holds values that are not finite numbers: a CT has HU everywhere.")
    hu = np.rint(values.clip(_INT16.min, _INT16.max)).astype(np.int16)
    return np.ascontiguousarray(hu.transpose(2, 1, 0))


def _stack(hu: NDArray[np.int16], affine: NDArray[np.float64]) -> SliceStack:
    axes = affine[:3, :3]
    lengths_mm = np.linalg.norm(axes, axis=0)
    if not np.isfinite(affine).all() or lengths_mm.min() <= 0 or abs(np.linalg.det(axes)) < 1e-9:
        raise GeometryRefused("The NIfTI file has an affine matrix that spans no volume: it cannot be loaded.")
    column_axis, row_axis, _ = (axes / lengths_mm).T
    positions_mm = affine[:3, 3] + np.outer(np.arange(len(hu)), axes[:, 2])
    # Slices may run against the normal of their rows and columns.
    if np.cross(column_axis, row_axis) @ axes[:, 2] < 0:
        hu, positions_mm = hu[::-1], positions_mm[::-1]
    return SliceStack(hu, positions_mm, row_axis, column_axis, (float(lengths_mm[1]), float(lengths_mm[0])))
