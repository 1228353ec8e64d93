"""CT volumes from NIfTI files (.nii, .nii.gz), whose RAS millimetres become LPS."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from medvl.contracts.errors import CorruptFile, GeometryRefused, MixedSeries, NotCt
from medvl.imaging.geometry import Triple
from medvl.imaging.slices import Slices, check_size, to_hu

SUFFIXES = (".nii", ".nii.gz")
FORM_TOLERANCE = 0.1
"""Part of the smallest voxel by which the corners of the volume may differ between sform and qform."""
_MM_PER_UNIT = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MAX_DEFLATE_RATIO = 1032  # zlib's documented limit
_CHUNK_BYTES = 2**20
_UNREADABLE = (
    ImageFileError, HeaderDataError, WrapStructError, OSError, EOFError, ValueError, OverflowError, zlib.error,
)  # fmt: skip
_DAMAGED = "The NIfTI file is truncated or damaged: copy it again."


def is_nifti(path: Path) -> bool:
    """Whether the name of a file says that it is NIfTI."""
    return path.name.lower().endswith(SUFFIXES)


def read_nifti(path: Path) -> Slices:
    """Read a NIfTI file as slices along its third axis; the second is the rows', the first the columns'.

    Values are taken to be HU after scl_slope and scl_inter, rounded to whole HU and clipped to int16.

    Parameters
    ----------
    path
        An existing file.

    Raises
    ------
    CorruptFile
        When it is damaged or holds values that are not finite.
    GeometryRefused
        When it does not say, or says twice differently, where its voxels lie.
    NotCt, MixedSeries, TooFewSlices, SeriesTooLarge
    """
    with _open(path) as file:
        try:
            image = _kind(path).from_stream(file)
            shape = _shape(image, path)
            affine = _affine(image.header, shape)
            stored = np.asarray(image.dataobj.get_unscaled()).reshape(shape)
            while file.read(_CHUNK_BYTES):  # to the end, where gzip keeps its checksum
                pass
        except _UNREADABLE:
            raise CorruptFile(_DAMAGED) from None
    return _slices(path, affine, _to_hu(stored, float(image.dataobj.slope), float(image.dataobj.inter)))


def _kind(path: Path) -> Any:
    """Return nibabel's class for the header of a file; refuse what is not one NIfTI file."""
    kind = type(nib.load(path))
    if not issubclass(kind, nib.Nifti1Image):
        raise CorruptFile("The file is not a NIfTI file in spite of its name: pass .nii or .nii.gz.")
    return kind


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    if path.name.lower().endswith(".gz"):
        with gzip.open(path, "rb") as file:
            yield cast("IO[bytes]", file)
    else:
        with path.open("rb") as file:
            yield file


def _shape(image: Any, path: Path) -> tuple[int, int, int]:
    """Return i, j, k after the checks that need no voxels."""
    claimed = tuple(int(n) for n in image.header.get_data_shape())
    dtype = image.header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise NotCt("The NIfTI file holds colours or complex numbers, not HU: pass a CT volume.")
    if len(claimed) < 3:
        claimed = (*claimed, *(1,) * (3 - len(claimed)))
    if math.prod(claimed[3:]) != 1:
        raise MixedSeries("The NIfTI file holds several volumes: pass a file with one of them.")
    i, j, k = claimed[:3]
    check_size(min(i, j, k), *sorted((i, j, k))[1:])
    available = path.stat().st_size * (_MAX_DEFLATE_RATIO if path.name.lower().endswith(".gz") else 1)
    if i * j * k * dtype.itemsize > available:
        raise CorruptFile(_DAMAGED)
    return i, j, k


def _affine(header: Any, shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Return 4 x 4 from (i, j, k, 1) to LPS millimetres, out of sform, else qform."""
    forms = [header.get_sform(coded=True), header.get_qform(coded=True)]
    coded = [np.asarray(matrix, np.float64) for matrix, code in forms if code]
    if not coded:
        raise GeometryRefused("The NIfTI file does not say where it lies (sform and qform codes are 0): set one.")
    units = header.get_xyzt_units()[0]
    if units not in _MM_PER_UNIT:
        raise GeometryRefused("The NIfTI file has a unit of length that is not known: use millimetres.")
    if not all(np.isfinite(matrix).all() for matrix in coded) or abs(np.linalg.det(coded[0][:3, :3])) < 1e-12:
        raise GeometryRefused("The NIfTI file has an affine that maps no volume: set its sform again.")
    if len(coded) == 2:
        _check_agreement(coded[0], coded[1], shape)
    scale = np.diag([_MM_PER_UNIT[units]] * 3 + [1.0])
    return cast("NDArray[np.float64]", _RAS_TO_LPS @ scale @ coded[0])


def _check_agreement(sform: NDArray[np.float64], qform: NDArray[np.float64], shape: tuple[int, int, int]) -> None:
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
    apart = (sform - qform)[:3, :3] @ corners + (sform - qform)[:3, 3:]
    farthest = float(np.linalg.norm(apart, axis=0).max())
    if farthest > FORM_TOLERANCE * float(np.linalg.norm(sform[:3, :3], axis=0).min()):
        raise GeometryRefused(
            f"The NIfTI file's sform and qform disagree by up to {farthest:.2f} of its units of length, "
            "so its place in the patient is unknown: remove the wrong one."
        )


def _to_hu(stored: NDArray[Any], slope: float, intercept: float) -> NDArray[np.int16]:
    """Return voxels stored as [i, j, k] in HU as [k, j, i]."""
    i, j, k = stored.shape
    hu = np.empty((k, j, i), np.int16)
    for index in range(k):
        plane = stored[..., index].T
        if plane.dtype.kind == "f" and not np.isfinite(plane).all():
            raise CorruptFile("The NIfTI file holds values that are not finite numbers: replace them by HU.")
        hu[index] = to_hu(plane, slope, intercept)
    return hu


def _slices(path: Path, affine: NDArray[np.float64], hu: NDArray[np.int16]) -> Slices:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    columns, rows = (affine[:3, axis] / lengths[axis] for axis in (0, 1))
    return Slices(
        hu=hu,
        positions_mm=affine[:3, 3] + np.arange(len(hu))[:, None] * affine[:3, 2],
        row_axis=cast("Triple", tuple(rows)),
        column_axis=cast("Triple", tuple(columns)),
        spacing_mm=(float(lengths[1]), float(lengths[0])),
        files=(path,),
    )
