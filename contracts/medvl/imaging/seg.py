"""Masks as a DICOM Segmentation that refers to the slices it was made of."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten

import highdicom
import numpy as np
from highdicom.sr.coding import CodedConcept
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import generate_uid

from medvl.contracts.disclaimer import DISCLAIMER
from medvl.contracts.errors import InvalidRequest
from medvl.imaging.headers import source_header
from medvl.imaging.series import LoadedSeries

_ANATOMY = CodedConcept("123037004", "SCT", "Anatomical Structure")
_TISSUE = CodedConcept("85756007", "SCT", "Tissue")
"""Category and type of what no class names."""
_ABNORMAL = CodedConcept("49755003", "SCT", "Morphologically Abnormal Structure")
_LESION = CodedConcept("52988006", "SCT", "Lesion")
"""Category and type of what a report finds; SNOMED CT calls every abnormal change of a structure a lesion."""
_FAMILY = CodedConcept("123110", "DCM", "Artificial Intelligence")
_LONGEST_LABEL = 64
"""Characters of the value representation LO."""


@dataclass(frozen=True, eq=False)
class Segment:
    """One mask bool [D, R, C] on the canonical grid, its name, and its SNOMED CT code and meaning where known.

    ``finding`` says that it is something abnormal and no anatomy. ``tracking_uid`` is by what other objects know it; it
    is tracked under its name then.
    """

    mask: NDArray[np.bool_]
    label: str
    snomed: tuple[str, str] | None = None
    finding: bool = False
    tracking_uid: str | None = None


@dataclass(frozen=True)
class Maker:
    """What made the masks."""

    software: str
    checkpoint: str
    checkpoint_digest: str
    quantised: str | None = None
    """How the language model is quantised, in words; None where it is the checkpoint's own."""


@dataclass(frozen=True)
class SegUids:
    """Identity of the new object; fresh unless the caller derives it."""

    series: str = field(default_factory=generate_uid)
    instance: str = field(default_factory=generate_uid)


def build_seg(
    loaded: LoadedSeries, segments: Sequence[Segment], maker: Maker, uids: SegUids | None = None
) -> highdicom.seg.Segmentation:
    """Return masks as a binary DICOM SEG on the pixels of the source's own slices.

    Where the geometry policy resampled the series, every stored pixel takes the mask's value nearest to its place.

    Raises
    ------
    InvalidRequest
        When the source is not DICOM, is several multi-frame objects, or is a resampled one.
    """
    if loaded.source.kind != "dicom":
        raise InvalidRequest("A DICOM SEG needs a DICOM source: write the masks as NIfTI.")
    uids = uids or SegUids()
    with warnings.catch_warnings():
        # highdicom remarks on values of the source that are no part of the result.
        warnings.simplefilter("ignore")
        images, order = _source_images(loaded)
        planes = np.stack([_on_source(loaded, segment.mask, images)[order] for segment in segments], axis=-1)
        return highdicom.seg.Segmentation(
            source_images=images,
            pixel_array=planes.astype(np.uint8),
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_description(n, s, maker) for n, s in enumerate(segments, 1)],
            series_instance_uid=uids.series,
            series_number=9000,
            sop_instance_uid=uids.instance,
            instance_number=1,
            manufacturer="medvl-sam2",
            manufacturer_model_name=maker.checkpoint,
            software_versions=maker.software,
            device_serial_number=maker.checkpoint_digest[:16],
            content_description=DISCLAIMER[:_LONGEST_LABEL],
            series_description="MedVL-SAM2 segmentation, not for diagnosis",
            specific_character_set="ISO_IR 192",
        )


def _source_images(loaded: LoadedSeries) -> tuple[list[Dataset], NDArray[np.intp]]:
    """Return the headers that the SEG refers to, and the slice of the source grid that each plane of it is."""
    source = loaded.source
    slice_mm = round(source.geometry.spacing_mm[0], 6)
    headers = [_header(path, slice_mm) for path in dict.fromkeys(source.files)]
    _give_study(headers)
    if len(headers) == 1:
        return headers, np.argsort(source.frames)
    if any("PerFrameFunctionalGroupsSequence" in header for header in headers):
        raise InvalidRequest("The series is several multi-frame objects: write the masks as NIfTI.")
    return headers, np.arange(len(source.files))


def _give_study(headers: Sequence[Dataset]) -> None:
    """Give a series without a study one that follows from its first instance: a SEG has to name one (type 1)."""
    study = headers[0].get("StudyInstanceUID") or generate_uid(entropy_srcs=["study", headers[0].SOPInstanceUID])
    for header in headers:
        header.StudyInstanceUID = study


def frame_of_reference(header: Dataset) -> str:
    """Return the frame of reference that a SEG of a series has; real series lack one, which is derived then."""
    return str(header.get("FrameOfReferenceUID") or generate_uid(entropy_srcs=[str(header.get("SeriesInstanceUID"))]))


def _header(path: Path, slice_mm: float) -> Dataset:
    header = source_header(path)
    # highdicom needs them; real series lack one or the other.
    header.FrameOfReferenceUID = frame_of_reference(header)
    if header.get("SliceThickness") is None:
        header.SliceThickness = slice_mm
    return header


def _on_source(loaded: LoadedSeries, mask: NDArray[np.bool_], images: Sequence[Dataset]) -> NDArray[np.bool_]:
    """Return a canonical mask on the stored pixels, bool [slice, row, column]."""
    source = loaded.source
    if not source.resampled:
        return np.ascontiguousarray(source.axis_map.invert(mask))
    if len(images) != len(source.files):
        raise InvalidRequest("The resampled series is one multi-frame object: write the masks as NIfTI.")
    return np.stack([_sampled(loaded, mask, image) for image in images])


def _sampled(loaded: LoadedSeries, mask: NDArray[np.bool_], image: Dataset) -> NDArray[np.bool_]:
    """Return the mask's values nearest to the pixels of one slice, False where it does not reach."""
    along_row, down_column = np.array(image.ImageOrientationPatient, float).reshape(2, 3)
    row_mm, column_mm = (float(v) for v in image.PixelSpacing)
    rows, columns = np.meshgrid(np.arange(int(image.Rows)), np.arange(int(image.Columns)), indexing="ij")
    places = np.array(image.ImagePositionPatient, float) + (
        rows[..., None] * row_mm * down_column + columns[..., None] * column_mm * along_row
    )
    index = np.rint(loaded.volume.geometry.lps_to_index(places)).astype(np.intp)
    inside = ((index >= 0) & (index < mask.shape)).all(axis=-1)
    values = np.zeros(inside.shape, np.bool_)
    values[inside] = mask[tuple(index[inside].T)]
    return values


def _description(number: int, segment: Segment, maker: Maker) -> highdicom.seg.SegmentDescription:
    category, kind = (_ABNORMAL, _LESION) if segment.finding else (_ANATOMY, _TISSUE)
    if segment.snomed:
        kind = CodedConcept(segment.snomed[0], "SCT", segment.snomed[1])
    # A backslash divides values; a size that is cut in the middle is another size.
    label = shorten(segment.label.replace("\\", "/"), _LONGEST_LABEL, placeholder="...")
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=label,
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=f"MedVL-SAM2 {maker.checkpoint}"[:_LONGEST_LABEL],
            version=maker.checkpoint_digest,
            family=_FAMILY,
            parameters={"quantised language model": maker.quantised} if maker.quantised else None,
        ),
        tracking_uid=segment.tracking_uid,
        tracking_id=label if segment.tracking_uid else None,
    )
