"""One CT series from DICOM files: which files belong to it, where each slice lies, and its voxels in HU.

Positions come from ImagePositionPatient projected on the slices' normal, never from instance numbers or thickness.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.encaps import generate_frames
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.multival import MultiValue
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    MediaStorageDirectoryStorage,
    RLELossless,
)

from medvl.contracts.errors import (
    CorruptFile,
    EmptySeries,
    GeometryRefused,
    MedvlError,
    MixedSeries,
    NotCt,
    SeriesTooLarge,
    TooFewSlices,
)
from medvl.imaging.codestream import SYNTAXES, FrameSize, claimed_sizes
from medvl.imaging.identity import check_one_identity, patient_and_study
from medvl.imaging.policy import FindingAction, FindingKind, GeometryFinding
from medvl.imaging.stack import AIR_HU, SliceStack, along_normal

MIN_SLICES = 3
"""Fewer are no volume: spacing could not be checked against itself."""
MAX_VOXELS = 2**30
"""Of one series: 2 GiB as int16."""
_NEVER_WITHOUT_PIXELS = ("", CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
"""SOP classes that are images; the empty one is that of a file that ends before it says its own."""
_NO_IMAGES_OF_A_PATIENT = ("SEG", "RTDOSE", "PR", "KO")
"""Modalities of objects that may have rows, but lie beside a series only."""
_UNITS = ("HU", "US")
"""Of RescaleType: Hounsfield units, and "unspecified", which some scanners write for the same."""
_INT16 = np.iinfo(np.int16)
_ORIENTATION_TOLERANCE = 1e-3
_THREADS = 4
_RUST = "pyo3_runtime"
"""Module of what a decoder in Rust raises when it panics; it is no Exception, and nothing can be imported from it."""


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
class _File:
    """A DICOM file, and what tells whether it belongs to the series."""

    path: Path
    dataset: Dataset
    modality: str
    is_image: bool
    is_localizer: bool
    series: str
    frame_of_reference: str
    """Empty where the file does not say it."""
    identity: Mapping[str, str]
    """Patient and study, by keyword."""


@dataclass(frozen=True, eq=False)
class _Frame:
    """One slice before its pixels are decoded."""

    path: Path
    dataset: Dataset
    index: int
    shape: tuple[int, int]
    """Rows and columns."""
    position_mm: NDArray[np.float64]
    orientation: NDArray[np.float64]
    """float64 [2, 3]: directions along a row (the column index grows) and down a column."""
    spacing_mm: tuple[float, float]
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    """The lowest and the highest stored value that say "outside the scan"."""


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
    OSError
        When a file cannot be read. That says nothing about the series: the same call may succeed later.
    """
    with warnings.catch_warnings():
        # Values that break their type are common in real series; those that matter are checked here.
        warnings.simplefilter("ignore")
        images, ignored = _series_of(_files(paths))
        frames = _ordered([frame for image in images for frame in _frames(image)])
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


@contextmanager
def damaged(sentence: str) -> Iterator[None]:
    """Say that a file is damaged, whatever a parser or decoder raises on it.

    A disk that fails and memory that ends are no damage of the file. OSErrors of pydicom, nibabel and gzip are: they
    have no number.
    """
    try:
        yield
    except (MedvlError, MemoryError):
        raise
    except BaseException as error:  # a damaged file breaks a parser anywhere
        if not isinstance(error, Exception) and type(error).__module__ != _RUST:
            raise
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise CorruptFile(sentence) from error


def _damaged_header(path: Path) -> AbstractContextManager[None]:
    """Say that the header is damaged: its values are parsed when they are used, and need not be of their type."""
    return damaged(f"The header of {path.name} is damaged: fetch the series again.")


def _files(paths: Sequence[Path]) -> list[_File]:
    found = []
    for path in paths:
        dataset = _dataset(path)
        if dataset is None:
            continue
        with _damaged_header(path):
            if _sop_class(dataset) != MediaStorageDirectoryStorage:
                found.append(_file(path, dataset))
    if not found:
        raise EmptySeries("There is no DICOM file: name a folder with the files of one CT series, or a NIfTI file.")
    return found


def _dataset(path: Path) -> Dataset | None:
    """Return the data set of a file, or None when it is not DICOM."""
    with damaged("A DICOM file is damaged or cut off: fetch the series again."):
        try:
            meta = read_file_meta_info(path)
            if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                raise CorruptFile("A file is deflated, which can inflate to any size: convert it to another syntax.")
            dataset = dcmread(path)
        except InvalidDicomError:
            return None
        dataset.get("SeriesInstanceUID")
        if "PixelData" not in dataset and _sop_class(dataset) in _NEVER_WITHOUT_PIXELS:
            raise CorruptFile("A DICOM file ends before its pixels: fetch the series again.")
        return dataset


def _sop_class(dataset: Dataset) -> str:
    # Some real series lack it in the data set, though the file's own header has it.
    return str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID", ""))


def _file(path: Path, dataset: Dataset) -> _File:
    modality = _text(dataset, "Modality")
    return _File(
        path=path,
        dataset=dataset,
        modality=modality,
        is_image="Rows" in dataset and "Modality" in dataset and modality not in _NO_IMAGES_OF_A_PATIENT,
        is_localizer="LOCALIZER" in [value.upper() for value in _texts(dataset, "ImageType")],
        series=_text(dataset, "SeriesInstanceUID"),
        frame_of_reference=_text(dataset, "FrameOfReferenceUID"),
        identity=patient_and_study(dataset),
    )


def _text(dataset: Dataset, keyword: str) -> str:
    """Return the one value of an attribute, empty where it has none."""
    value = dataset.get(keyword)
    if isinstance(value, MultiValue):
        raise TypeError(keyword)
    return str(value or "")


def _texts(dataset: Dataset, keyword: str) -> list[str]:
    """Return the values of an attribute; pydicom gives one of them alone without a list."""
    value = dataset.get(keyword)
    return [str(one) for one in (value if isinstance(value, MultiValue) else [value or ""])]


def _series_of(found: list[_File]) -> tuple[list[_File], int]:
    """Return the images of the one CT series, and how many other objects lie beside them."""
    images = [file for file in found if file.is_image]
    ct = [file for file in images if file.modality == "CT" and not file.is_localizer]
    if not ct:
        if any(file.modality == "CT" for file in images):
            raise NotCt("The files hold only localizers: name the folder of a CT series with slices.")
        modalities = ", ".join(sorted({file.modality or "unknown" for file in found}))
        raise NotCt(f"The files are {modalities}, not CT: name the folder of a CT series.")
    if any(file.modality != "CT" for file in images):
        raise MixedSeries("The files hold images of several modalities: keep one CT series in the folder.")
    series = len({file.series for file in ct})
    if series > 1:
        raise MixedSeries(f"The files belong to {series} CT series: keep one of them in the folder.")
    check_one_identity([file.identity for file in ct])
    if len({file.frame_of_reference for file in ct}) > 1:
        raise MixedSeries(
            "The slices have different frames of reference, so their places cannot be compared: keep those of one."
        )
    return ct, len(found) - len(ct)


def _frames(file: _File) -> list[_Frame]:
    with _damaged_header(file.path):
        return list(_parsed_frames(file.path, file.dataset))


def _parsed_frames(path: Path, dataset: Dataset) -> Iterator[_Frame]:
    claimed = int(dataset.get("NumberOfFrames") or 1)
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence")
    if per_frame is None:
        if claimed > 1:
            raise GeometryRefused("A multi-frame file does not say where its frames lie: the series cannot be loaded.")
        yield _frame(path, dataset, 0, [dataset])
        return
    if len(per_frame) != claimed:
        raise CorruptFile(
            f"{path.name} claims {claimed} frames and describes {len(per_frame)}: fetch the series again."
        )
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
    slope, intercept = _rescale(path, sources)
    return _Frame(
        path=path,
        dataset=dataset,
        index=index,
        shape=(int(dataset.Rows), int(dataset.Columns)),
        position_mm=position,
        orientation=orientation / lengths,
        spacing_mm=(float(spacing[0]), float(spacing[1])),
        slope=slope,
        intercept=intercept,
        padding=_padding_limits(dataset),
    )


def _rescale(path: Path, sources: Sequence[Dataset]) -> tuple[float, float]:
    """Return slope and intercept from stored values to HU; what would lead elsewhere is refused."""
    unit = str(_first(sources, "RescaleType", "HU")).strip().upper()
    if unit not in _UNITS:
        raise NotCt("The values of the slices are not HU, as their RescaleType says: name a CT series in HU.")
    slope, intercept = (_first(sources, f"Rescale{name}") for name in ("Slope", "Intercept"))
    if slope is None or intercept is None:
        raise CorruptFile(
            f"{path.name} lacks RescaleSlope or RescaleIntercept, so its values are not known to be HU: "
            "fetch the series again."
        )
    slope, intercept = float(slope), float(intercept)
    if slope == 0 or not np.isfinite((slope, intercept)).all():
        raise CorruptFile(f"{path.name} has a RescaleSlope or RescaleIntercept that gives no HU: fetch it again.")
    return slope, intercept


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
        if frame.shape != first.shape:
            raise GeometryRefused("The slices differ in rows or columns: the series cannot be loaded.")
        if np.abs(frame.orientation - first.orientation).max() > _ORIENTATION_TOLERANCE:
            raise GeometryRefused("The slices differ in orientation: keep those of one direction.")
        if not np.allclose(frame.spacing_mm, first.spacing_mm, rtol=1e-3):
            raise GeometryRefused("The slices differ in PixelSpacing: the series cannot be loaded.")
    rows, columns = first.shape
    if len(frames) * rows * columns > MAX_VOXELS:
        raise SeriesTooLarge(
            f"The series claims {len(frames)} slices of {rows} x {columns}, more than {MAX_VOXELS} voxels: "
            "name a smaller one, or fetch it again if that is not so."
        )
    normal = np.cross(*first.orientation)
    places = along_normal(np.stack([f.position_mm for f in frames]), normal)
    return [frames[i] for i in np.argsort(places, kind="stable")]


def _pixels(frames: Sequence[_Frame]) -> tuple[NDArray[np.int16], int]:
    """Return the voxels int16 [D, R, C] in HU, and how many were padding."""
    hu = np.empty((len(frames), *frames[0].shape), np.int16)
    datasets = {id(frame.dataset): frame.dataset for frame in frames}
    with ThreadPoolExecutor(_THREADS) as pool:
        # Each file once: the frames of one that share it would each find it undecoded at the same time.
        decoded = dict(zip(datasets, pool.map(_decoded, datasets.values()), strict=True))
        padded = list(pool.map(lambda frame, plane: _fill(plane, frame, decoded[id(frame.dataset)]), frames, hu))
    return hu, sum(padded)


def _decoded(dataset: Dataset) -> NDArray[Any]:
    with damaged(
        "The pixels of a DICOM file are missing, cut off or in an encoding that cannot be read: fetch it again."
    ):
        _check_compressed(dataset)
        # More frames than the file claims would be decoded, too, and of RLE all that its runs add up to, by pydicom.
        plugin = "pylibjpeg" if dataset.file_meta.TransferSyntaxUID == RLELossless else ""
        dataset.pixel_array_options(allow_excess_frames=False, decoding_plugin=plugin)
        array: NDArray[Any] = dataset.pixel_array
    return array


def _check_compressed(dataset: Dataset) -> None:
    """Refuse frames that claim another size than their file: a decoder takes memory for what the frame says.

    RLE says no size: its decoder fills the rows and columns of the file, and refuses what is over.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in SYNTAXES:
        return
    options = as_pixel_options(dataset)
    count, offsets = options["number_of_frames"], options.get("extended_offsets")
    frames = generate_frames(dataset.PixelData, number_of_frames=count, extended_offsets=offsets)
    wanted = FrameSize(dataset.Rows, dataset.Columns, 1)
    for frame in islice(frames, count):
        if claimed_sizes(frame, syntax) != {wanted}:
            raise CorruptFile(
                "The compressed pixels of a DICOM file are not of the rows and columns that it claims, or not one grey "
                "value per voxel: fetch it again."
            )


def _fill(plane: NDArray[np.int16], frame: _Frame, array: NDArray[Any]) -> int:
    """Write the HU of a frame into its plane; return how many voxels were padding."""
    stored = array[frame.index] if array.ndim == 3 else array
    if stored.shape != plane.shape:
        raise CorruptFile("The pixels of a DICOM file are not one grey value per voxel: it is not a CT slice.")
    values = stored.astype(np.float64) * frame.slope + frame.intercept
    padded = 0
    if frame.padding is not None:
        low, high = frame.padding
        outside = (stored >= low) & (stored <= high)
        values[outside] = AIR_HU
        padded = int(np.count_nonzero(outside))
    plane[:] = np.rint(values.clip(_INT16.min, _INT16.max))
    return padded


def _padding_limits(dataset: Dataset) -> tuple[int, int] | None:
    """Return the limits of stored values outside the scan; they stand in the order of the pixels' own sign."""
    value = _first([dataset], "PixelPaddingValue")
    if value is None:
        return None
    limits = _as_stored(dataset, value), _as_stored(dataset, _first([dataset], "PixelPaddingRangeLimit", value))
    return min(limits), max(limits)


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
