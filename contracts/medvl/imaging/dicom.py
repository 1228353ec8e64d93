"""One CT series from DICOM files: which files belong to it, where each slice lies, and its voxels in HU.

Positions come from ImagePositionPatient projected on the slices' normal, never from instance numbers or thickness.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    MediaStorageDirectoryStorage,
)

from medvl.contracts.errors import (
    CorruptFile,
    EmptySeries,
    GeometryRefused,
    MixedSeries,
    NotCt,
    SeriesTooLarge,
    TooFewSlices,
)
from medvl.imaging.policy import FindingAction, FindingKind, GeometryFinding
from medvl.imaging.stack import AIR_HU, SliceStack, along_normal

MIN_SLICES = 3
"""Fewer are no volume: spacing could not be checked against itself."""
MAX_VOXELS = 2**30
"""Of one series: 2 GiB as int16."""
_NEVER_WITHOUT_PIXELS = ("", CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
"""SOP classes that are images; the empty one is that of a file that ends before it says its own."""
_INT16 = np.iinfo(np.int16)
_ORIENTATION_TOLERANCE = 1e-3
_THREADS = 4


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """A series with its slices in ascending order along their normal.

    Attributes
    ----------
    stack
        The slices.
    files
        The file of each slice; one file over and over for an enhanced multi-frame series.
    frames
        The frame of each slice in its file, counted from 0.
    findings
        What was unusual about the files and their pixels.
    """

    stack: SliceStack
    files: tuple[Path, ...]
    frames: tuple[int, ...]
    findings: tuple[GeometryFinding, ...]


@dataclass(frozen=True, eq=False)
class _Frame:
    """One slice before its pixels are decoded."""

    path: Path
    dataset: Dataset
    index: int
    position_mm: NDArray[np.float64]
    orientation: NDArray[np.float64]
    """float64 [2, 3]: directions along a row (the column index grows) and down a column."""
    spacing_mm: tuple[float, float]
    slope: float
    intercept: float


def read_dicom(paths: Sequence[Path]) -> DicomSeries:
    """Read one CT series.

    Parameters
    ----------
    paths
        Files in any order; those that are not DICOM are left out.

    Raises
    ------
    SeriesError
        When the files are not exactly one whole CT series of at least :data:`MIN_SLICES` slices.
    GeometryRefused
        When a slice does not say where it lies, or slices differ in size, spacing or orientation.
    """
    with warnings.catch_warnings():
        # Values that break their type are common in real series; those that matter are checked here.
        warnings.simplefilter("ignore")
        images, ignored = _series_of(_datasets(paths))
        frames = _ordered([frame for path, dataset in images for frame in _frames(path, dataset)])
        hu, padded = _pixels(frames)
    first = frames[0]
    stack = SliceStack(
        hu=hu,
        positions_mm=np.stack([f.position_mm for f in frames]),
        row_axis=first.orientation[1],
        column_axis=first.orientation[0],
        spacing_mm=first.spacing_mm,
    )
    findings = tuple(_findings(ignored, padded, first.dataset))
    return DicomSeries(stack, tuple(f.path for f in frames), tuple(f.index for f in frames), findings)


def _datasets(paths: Sequence[Path]) -> list[tuple[Path, Dataset]]:
    found = []
    for path in paths:
        dataset = _dataset(path)
        if dataset is not None and _sop_class(dataset) != MediaStorageDirectoryStorage:
            found.append((path, dataset))
    if not found:
        raise EmptySeries("There is no DICOM file: name a folder with the files of one CT series, or a NIfTI file.")
    return found


def _dataset(path: Path) -> Dataset | None:
    """Return the data set of a file, or None when it is not DICOM."""
    try:
        meta = read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise CorruptFile("A file is deflated, which can inflate to any size: convert it to another syntax.")
        dataset = dcmread(path)
        dataset.get("SeriesInstanceUID")
        if "PixelData" not in dataset and _sop_class(dataset) in _NEVER_WITHOUT_PIXELS:
            raise CorruptFile("A DICOM file ends before its pixels: fetch the series again.")
    except InvalidDicomError:
        return None
    except CorruptFile:
        raise
    except Exception as error:  # a damaged file breaks the parser anywhere
        raise CorruptFile("A DICOM file is damaged or cut off: fetch the series again.") from error
    return dataset


def _sop_class(dataset: Dataset) -> str:
    # Some real series lack it in the data set, though the file's own header has it.
    return str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID", ""))


def _is_image(dataset: Dataset) -> bool:
    return "Rows" in dataset and "Modality" in dataset and dataset.Modality not in {"SEG", "RTDOSE", "PR", "KO"}


def _is_localizer(dataset: Dataset) -> bool:
    return "LOCALIZER" in [str(value).upper() for value in dataset.get("ImageType", None) or ()]


def _series_of(found: list[tuple[Path, Dataset]]) -> tuple[list[tuple[Path, Dataset]], int]:
    """Return the images of the one CT series, and how many other objects lie beside them."""
    images = [(path, d) for path, d in found if _is_image(d)]
    ct = [(path, d) for path, d in images if d.Modality == "CT" and not _is_localizer(d)]
    if not ct:
        if any(d.Modality == "CT" for _, d in images):
            raise NotCt("The files hold only localizers: name the folder of a CT series with slices.")
        modalities = ", ".join(sorted({str(d.get("Modality", "unknown")) for _, d in found}))
        raise NotCt(f"The files are {modalities}, not CT: name the folder of a CT series.")
    if any(d.Modality != "CT" for _, d in images):
        raise MixedSeries("The files hold images of several modalities: keep one CT series in the folder.")
    series = len({d.get("SeriesInstanceUID") for _, d in ct})
    if series > 1:
        raise MixedSeries(f"The files belong to {series} CT series: keep one of them in the folder.")
    return ct, len(found) - len(ct)


def _frames(path: Path, dataset: Dataset) -> Iterator[_Frame]:
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence")
    if per_frame is None:
        if int(dataset.get("NumberOfFrames") or 1) > 1:
            raise GeometryRefused("A multi-frame file does not say where its frames lie: the series cannot be loaded.")
        yield _frame(path, dataset, 0, [dataset])
        return
    (shared,) = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
    for index, own in enumerate(per_frame):
        yield _frame(path, dataset, index, [*_macros(own), *_macros(shared), dataset])


def _macros(groups: Dataset) -> Iterator[Dataset]:
    for element in groups:
        if element.VR == "SQ" and len(element.value) == 1:
            yield element.value[0]


def _frame(path: Path, dataset: Dataset, index: int, sources: Sequence[Dataset]) -> _Frame:
    position = _numbers(sources, "ImagePositionPatient", 3)
    orientation = _numbers(sources, "ImageOrientationPatient", 6).reshape(2, 3)
    spacing = _numbers(sources, "PixelSpacing", 2)
    if not (spacing > 0).all():
        raise GeometryRefused("A slice has a PixelSpacing that is not positive: the series cannot be loaded.")
    lengths = np.linalg.norm(orientation, axis=1, keepdims=True)
    if np.abs(lengths - 1).max() > _ORIENTATION_TOLERANCE * 10:
        raise GeometryRefused("A slice has an ImageOrientationPatient without unit vectors: it cannot be loaded.")
    return _Frame(
        path=path,
        dataset=dataset,
        index=index,
        position_mm=position,
        orientation=orientation / lengths,
        spacing_mm=(float(spacing[0]), float(spacing[1])),
        slope=float(_first(sources, "RescaleSlope", 1.0)),
        intercept=float(_first(sources, "RescaleIntercept", 0.0)),
    )


def _first(sources: Sequence[Dataset], keyword: str, default: Any = None) -> Any:  # noqa: ANN401 - any DICOM value
    values = (source.get(keyword) for source in sources)
    return next((value for value in values if value is not None and value != ""), default)


def _numbers(sources: Sequence[Dataset], keyword: str, count: int) -> NDArray[np.float64]:
    value = _first(sources, keyword, ())
    try:
        numbers = np.array([float(v) for v in value], np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise GeometryRefused(f"A slice lacks a whole {keyword}, so its place is not known: it cannot be loaded.")
    return numbers


def _ordered(frames: list[_Frame]) -> list[_Frame]:
    """Return slices in ascending order along their normal, once they fit together."""
    if len(frames) < MIN_SLICES:
        raise TooFewSlices(
            f"A volume needs {MIN_SLICES} slices at least and this series has {len(frames)}: name a whole series."
        )
    first = frames[0]
    for frame in frames:
        if _shape(frame) != _shape(first):
            raise GeometryRefused("The slices differ in rows or columns: the series cannot be loaded.")
        if np.abs(frame.orientation - first.orientation).max() > _ORIENTATION_TOLERANCE:
            raise GeometryRefused("The slices differ in orientation: keep those of one direction.")
        if not np.allclose(frame.spacing_mm, first.spacing_mm, rtol=1e-3):
            raise GeometryRefused("The slices differ in PixelSpacing: the series cannot be loaded.")
    rows, columns = _shape(first)
    if len(frames) * rows * columns > MAX_VOXELS:
        raise SeriesTooLarge(
            f"The series claims {len(frames)} slices of {rows} x {columns}, more than {MAX_VOXELS} voxels: "
            "name a smaller one, or fetch it again if that is not so."
        )
    normal = np.cross(*first.orientation)
    places = along_normal(np.stack([f.position_mm for f in frames]), normal)
    return [frames[i] for i in np.argsort(places, kind="stable")]


def _shape(frame: _Frame) -> tuple[int, int]:
    return int(frame.dataset.Rows), int(frame.dataset.Columns)


def _pixels(frames: Sequence[_Frame]) -> tuple[NDArray[np.int16], int]:
    """Return the voxels int16 [D, R, C] in HU, and how many were padding."""
    hu = np.empty((len(frames), *_shape(frames[0])), np.int16)
    with ThreadPoolExecutor(_THREADS) as pool:
        padded = list(pool.map(lambda number: _decode(frames[number], hu[number]), range(len(frames))))
    return hu, sum(padded)


def _decode(frame: _Frame, plane: NDArray[np.int16]) -> int:
    dataset = frame.dataset
    try:
        array = dataset.pixel_array
    except Exception as error:  # decoders have exceptions of their own
        raise CorruptFile(
            "The pixels of a DICOM file are missing, cut off or in an encoding that cannot be read: fetch it again."
        ) from error
    stored = array[frame.index] if array.ndim == 3 else array
    if stored.shape != plane.shape:
        raise CorruptFile("The pixels of a DICOM file are not one grey value per voxel: it is not a CT slice.")
    padding = _padding(dataset, stored)
    values = stored.astype(np.float64) * frame.slope + frame.intercept
    values[padding] = AIR_HU
    plane[:] = np.rint(values.clip(_INT16.min, _INT16.max))
    return int(np.count_nonzero(padding))


def _padding(dataset: Dataset, stored: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which stored values say "outside the scan"; limits stand in the order of the pixels' own sign."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, np.bool_)
    low, high = _as_stored(dataset, value), _as_stored(dataset, dataset.get("PixelPaddingRangeLimit", value))
    low, high = min(low, high), max(low, high)
    return (stored >= low) & (stored <= high)


def _as_stored(dataset: Dataset, value: Any) -> int:  # noqa: ANN401 - number, or bytes where the type was not known
    number = int.from_bytes(value, "little") if isinstance(value, bytes) else int(value)
    signed = int(dataset.get("PixelRepresentation", 0)) == 1
    return number - 2**16 if signed and number > _INT16.max else number


def _findings(ignored: int, padded: int, dataset: Dataset) -> Iterator[GeometryFinding]:
    if ignored:
        yield GeometryFinding(
            FindingKind.OTHER_OBJECTS,
            ignored,
            "objects",
            FindingAction.IGNORED,
            f"{ignored} other DICOM objects lie beside the series; they were ignored.",
        )
    if padded:
        yield GeometryFinding(
            FindingKind.PIXEL_PADDING,
            padded,
            "voxels",
            FindingAction.SET_TO_AIR,
            f"{padded} voxels are padding outside the scan; they were set to air.",
        )
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        yield GeometryFinding(
            FindingKind.MONOCHROME1,
            1,
            "series",
            FindingAction.IGNORED,
            "The series asks to be shown inverted (MONOCHROME1); that changes no HU and was ignored.",
        )
