"""The measurements as a PACS and viewers read them: TID 1500, a group for each segment of the SEG."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from unittest.mock import Mock

import highdicom
import numpy as np
import pytest
from highdicom.sr import CodedConcept
from pydicom import dcmread

from medvl.client.aio import AsyncClient
from medvl.pacs import analysis as analysis_module
from medvl.pacs.measurement_report import build_measurements
from medvl.wire.v1 import medvl_pb2 as pb

from .conftest import DISCLAIMER, MEASUREMENTS, NOTHING_FOUND, PATIENT, evidence, stored_mask, texts

VOLUME = CodedConcept("118565006", "SCT", "Volume")
LONG_AXIS = CodedConcept("103339001", "SCT", "Long axis")
DIAMETER = CodedConcept("81827009", "SCT", "Diameter")
LONGEST_DS = 16


def groups(document):
    """The measurement groups as another library reads them."""
    report = highdicom.sr.ComprehensiveSR.from_dataset(document).content
    assert isinstance(report, highdicom.sr.MeasurementReport)
    return report.get_volumetric_roi_measurement_groups()


def extent_mm(places_mm, spacing_mm):
    """The longest distance of all pairs of voxels, plus a voxel's width along it."""
    between = places_mm[:, None] - places_mm[None]
    distances_mm = np.linalg.norm(between, axis=-1)
    farthest = np.unravel_index(distances_mm.argmax(), distances_mm.shape)
    along = np.abs(between[farthest]) / distances_mm[farthest]
    return distances_mm[farthest] + along @ spacing_mm


def measured_again(seg, number):
    """Volume, and longest diameters in a slice and through all, from the stored pixels of a segment alone."""
    shared = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    spacing_mm = np.array([shared.SpacingBetweenSlices, *shared.PixelSpacing], float)
    index = np.argwhere(stored_mask(seg, number))
    in_slice_mm = [extent_mm(index[index[:, 0] == n] * spacing_mm, spacing_mm) for n in np.unique(index[:, 0])]
    return len(index) * spacing_mm.prod(), max(in_slice_mm), extent_mm(index * spacing_mm, spacing_mm)


def numbers(group):
    """The values of a group by the code of their name and unit, each in both of its spellings."""
    read = {}
    for measurement in group.get_measurements():
        [value] = measurement[0].MeasuredValueSequence
        assert len(str(value.NumericValue)) <= LONGEST_DS
        assert float(value.NumericValue) == pytest.approx(value.FloatingPointValue, rel=1e-12)
        read[measurement.name.value, measurement.unit.value] = value.FloatingPointValue
    return read


async def test_each_segment_has_a_group_that_is_coded_and_tracked_as_it_is(site, series):
    """Number, name, category, type and tracking UID are the SEG's own; what is not known of a place is not said."""
    results = await site.answered(series)
    seg = results["SEG"]
    found = groups(results[MEASUREMENTS])
    assert len(found) == len(seg.SegmentSequence)
    for group, segment in zip(found, seg.SegmentSequence, strict=True):
        referenced = group.referenced_segment[0]
        assert referenced.referenced_segment_numbers == [segment.SegmentNumber]
        assert group.tracking_identifier == segment.SegmentLabel == segment.TrackingID
        assert group.tracking_uid == segment.TrackingUID
        assert group.finding_category == CodedConcept.from_dataset(segment.SegmentedPropertyCategoryCodeSequence[0])
        assert group.finding_type == CodedConcept.from_dataset(segment.SegmentedPropertyTypeCodeSequence[0])
        assert group.finding_sites == []
    assert [group.finding_type.value for group in found] == ["52988006", "52988006", "10200004"]
    assert len({group.tracking_uid for group in found}) == len(found)


async def test_values_are_those_of_the_masks_that_came_with_them(site, series):
    """In mm3 and mm, measured again from the pixels that the PACS has; the segments differ in size."""
    results = await site.answered(series)
    found = groups(results[MEASUREMENTS])
    for group, segment in zip(found, results["SEG"].SegmentSequence, strict=True):
        volume_mm3, in_slice_mm, through_all_mm = measured_again(results["SEG"], segment.SegmentNumber)
        expected = {("118565006", "mm3"): volume_mm3, ("103339001", "mm"): in_slice_mm}
        assert numbers(group) == pytest.approx({**expected, ("81827009", "mm"): through_all_mm})
    assert [numbers(group)["118565006", "mm3"] for group in found] == [180.0, 270.0, 360.0]


async def test_both_diameters_say_which_they_are(site, series):
    """Their codes alone do not tell a slice from all slices."""
    [group, *_] = groups((await site.answered(series))[MEASUREMENTS])
    [volume], [long_axis], [diameter] = (group.get_measurements(name) for name in (VOLUME, LONG_AXIS, DIAMETER))
    assert volume.method.value == "126030"
    assert diameter.derivation.value == "56851009"
    assert texts(long_axis[0]) == ["Longest diameter in a slice"]
    assert texts(diameter[0]) == ["Longest diameter through all slices"]


async def test_every_reference_leads_to_what_the_pacs_has(site, series):
    """To the SEG that came with it, and to the series and the instances that it was made from."""
    results = await site.answered(series)
    document, seg = results[MEASUREMENTS], results["SEG"]
    for group in groups(document):
        referenced, source = group.referenced_segment
        assert referenced.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert referenced.referenced_sop_class_uid == seg.SOPClassUID
        assert source.value == series[0].SeriesInstanceUID
    assert evidence(document) == {seg.SOPInstanceUID, *(ds.SOPInstanceUID for ds in series)}
    [study] = document.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == series[0].StudyInstanceUID
    assert {one.SeriesInstanceUID for one in study.ReferencedSeriesSequence} == {
        seg.SeriesInstanceUID,
        series[0].SeriesInstanceUID,
    }


async def test_they_are_preliminary_and_say_where_they_come_from(site, series):
    """Unverified, by the observer of the report, with its provenance and disclaimer, and what made the segments."""
    site.service.quantisation = pb.Quantisation(method="awq", weight_bits=4, dtype="bfloat16", digest="d" * 64)
    results = await site.answered(series)
    document, report = results[MEASUREMENTS], results["SR"]
    assert (document.PreliminaryFlag, document.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")
    assert document.SeriesDescription == "MedVL-SAM2 measurements, not verified, not for diagnosis"
    assert (document.SeriesNumber, document.SOPClassUID) == (9002, report.SOPClassUID)
    observers = [
        [i.UID for i in sr.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "121012"]
        for sr in (document, report)
    ]
    assert observers[0] == observers[1] != []
    *_, evaluations = document.ContentSequence
    assert evaluations.ConceptNameCodeSequence[0].CodeValue == "C0034375"
    made, quantised, disclaimer = texts(evaluations)
    assert (made, quantised, disclaimer) == tuple(texts(report)[-3:])
    assert made.startswith("Made by medvl-sam2 0.1.0 with the checkpoint phantom")
    assert disclaimer == DISCLAIMER
    said = texts(document)
    assert f"quantised language model={quantised.split(': ')[1].rstrip('.')}" in said
    assert "MedVL-SAM2 phantom" in said


async def test_doing_it_again_makes_the_same_document_with_the_same_tracking(site, series, tmp_path):
    """A PACS stores it once, and follows a segment by one UID; other labels make another document."""
    first = (await site.answered(series))[MEASUREMENTS]
    second = (await site.answered(series, spool=tmp_path / "second"))[MEASUREMENTS]
    third = (await site.answered(series, spool=tmp_path / "third", labels=()))[MEASUREMENTS]
    assert first.SOPInstanceUID == second.SOPInstanceUID != third.SOPInstanceUID
    tracked = [[group.tracking_uid for group in groups(document)] for document in (first, second, third)]
    assert tracked[0] == tracked[1]
    assert not {*tracked[0]} & {*tracked[2]}


async def test_nothing_found_is_not_measured(site, series):
    """There is no such document, as there is no SEG, and nothing is said of one."""
    site.service.report = NOTHING_FOUND
    results = await site.answered(series, count=1, labels=())
    assert results.keys() == {"SR"}
    assert not any("measurements" in text for text in texts(results["SR"]))


@pytest.mark.parametrize("change", [lambda m: m[:-1], lambda m: [*m, m[0]]], ids=["fewer", "more"])
async def test_measurements_that_are_not_one_of_each_segment_are_left_out(site, series, monkeypatch, change):
    """Whose they are nobody would know: none is better than that of another segment."""

    def changed(seg, measured, *others, **options):
        return build_measurements(seg, change(measured), *others, **options)

    monkeypatch.setattr(analysis_module, "build_measurements", changed)
    results = await site.answered(series, count=2)
    assert results.keys() == {"SR", "SEG"}
    assert "The measurements are not given as DICOM SR: none could be made of this series." in texts(results["SR"])


async def test_a_failure_of_the_measurements_costs_neither_report_nor_masks(site, series, monkeypatch, caplog):
    """Whatever it is: neither the report nor the log quotes it, since it may quote a header."""
    monkeypatch.setattr(analysis_module, "build_measurements", Mock(side_effect=ValueError(PATIENT)))
    results = await site.answered(series, count=2)
    assert results.keys() == {"SR", "SEG"}
    said = texts(results["SR"])
    assert "The measurements are not given as DICOM SR: none could be made of this series." in said
    assert "The numbers of segments are those of the DICOM SEG that comes with this report." in said
    assert "ValueError" in caplog.text
    assert not any(PATIENT in text for text in [*said, caplog.text])


async def test_a_service_that_does_not_tell_a_diameter_costs_that_one_only(site, series, monkeypatch):
    """An older one knows none through all slices: no value is better than one of 0 mm."""

    def of_an_older_service(seg, measured, *others, **options):
        return build_measurements(seg, [replace(one, diameter_3d_mm=0.0) for one in measured], *others, **options)

    monkeypatch.setattr(analysis_module, "build_measurements", of_an_older_service)
    for group in groups((await site.answered(series))[MEASUREMENTS]):
        assert [code for code, _unit in numbers(group)] == ["118565006", "103339001"]


async def test_what_was_unusual_about_the_series_is_said_with_its_measurements(service, config, series, tmp_path):
    """As of slices that had to be resampled: the numbers are those of the grid that was measured."""
    folder = tmp_path / "ct"
    folder.mkdir()
    for number, ds in enumerate(series):
        ds.ImagePositionPatient[2] += 1.0 * (number > 6)
        ds.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    async with AsyncClient(service.endpoint) as client:
        resampled = replace(config, geometry_policy="resample")
        files = await analysis_module.analyse(client, folder, "fingerprint", resampled)
    report, measurements = (dcmread(BytesIO(files[name])) for name in ("sr.dcm", "measurements.dcm"))
    *unusual, _made, _disclaimer = texts(measurements.ContentSequence[-1])
    assert unusual
    assert {*unusual} < {*texts(report)}
