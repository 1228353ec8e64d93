"""Phantoms as files: DICOM series, NIfTI, label map, truth. The truth never lies beside a series."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from medvl.embedded.parts import Phase
from medvl.embedded.phantom import Phantom, make_phantom, sized
from medvl.embedded.scanner import Acquisition, Region
from medvl.imaging.nifti import RAS_TO_LPS

TRUTH_FILE, LABELS_FILE, NIFTI_FILE = "truth.json", "labels.nii.gz", "ct.nii.gz"
INTERCEPT_HU = -1024

IN_PLANE = {
    "head first supine": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    "head first prone": ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0)),
    "feet first supine": ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    "feet first prone": ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0)),
    "decubitus right": ((0.0, 1.0, 0.0), (-1.0, 0.0, 0.0)),
    "decubitus left": ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0)),
    "feet first decubitus right": ((0.0, -1.0, 0.0), (-1.0, 0.0, 0.0)),
    "feet first decubitus left": ((0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
}
"""Every axial orientation of stored pixels: LPS directions along a row and down a column."""
_POSITIONS = {
    "head first supine": "HFS",
    "head first prone": "HFP",
    "feet first supine": "FFS",
    "feet first prone": "FFP",
    "decubitus right": "HFDR",
    "decubitus left": "HFDL",
    "feet first decubitus right": "FFDR",
    "feet first decubitus left": "FFDL",
}
"""PatientPosition of each orientation: what lies down is what columns run to (PS3.3 C.7.3.1.1.2).

Pixels are turned, the patient is not: the table stays behind the back, and gas in front of fluid.
"""
_BODY_PARTS = {
    Region.CHEST: "CHEST",
    Region.ABDOMEN: "ABDOMEN",
    Region.ABDOMEN_PELVIS: "ABDOMENPELVIS",
    Region.CHEST_ABDOMEN: "CHESTABDOMEN",
    Region.TRUNK: "CHESTABDPELVIS",
}
"""Defined terms of PS3.16, annex L."""
TRANSFER_SYNTAXES = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "rle": RLELossless,
    "jpeg2000": JPEG2000Lossless,
    "jpegls": JPEGLSLossless,
}
"""By short name; all without loss."""
LEAST_SIDE = {"jpeg2000": 32, "jpegls": 2}
"""Pixels along a side of a slice below which a codec refuses it: JPEG 2000 halves it five times."""


def write_series(
    folder: Path,
    phantom: Phantom,
    *,
    orientation: str = "head first supine",
    descending: bool = False,
    transfer_syntax: str = ExplicitVRLittleEndian,
) -> None:
    """Write a phantom as an axial CT series, one file for each slice.

    Parameters
    ----------
    folder
        Made when it is not there.
    orientation
        One of :data:`IN_PLANE`; how the stored pixels lie.
    descending
        Number and name the files from head to feet instead of from feet to head.
    transfer_syntax
        UID: one of the values of :data:`TRANSFER_SYNTAXES`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    slices = phantom.geometry.shape[0]
    series = _identity(phantom, f"{orientation}/{descending}/{transfer_syntax}")
    planes = range(slices - 1, -1, -1) if descending else range(slices)
    for number, plane in enumerate(planes):
        dataset = _slice(phantom, plane, orientation)
        _identify(dataset, series, phantom.truth.seed, number)
        dataset.PatientPosition = _POSITIONS[orientation]
        if transfer_syntax in {ExplicitVRLittleEndian, ImplicitVRLittleEndian}:
            dataset.file_meta.TransferSyntaxUID = transfer_syntax
        else:
            dataset.compress(transfer_syntax, generate_instance_uid=False)
        dataset.save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)


def write_phantom_series(
    folder: Path,
    *,
    seed: int,
    slices: int = 64,
    side: int = 256,
    orientation: str = "head first supine",
    descending: bool = False,
) -> Phantom:
    """Make a phantom of ``slices`` x ``side`` x ``side`` voxels, 320 mm high, and write it as a series; return it."""
    phantom = make_phantom(seed, sized(slices, side))
    write_series(folder, phantom, orientation=orientation, descending=descending)
    return phantom


def write_nifti(path: Path, phantom: Phantom) -> None:
    """Write the HU of a phantom as ``.nii`` or ``.nii.gz``, int16."""
    _save(path, phantom, phantom.hu)


def write_labels(path: Path, phantom: Phantom) -> None:
    """Write the label map of a phantom as ``.nii`` or ``.nii.gz``, uint8; ``truth.json`` names its values."""
    _save(path, phantom, phantom.labels)


def write_truth(folder: Path, phantom: Phantom) -> None:
    """Write what is known of a phantom into a folder, which is made when it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TRUTH_FILE).write_text(phantom.truth.model_dump_json(indent=2) + "\n", "utf-8")


def _save(path: Path, phantom: Phantom, voxels: NDArray[np.int16] | NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # NIfTI's first index is the column, its last the slice.
    affine = RAS_TO_LPS @ phantom.geometry.affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(np.ascontiguousarray(voxels.transpose(2, 1, 0)), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    nibabel.save(image, path)


def _slice(phantom: Phantom, plane: int, orientation: str) -> FileDataset:
    """Return a slice with its pixels and all that says where they lie."""
    along_row, down_column = (np.array(axis) for axis in IN_PLANE[orientation])
    pixels, origin_mm = _stored(phantom, plane, along_row, down_column)
    dataset = _dataset(phantom.acquisition)
    dataset.ImagePositionPatient = [round(float(v), 6) for v in origin_mm]
    dataset.ImageOrientationPatient = [*along_row, *down_column]
    dataset.PixelSpacing = [phantom.geometry.spacing_mm[1]] * 2
    dataset.SliceThickness = phantom.geometry.spacing_mm[0]
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.PixelData = (pixels.astype(np.int32) - INTERCEPT_HU).astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def _stored(
    phantom: Phantom, plane: int, along_row: NDArray[np.float64], down_column: NDArray[np.float64]
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Return the pixels of a slice as they are stored, and the LPS place of the first of them."""
    # On the canonical plane rows run to posterior (+y) and columns to left (+x).
    pixels = phantom.hu[plane] if along_row[0] else phantom.hu[plane].T
    index = np.array([float(plane), 0.0, 0.0])
    for stored_axis, direction in ((1, along_row), (0, down_column)):
        if direction.sum() < 0:
            pixels = np.flip(pixels, stored_axis)
            canonical_axis = 2 if direction[0] else 1
            index[canonical_axis] = phantom.hu.shape[canonical_axis] - 1
    return pixels, phantom.geometry.index_to_lps(index)


def _identity(phantom: Phantom, written: str) -> str:
    """Return what tells this series from every other: patient, grid, and how it is written."""
    return f"{phantom.truth.seed}/{phantom.geometry.to_json_bytes().decode()}/{written}"


def _identify(dataset: FileDataset, series_identity: str, seed: int, number: int) -> None:
    kinds = ("study", "series", "frame", str(number))
    uids = (generate_uid(entropy_srcs=["medvl phantom", series_identity, kind]) for kind in kinds)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID, instance = uids
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = instance
    dataset.PatientName, dataset.PatientID = "PHANTOM^CT", f"PHANTOM-{seed}"
    dataset.InstanceNumber = number + 1


def _dataset(acquisition: Acquisition) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = CTImageStorage
    dataset.PatientBirthDate, dataset.PatientSex = "", ""
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "20260101", "000000", "1", ""
    dataset.ReferringPhysicianName, dataset.Manufacturer, dataset.PositionReferenceIndicator = "", "medvl-sam2", ""
    dataset.Modality, dataset.SeriesNumber, dataset.ConvolutionKernel = "CT", 1, acquisition.kernel.value.upper()
    dataset.ImageType, dataset.KVP, dataset.AcquisitionNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], 120, 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.BodyPartExamined = _BODY_PARTS[acquisition.region]
    if acquisition.phase is not Phase.NATIVE:
        dataset.ContrastBolusAgent = "phantom"
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, INTERCEPT_HU, "HU"
    return dataset
