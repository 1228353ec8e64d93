"""CT series from DICOM files: a folder of slices, or one enhanced multi-frame object."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medvl.contracts.errors import CorruptFile, EmptySeries, MixedSeries, NotCt, SeriesTooLarge
from medvl.imaging.dicom_frames import ENHANCED_CT, FRAME_TAGS, Instance, frames_of
from medvl.imaging.dicom_pixels import read_pixels
from medvl.imaging.geometry import Triple
from medvl.imaging.policy import FindingAction, FindingKind, GeometryFinding
from medvl.imaging.slices import Slices, check_size

CT_CLASSES = ENHANCED_CT | {"1.2.840.10008.5.1.4.1.1.2"}
"""SOP classes of CT images (PS3.4 B.5)."""
MAX_INFLATED_BYTES = 2**29
"""Most bytes that a file in the deflated transfer syntax may become; a megabyte of it can hide gigabytes."""
_SERIES_TAGS = ("SOPClassUID", "Modality", "SeriesInstanceUID", "ImageType", "PhotometricInterpretation", *FRAME_TAGS)
_LOCALIZER_TYPES = frozenset({"LOCALIZER", "SCOUT", "TOPOGRAM"})
_DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
_PREAMBLE_BYTES = 132
_CHUNK_BYTES = 2**16


def read_dicom(path: Path) -> Slices:
    """Read the one CT series of a folder (searched recursively) or of a file.

    Slices are sorted by ImagePositionPatient along the normal of ImageOrientationPatient; InstanceNumber and
    SliceThickness say nothing here. MONOCHROME1 turns only the display round, so HU stay as they are.

    Parameters
    ----------
    path
        An existing folder or file. Files that are not DICOM are passed over; localizers and objects that are not CT
        are too when a CT series lies beside them, with a finding.

    Raises
    ------
    SeriesError
        When there is no readable CT series, or more than one.
    GeometryRefused
        When a slice does not say where it lies.
    """
    instances = _instances(path)
    series, findings = _one_series(instances)
    try:
        frames = frames_of(series)
    except (ValueError, TypeError, AttributeError, NotImplementedError):
        raise CorruptFile("The header of a DICOM file is damaged: copy the series again.") from None
    header = series[0].header
    check_size(len(frames), int(header.Rows), int(header.Columns))
    pixels = read_pixels(frames)
    orientation = frames[0].orientation
    return Slices(
        hu=pixels.hu,
        positions_mm=np.array([frame.position_mm for frame in frames]),
        row_axis=cast("Triple", tuple(orientation[3:])),
        column_axis=cast("Triple", tuple(orientation[:3])),
        spacing_mm=(float(frames[0].spacing_mm[0]), float(frames[0].spacing_mm[1])),
        files=tuple(dict.fromkeys(frame.instance.path for frame in frames)),
        findings=(*findings, *_pixel_findings(series, pixels.padded)),
    )


def _instances(path: Path) -> list[Instance]:
    """Read the headers of every DICOM file, in the order of their names."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    read = (_instance(file, f"file {n} of {len(files)} (in order of name)") for n, file in enumerate(files, 1))
    instances = [instance for instance in read if instance is not None]
    if not files:
        raise EmptySeries("The folder is empty: pass a folder with the DICOM files of one CT series.")
    if not instances:
        what = "The folder holds no DICOM file" if path.is_dir() else "The file is neither DICOM nor NIfTI"
        raise EmptySeries(f"{what}: pass a folder of DICOM files, or one .nii or .nii.gz file.")
    return instances


def _instance(path: Path, label: str) -> Instance | None:
    """Read a header; None for a file that is no DICOM."""
    damaged = CorruptFile(f"DICOM {label} is truncated or damaged: its header cannot be read; copy the series again.")
    try:
        _check_inflated_size(path, label)
        header = dcmread(path, stop_before_pixels=True, specific_tags=list(_SERIES_TAGS))
        meta = header.file_meta
        sop_class = str(header.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or "")
        if not (sop_class or header.get("Modality")):
            raise damaged
    except InvalidDicomError:
        if path.suffix.lower() in _DICOM_SUFFIXES:
            raise damaged from None
        return None
    except (EOFError, OSError, ValueError, TypeError, AttributeError, NotImplementedError, zlib.error):
        raise damaged from None
    return Instance(path, label, header, sop_class, str(meta.get("TransferSyntaxUID") or ""))


def _check_inflated_size(path: Path, label: str) -> None:
    """Refuse a deflated data set that inflates beyond the limit, before pydicom inflates it whole.

    The data set begins somewhere after the file meta information, whose length its first element gives.
    """
    with path.open("rb") as file:
        head = file.read(_PREAMBLE_BYTES + 1024)
        if DeflatedExplicitVRLittleEndian.encode() + b"\0" not in head or head[128:132] != b"DICM":
            return
        meta_bytes = int.from_bytes(head[140:144], "little")
        file.seek(_PREAMBLE_BYTES + 12 + meta_bytes)
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflated_bytes = 0
        while chunk := inflater.unconsumed_tail or file.read(_CHUNK_BYTES):
            inflated_bytes += len(inflater.decompress(chunk, MAX_INFLATED_BYTES // 64))
            if inflated_bytes > MAX_INFLATED_BYTES:
                raise SeriesTooLarge(f"DICOM {label} inflates beyond {MAX_INFLATED_BYTES} bytes: send it uncompressed.")


def _one_series(instances: Sequence[Instance]) -> tuple[list[Instance], list[GeometryFinding]]:
    """Pick the CT series, and say what was passed over."""
    ct = [instance for instance in instances if _is_ct(instance)]
    if not ct:
        raise NotCt(f"The files hold {_modalities(instances)}, not CT images: pass a CT series.")
    slices = [instance for instance in ct if not _is_localizer(instance)]
    if not slices:
        raise NotCt("The files hold only a localizer (scout view), not CT slices: pass the CT series itself.")
    if any(not instance.header.get("SeriesInstanceUID") for instance in slices):
        raise CorruptFile("A DICOM file does not say to which series it belongs: copy the series again.")
    series = {str(instance.header.SeriesInstanceUID) for instance in slices}
    if len(series) > 1:
        raise MixedSeries(f"The folder holds {len(series)} CT series: pass a folder with one of them.")
    if len(slices) > 1 and any(instance.sop_class in ENHANCED_CT for instance in slices):
        raise MixedSeries("The series has several objects, some of them multi-frame: pass one multi-frame file.")
    return slices, _other_objects(instances, slices, len(ct) - len(slices))


def _is_ct(instance: Instance) -> bool:
    modality = instance.header.get("Modality") or "CT"
    return bool(modality == "CT") and (not instance.sop_class or instance.sop_class in CT_CLASSES)


def _is_localizer(instance: Instance) -> bool:
    image_type = instance.header.get("ImageType") or ()
    values = [image_type] if isinstance(image_type, str) else image_type
    return not _LOCALIZER_TYPES.isdisjoint(str(value).upper() for value in values)


def _modalities(instances: Sequence[Instance]) -> str:
    """Return the modalities of objects in words; what is no code of DICOM's form is not repeated."""
    codes = {str(instance.header.get("Modality") or "") for instance in instances}
    known = sorted(code for code in codes if code.isascii() and code.isalnum() and code.isupper() and len(code) <= 16)
    return f"objects of modality {', '.join(known)}" if known else "objects of no known modality"


def _other_objects(instances: Sequence[Instance], slices: Sequence[Instance], localizers: int) -> list[GeometryFinding]:
    others = [instance for instance in instances if instance not in slices and not _is_ct(instance)]
    parts = []
    if others:
        parts.append(f"{len(others)} {_modalities(others)}")
    if localizers:
        parts.append(f"{localizers} localizer images")
    if not parts:
        return []
    sentence = f"Beside the CT series lay other things, which were passed over: {' and '.join(parts)}."
    count = len(others) + localizers
    return [GeometryFinding(FindingKind.OTHER_OBJECTS, count, "objects", FindingAction.IGNORED, sentence)]


def _pixel_findings(series: Sequence[Instance], padded: int) -> list[GeometryFinding]:
    findings = []
    inverted = Counter(str(instance.header.get("PhotometricInterpretation")) for instance in series)["MONOCHROME1"]
    if inverted:
        sentence = "The series asks to be shown inverted (MONOCHROME1); its HU are not inverted."
        findings.append(GeometryFinding(FindingKind.MONOCHROME1, inverted, "files", FindingAction.IGNORED, sentence))
    if padded:
        sentence = f"{padded} voxels of padding outside the scanned field were set to air."
        findings.append(
            GeometryFinding(FindingKind.PIXEL_PADDING, padded, "voxels", FindingAction.SET_TO_AIR, sentence)
        )
    return findings
