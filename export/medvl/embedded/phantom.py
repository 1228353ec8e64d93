"""A procedural CT of the trunk with known truth, written as a DICOM series.

Simple on purpose: ellipsoids of plausible place, size and density in a body, with two lesions and noise. All of it
follows from the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medvl.imaging.geometry import Geometry

EXTENT_MM = (320.0, 400.0, 400.0)
"""Height, depth and width of what is scanned."""
AIR_HU, INTERCEPT_HU = -1000.0, -1024
_NOISE_HU = 12.0
_JITTER = 0.04
"""Spread of centres and sizes, as a share of the extent."""


@dataclass(frozen=True)
class _Organ:
    name: str
    hu: float
    centre: tuple[float, float, float]
    """Shares of the extent along superior, posterior and left."""
    radii: tuple[float, float, float]


_ORGANS = (
    _Organ("lung_right", -820.0, (0.78, 0.48, 0.30), (0.22, 0.20, 0.13)),
    _Organ("lung_left", -820.0, (0.78, 0.48, 0.70), (0.22, 0.20, 0.13)),
    _Organ("heart", 60.0, (0.70, 0.38, 0.55), (0.12, 0.11, 0.12)),
    _Organ("liver", 105.0, (0.45, 0.45, 0.33), (0.17, 0.20, 0.17)),
    _Organ("spleen", 115.0, (0.46, 0.60, 0.74), (0.10, 0.08, 0.07)),
    _Organ("stomach", 25.0, (0.44, 0.36, 0.64), (0.10, 0.09, 0.09)),
    _Organ("kidney_right", 150.0, (0.28, 0.62, 0.33), (0.12, 0.07, 0.06)),
    _Organ("kidney_left", 150.0, (0.30, 0.62, 0.67), (0.12, 0.07, 0.06)),
    _Organ("aorta", 220.0, (0.50, 0.60, 0.53), (9.0, 0.03, 0.03)),
    _Organ("vertebral_column", 380.0, (0.50, 0.70, 0.50), (9.0, 0.055, 0.06)),
)
_LESIONS = (
    _Organ("liver_cyst", 5.0, (0.46, 0.42, 0.28), (0.035, 0.035, 0.035)),
    _Organ("lung_nodule", 40.0, (0.80, 0.45, 0.70), (0.025, 0.025, 0.025)),
)
BODY = _Organ("body", 40.0, (0.50, 0.52, 0.50), (9.0, 0.32, 0.42))

IN_PLANE = {
    "head first supine": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    "head first prone": ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0)),
    "feet first supine": ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    "feet first prone": ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0)),
    "decubitus right": ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0)),
    "decubitus left": ((0.0, 1.0, 0.0), (-1.0, 0.0, 0.0)),
    "feet first decubitus right": ((0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
    "feet first decubitus left": ((0.0, -1.0, 0.0), (-1.0, 0.0, 0.0)),
}
"""Every axial orientation of stored pixels: LPS directions along a row and down a column."""


@dataclass(frozen=True, eq=False)
class PhantomTruth:
    """What a phantom holds.

    Attributes
    ----------
    geometry
        The canonical grid (LPS millimetres).
    hu
        int16 [D, R, C], as stored.
    labels
        uint8 [D, R, C], 0 outside; an organ holds its lesions' voxels no more.
    names
        Organ or lesion of each value.
    """

    geometry: Geometry
    hu: NDArray[np.int16]
    labels: NDArray[np.uint8]
    names: dict[int, str]

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Return the voxels of an organ or lesion, bool [D, R, C]."""
        value = next(v for v, n in self.names.items() if n == name)
        voxels: NDArray[np.bool_] = self.labels == value
        return voxels


def make_phantom(seed: int, *, slices: int = 64, side: int = 256) -> PhantomTruth:
    """Return a phantom of ``slices`` x ``side`` x ``side`` voxels, canonical; the seed varies sizes and places."""
    shape = (slices, side, side)
    height, depth, width = (extent / n for extent, n in zip(EXTENT_MM, shape, strict=True))
    geometry = Geometry(shape, (height, depth, width), (-200.0, -200.0, 0.0), ((0, 0, 1), (0, 1, 0), (1, 0, 0)))
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*((np.arange(n) + 0.5) / n for n in shape), indexing="ij", sparse=True)
    hu = np.full(shape, AIR_HU, np.float32)
    labels = np.zeros(shape, np.uint8)
    hu[_inside(BODY, grid, np.zeros(3), 1.0)] = BODY.hu
    names = {}
    for value, organ in enumerate((*_ORGANS, *_LESIONS), 1):
        spread = _JITTER if organ in _ORGANS else _JITTER / 4
        voxels = _inside(organ, grid, rng.normal(0.0, spread / 2, 3), 1.0 + rng.normal(0.0, spread))
        hu[voxels], labels[voxels], names[value] = organ.hu, value, organ.name
    noisy = hu + rng.normal(0.0, _NOISE_HU, shape).astype(np.float32)
    return PhantomTruth(geometry, np.rint(noisy.clip(INTERCEPT_HU, 3071)).astype(np.int16), labels, names)


def write_phantom_series(
    folder: Path,
    *,
    seed: int,
    slices: int = 64,
    side: int = 256,
    orientation: str = "head first supine",
    descending: bool = False,
) -> PhantomTruth:
    """Write a phantom as an axial CT series, one file for each slice, explicit little endian.

    Parameters
    ----------
    folder
        Made when it is not there.
    orientation
        One of :data:`IN_PLANE`; how the stored pixels lie.
    descending
        Number and name the files from head to feet instead of from feet to head.
    """
    truth = make_phantom(seed, slices=slices, side=side)
    along_row, down_column = (np.array(axis) for axis in IN_PLANE[orientation])
    folder.mkdir(parents=True, exist_ok=True)
    planes = range(slices - 1, -1, -1) if descending else range(slices)
    for number, plane in enumerate(planes):
        pixels, origin_mm = _stored(truth, plane, along_row, down_column)
        dataset = _dataset(seed, number, f"{seed}/{slices}/{side}/{orientation}/{descending}")
        dataset.ImagePositionPatient = [round(float(v), 6) for v in origin_mm]
        dataset.ImageOrientationPatient = [*along_row, *down_column]
        dataset.PixelSpacing = [truth.geometry.spacing_mm[1]] * 2
        dataset.SliceThickness = truth.geometry.spacing_mm[0]
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.PixelData = (pixels - INTERCEPT_HU).astype("<u2").tobytes()
        dataset.save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)
    return truth


def _inside(organ: _Organ, grid: Sequence[NDArray[Any]], shift: NDArray[np.float64], scale: float) -> NDArray[np.bool_]:
    terms = zip(grid, organ.centre, shift, organ.radii, strict=True)
    squares = [((axis - centre - moved) / (radius * scale)) ** 2 for axis, centre, moved, radius in terms]
    within: NDArray[np.bool_] = squares[0] + squares[1] + squares[2] < 1.0
    return within


def _stored(
    truth: PhantomTruth, plane: int, along_row: NDArray[np.float64], down_column: NDArray[np.float64]
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Return the pixels of a slice as they are stored, and the LPS place of the first of them."""
    # On the canonical plane rows run to posterior (+y) and columns to left (+x).
    pixels = truth.hu[plane] if along_row[0] else truth.hu[plane].T
    index = np.array([float(plane), 0.0, 0.0])
    for stored_axis, direction in ((1, along_row), (0, down_column)):
        if direction.sum() < 0:
            pixels = np.flip(pixels, stored_axis)
            canonical_axis = 2 if direction[0] else 1
            index[canonical_axis] = truth.hu.shape[canonical_axis] - 1
    return pixels, truth.geometry.index_to_lps(index)


def _dataset(seed: int, number: int, identity: str) -> FileDataset:
    kinds = ("study", "series", "frame", str(number))
    study, series, frame, instance = (generate_uid(entropy_srcs=["medvl phantom", identity, k]) for k in kinds)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, instance
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
    dataset.PatientName, dataset.PatientID = "PHANTOM", f"PHANTOM-{seed}"
    dataset.PatientBirthDate, dataset.PatientSex = "", ""
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "20260101", "000000", "1", ""
    dataset.ReferringPhysicianName, dataset.Manufacturer, dataset.PositionReferenceIndicator = "", "medvl-sam2", ""
    dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = "CT", 1, number + 1
    dataset.ImageType, dataset.KVP, dataset.AcquisitionNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], 120, 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, INTERCEPT_HU, "HU"
    return dataset
