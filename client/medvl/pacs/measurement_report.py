"""The measurements of a DICOM SEG as an SR that machines read: DICOM PS3.16 TID 1500, a group for each segment.

What a segment is, what it is called and what made it is read from the SEG, so that both say the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from highdicom import sr
from highdicom.seg import Segmentation, SegmentDescription
from highdicom.sr import CodedConcept, ContentSequence, RelationshipTypeValues, TextContentItem
from pydicom import Dataset

from medvl.client.events import Measurement
from medvl.pacs.structured_report import Uids, document, language, observation_context

_TITLE = CodedConcept("126000", "DCM", "Imaging Measurement Report")
_CT = CodedConcept("25045-6", "LN", "CT unspecified body region")
"""Of CID 100, from which the template takes procedures."""
_QUALITATIVE_EVALUATIONS = CodedConcept("C0034375", "UMLS", "Qualitative Evaluations")
_COMMENT = CodedConcept("121106", "DCM", "Comment")
_EQUIVALENT_MEANING = CodedConcept("121050", "DCM", "Equivalent Meaning of Concept Name")

_MM3 = CodedConcept("mm3", "UCUM", "cubic millimeter")
_MM = CodedConcept("mm", "UCUM", "mm")
_VOLUME = CodedConcept("118565006", "SCT", "Volume")
_SUM_OF_VOXELS = CodedConcept("126030", "DCM", "Sum of segmented voxel method for volume")
_LONG_AXIS = CodedConcept("103339001", "SCT", "Long axis")
_DIAMETER = CodedConcept("81827009", "SCT", "Diameter")
_MAXIMUM = CodedConcept("56851009", "SCT", "Maximum")


def build_measurements(
    seg: Segmentation,
    measured: Sequence[Measurement],
    notes: Sequence[str],
    uids: Uids,
    sources: Sequence[Dataset],
    *,
    whole: bool,
) -> Dataset:
    """Return the document, unverified and preliminary as the report.

    Parameters
    ----------
    seg
        What was measured; its segments have tracking UIDs.
    measured
        Of each segment, in the order of their numbers.
    notes
        Sentences about how the result came about: provenance, the disclaimer.
    uids
        Identity of the document.
    sources
        Headers of the instances that the SEG was made from, all of one series, from
        :func:`medvl.imaging.headers.source_header`; patient and study come from the first, all are referenced.
    whole
        Whether the report that names them goes on to its end: another finding may be missing where it does not.

    Raises
    ------
    ValueError
        When there are more or fewer measurements than segments, or one is no finite number.
    """
    groups = [
        _group(seg, segment, measurement, sources[0].SeriesInstanceUID)
        for segment, measurement in zip(seg.SegmentSequence, measured, strict=True)
    ]
    report = sr.MeasurementReport(
        observation_context=observation_context(uids.device),
        procedure_reported=_CT,
        imaging_measurements=groups,
        title=_TITLE,
        language_of_content_item_and_descendants=language(),
    )
    report[0].ContentSequence.append(_evaluations(notes))
    description = "MedVL-SAM2 measurements, not verified, not for diagnosis"
    return document(report[0], uids, [*sources, seg], number=9002, description=description, whole=whole)


def _group(
    seg: Segmentation, segment: SegmentDescription, measurement: Measurement, source_series_uid: str
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    """Return the measurements of one segment, TID 1411."""
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(segment.tracking_uid, segment.tracking_id),
        referenced_segment=sr.ReferencedSegment(
            seg.SOPClassUID,
            seg.SOPInstanceUID,
            segment.segment_number,
            # Images, where a segment has hundreds, are in the SEG.
            source_series=sr.SourceSeriesForSegmentation(source_series_uid),
        ),
        finding_category=segment.segmented_property_category,
        finding_type=segment.segmented_property_type,
        algorithm_id=_algorithm(segment),
        measurements=_measurements(measurement),
    )


def _algorithm(segment: SegmentDescription) -> sr.AlgorithmIdentification:
    """Return what made the segment, TID 4019."""
    made_by = segment.algorithm_identification
    # highdicom would divide their values at commas.
    parameters = [made_by[0].AlgorithmParameters] if "AlgorithmParameters" in made_by[0] else None
    # Without its family: dcmqi takes that for an evaluation of the segment.
    return sr.AlgorithmIdentification(made_by.name, made_by.version, parameters)


def _measurements(of: Measurement) -> list[sr.Measurement]:
    """Return what was measured, TID 1419, with codes of CID 7470 (linear) and 7472 (volume).

    The maximum 3D diameter that CID 7470 has (IBSI) is one of a mesh; ours is one of voxels.
    """
    found = [sr.Measurement(_VOLUME, float(of.volume_mm3), _MM3, method=_SUM_OF_VOXELS)]
    found.append(_meaning(sr.Measurement(_LONG_AXIS, float(of.diameter_mm), _MM), "Longest diameter in a slice"))
    # An older service does not tell it.
    if of.diameter_3d_mm:
        through_all = sr.Measurement(_DIAMETER, float(of.diameter_3d_mm), _MM, derivation=_MAXIMUM)
        found.append(_meaning(through_all, "Longest diameter through all slices"))
    return found


def _meaning(measurement: sr.Measurement, meaning: str) -> sr.Measurement:
    """Return a measurement that says in words what its code and modifiers mean."""
    item = measurement[0]
    said = TextContentItem(_EQUIVALENT_MEANING, meaning, RelationshipTypeValues.HAS_CONCEPT_MOD)
    item.ContentSequence = ContentSequence([*item.get("ContentSequence", ()), said])
    return measurement


def _evaluations(notes: Sequence[str]) -> sr.ContainerContentItem:
    """Return what is said of the whole document: the template has text here alone (rows 12 and 14)."""
    container = sr.ContainerContentItem(_QUALITATIVE_EVALUATIONS, relationship_type=RelationshipTypeValues.CONTAINS)
    container.ContentSequence = ContentSequence(
        [TextContentItem(_COMMENT, note, RelationshipTypeValues.CONTAINS) for note in notes]
    )
    return container
