"""The gateway as a scanner and a PACS see it."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import time
from io import BytesIO
from unittest.mock import Mock

import grpc
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import (
    MPEG2MPML,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)
from pynetdicom import AE, AllStoragePresentationContexts, build_context
from pynetdicom.sop_class import CTImageStorage, SegmentationStorage, Verification

from medvl.client.aio import AsyncClient
from medvl.contracts.defects import cause_of
from medvl.contracts.disclaimer import CUT_OFF, DISCLAIMER
from medvl.contracts.errors import BackendUnavailable, InvalidRequest, MixedSeries, Overloaded
from medvl.pacs import analysis as analysis_module
from medvl.pacs import gateway as gateway_module
from medvl.pacs import spool as spool_module
from medvl.pacs.config import Destination
from medvl.pacs.dimse import DUPLICATE_INSTANCE, OUT_OF_RESOURCES, PROCESSING_FAILURE, leave_answers
from medvl.pacs.spool import Phase, Spool, SpooledSeries
from medvl.wire.v1 import medvl_pb2 as pb

from .conftest import (
    ALL,
    MEASUREMENTS,
    NOTHING_FOUND,
    PATIENT,
    PATIENT_ID,
    RESULTS,
    Inbox,
    evidence,
    kind,
    make_series,
    stored_mask,
    texts,
)

DEFLATED_FRAMES = UID("1.2.840.10008.1.2.8.1")
"""Deflated Image Frame Compression, which pydicom has no name for."""
JPEGXL = UID("1.2.840.10008.1.2.4.112")


async def test_a_series_comes_back_as_a_report_masks_and_measurements(site, series):
    """Two Structured Reports and a Segmentation arrive in the patient's own study, each in a series of its own."""
    results = await site.answered(series)
    assert results.keys() == RESULTS
    assert len({result.SeriesInstanceUID for result in results.values()}) == ALL
    for result in results.values():
        assert result.StudyInstanceUID == series[0].StudyInstanceUID
        assert result.PatientID == series[0].PatientID
        assert result.SeriesInstanceUID != series[0].SeriesInstanceUID


async def test_the_report_is_preliminary_and_says_where_it_comes_from(site, series):
    """Unverified, with findings, impression, measurements, what was not found, provenance and the disclaimer."""
    sr = (await site.answered(series))["SR"]
    assert (sr.PreliminaryFlag, sr.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")
    code = sr.ConceptNameCodeSequence[0]
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("18748-4", "LN")
    sections = [i.ConceptNameCodeSequence[0].CodeValue for i in sr.ContentSequence if i.ValueType == "CONTAINER"]
    assert sections == ["121070", "121072", "121076"]
    _device, finding, impression, mass, hidden_cyst, cyst, liver, spleen, numbers, made, disclaimer = texts(sr)
    assert finding == (
        "The liver shows a 25 mm mass (segment 1) and a 10 mm cyst. The spleen shows a 5 mm cyst (segment 2)."
    )
    assert impression == "Liver mass."
    measured = "volume 0.2 ml, longest diameter in a slice 6 mm (score 0.90)."
    larger = "volume 0.3 ml, longest diameter in a slice 8 mm (score 0.90)."
    assert mass == f'Finding "The liver shows a 25 mm mass" (segment 1): {measured}'
    assert hidden_cyst == 'Finding "a 10 mm cyst": no mask of it was found (score 0.02).'
    assert cyst == f'Finding "The spleen shows a 5 mm cyst" (segment 2): {larger}'
    assert liver == "liver (segment 3): volume 0.4 ml, longest diameter in a slice 11 mm (score 0.90)."
    assert numbers == "The numbers of segments are those of the DICOM SEG that comes with this report."
    assert spleen == "spleen: not found in this series (score 0.02)."
    assert "phantom (not trained, SHA-256 " + "c" * 64 in made
    assert disclaimer == "Not for diagnosis."


async def test_a_report_that_was_cut_off_is_partial_and_says_so_first(site, series):
    """As do the measurements, which are those of the findings that it came to."""
    whole = await site.answered(series)
    assert {whole[kind].CompletionFlag for kind in ("SR", MEASUREMENTS)} == {"COMPLETE"}
    site.service.report, site.service.finish_reason = (
        "Findings: The liver shows a 25 mm mass [SEG] and the sple",
        "length",
    )
    cut = await site.answered(make_series())
    assert {cut[kind].CompletionFlag for kind in ("SR", MEASUREMENTS)} == {"PARTIAL"}
    _device, finding, first, *_ = texts(cut["SR"])
    assert finding == "The liver shows a 25 mm mass (segment 1) and the sple"
    assert first == texts(cut[MEASUREMENTS].ContentSequence[-1])[0] == CUT_OFF


async def test_a_long_report_comes_whole(site, series):
    """However many paragraphs, headings and characters it has."""
    findings = "\n\n".join(f"Paragraph {n}: {'all of it is as it should be. ' * 40}".strip() for n in range(5))
    site.service.report = f"Findings: {findings}\nImpression: Normal.\n\nImpression: All of it.\nSo it ends."
    _device, said, impression, *_ = texts((await site.answered(series, count=1, labels=()))["SR"])
    assert said == findings
    assert impression == "Normal.\n\nImpression: All of it.\nSo it ends."


async def test_every_result_says_that_it_is_not_for_diagnosis(site, series):
    """In the name of its series, which lists show, and in words where the service sends none."""
    site.service.disclaimer = ""
    results = await site.answered(series)
    descriptions = [result.SeriesDescription for result in results.values()]
    assert all(said.endswith("not for diagnosis") and len(said) <= 64 for said in descriptions)
    assert texts(results["SR"])[-1] == texts(results[MEASUREMENTS])[-1] == DISCLAIMER


async def test_only_what_was_found_becomes_a_segment(site, series):
    """Absence is said in the report, never drawn as an empty mask; findings come first, in the order of the text."""
    seg = (await site.answered(series))["SEG"]
    names = ["Finding 1: The liver shows a 25 mm mass", "Finding 2: The spleen shows a 5 mm cyst", "liver"]
    assert [s.SegmentLabel for s in seg.SegmentSequence] == names
    kinds = [
        (s.SegmentedPropertyCategoryCodeSequence[0].CodeValue, s.SegmentedPropertyTypeCodeSequence[0].CodeValue)
        for s in seg.SegmentSequence
    ]
    lesion, liver = ("49755003", "52988006"), ("123037004", "10200004")
    assert kinds == [lesion, lesion, liver]
    # The fake's masks of findings lie as many rows lower as there are findings before them, those of classes below.
    rows = [np.flatnonzero(stored_mask(seg, number).any(axis=(0, 2)))[0] for number in (1, 2, 3)]
    assert rows == [4, 6, 14]


async def test_findings_have_masks_without_any_label(site, series):
    """What a report names is segmented in any case."""
    results = await site.answered(series, labels=())
    names = ["Finding 1: The liver shows a 25 mm mass", "Finding 2: The spleen shows a 5 mm cyst"]
    assert [s.SegmentLabel for s in results["SEG"].SegmentSequence] == names
    assert not any("[SEG]" in text for text in texts(results["SR"]))


async def test_a_report_without_findings_comes_alone(site, series):
    """There is nothing that a SEG could hold, and nothing to say of one."""
    site.service.report = NOTHING_FOUND
    sr = (await site.answered(series, count=1, labels=()))["SR"]
    _device, finding, impression, made, _disclaimer = texts(sr)
    assert (finding, impression) == ("The liver and spleen are normal.", "No abnormality.")
    assert made.startswith("Made by ")


async def test_a_service_that_is_replaced_between_report_and_masks_is_asked_again(site, series, monkeypatch):
    """One document names one checkpoint."""
    monkeypatch.setattr(spool_module, "_FIRST_DELAY_S", 0.1)
    site.service.masks_digest = "d" * 64
    async with site.gateway() as gateway:
        await site.send(gateway, series)
        assert not await site.outcomes.get()
        site.service.masks_digest = "c" * 64
        while not await site.outcomes.get():
            pass
    assert site.inbox.take().keys() == RESULTS


async def test_a_class_that_the_checkpoint_does_not_know_costs_its_mask_only(site, series):
    """Nothing would change by trying again; the report says what was not looked for. A class named twice is one."""
    results = await site.answered(series, labels=("appendix", "liver", "liver"))
    assert [s.SegmentLabel for s in results["SEG"].SegmentSequence][2:] == ["liver"]
    assert "appendix: not looked for, the checkpoint does not know this class." in texts(results["SR"])


async def test_masks_that_no_seg_can_hold_cost_themselves_only(site, series, monkeypatch):
    """As those of a multi-frame object that had to be resampled: the report comes, and says so."""
    reason = "The resampled series is one multi-frame object: write the masks as NIfTI."
    monkeypatch.setattr(analysis_module, "build_seg", Mock(side_effect=InvalidRequest(reason)))
    async with site.gateway() as gateway:
        await site.send(gateway, series)
        assert await site.outcomes.get()
    said = texts(site.inbox.take(1)["SR"])
    assert f"The masks are not given as DICOM SEG: {reason}" in said
    assert "The liver shows a 25 mm mass and a 10 mm cyst. The spleen shows a 5 mm cyst." in said
    assert any(text.startswith('Finding "The liver shows a 25 mm mass": volume 0.2 ml') for text in said)
    assert not any("segment " in text for text in said)


async def test_a_failure_of_the_masks_does_not_cost_the_report(site, series, monkeypatch, caplog):
    """Whatever it is: neither the report nor the log quotes it, since it may quote a header."""
    monkeypatch.setattr(analysis_module, "build_seg", Mock(side_effect=ValueError(PATIENT)))
    said = texts((await site.answered(series, count=1))["SR"])
    assert "The masks are not given as DICOM SEG: none could be made of this series." in said
    assert not any("segment " in text for text in said)
    assert "ValueError" in caplog.text
    assert PATIENT not in caplog.text


@pytest.mark.parametrize(
    ("keyword", "value", "kept"),
    [
        ("PatientSex", "U", ""),
        ("PatientName", ["Planted^Patient", "Planted^Again"], "Planted^Patient"),
    ],
)
async def test_what_no_derived_object_can_hold_is_left_out(site, series, keyword, value, kept):
    """A sex that DICOM does not define, a second name: the results come without it."""
    for ds in series:
        setattr(ds, keyword, value)
    results = await site.answered(series)
    assert [str(result[keyword].value or "") for result in results.values()] == [kept] * ALL


async def test_text_in_sequences_is_that_of_the_series(site, series):
    """The character set of the results is another."""
    for ds in series:
        code, other = Dataset(), Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "99LOCAL", "CT Sch\u00e4del"
        other.PatientID, other.IssuerOfPatientID = "PLANTED-4712", "M\u00fcnchen"
        ds.SpecificCharacterSet, ds.ProcedureCodeSequence, ds.OtherPatientIDsSequence = "ISO_IR 100", [code], [other]
    for result in (await site.answered(series)).values():
        assert result.SpecificCharacterSet == "ISO_IR 192"
        assert result.ProcedureCodeSequence[0].CodeMeaning == "CT Sch\u00e4del"
        assert result.OtherPatientIDsSequence[0].IssuerOfPatientID == "M\u00fcnchen"


async def test_files_whose_data_set_lacks_what_it_is(service, config, series, tmp_path):
    """SOP class and instance stand in the file's own header; report and masks refer to them."""
    folder = tmp_path / "ct"
    folder.mkdir()
    for number, ds in enumerate(series):
        del ds.SOPClassUID, ds.SOPInstanceUID
        ds.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    async with AsyncClient(service.endpoint) as client:
        files = await analysis_module.analyse(client, folder, "fingerprint", config)
    assert files.keys() == {"sr.dcm", "seg.dcm", "measurements.dcm"}
    named = {ds.file_meta.MediaStorageSOPInstanceUID for ds in series}
    assert evidence(dcmread(BytesIO(files["sr.dcm"]))) == named
    assert named < evidence(dcmread(BytesIO(files["measurements.dcm"])))


async def test_doing_it_again_makes_the_same_documents(site, series, tmp_path):
    """Contents and UIDs follow from the inputs alone, in whatever order instances come; other labels make others."""
    first = await site.answered(series)
    second = await site.answered(series[::-1], spool=tmp_path / "second")
    third = await site.answered(series, spool=tmp_path / "third", labels=("liver",))
    for modality in first:
        assert first[modality].SOPInstanceUID == second[modality].SOPInstanceUID
        assert first[modality].SeriesInstanceUID == second[modality].SeriesInstanceUID
        assert first[modality].SOPInstanceUID != third[modality].SOPInstanceUID
    for modality in ("SR", MEASUREMENTS):
        assert first[modality].ContentSequence == second[modality].ContentSequence
    assert first["SEG"].PixelData == second["SEG"].PixelData
    assert first["SEG"].PerFrameFunctionalGroupsSequence == second["SEG"].PerFrameFunctionalGroupsSequence


async def test_fewer_bits_make_another_document_that_says_so(site, series, tmp_path):
    """Its words may differ, under UIDs of their own."""
    first = await site.answered(series)
    site.service.quantisation = pb.Quantisation(method="awq", weight_bits=4, dtype="bfloat16", digest="d" * 64)
    second = await site.answered(series, spool=tmp_path / "second")
    assert "The language model is quantised: weights in 4 bits, activations in bfloat16 (awq)." in texts(second["SR"])
    for modality in first:
        assert first[modality].SOPInstanceUID != second[modality].SOPInstanceUID


async def test_all_that_decides_what_documents_say_decides_their_uids(site, series, tmp_path, monkeypatch):
    """A PACS that has a UID keeps what it has: with one thing changed after the other no UID is ever used again."""
    folder = tmp_path / "ct"
    folder.mkdir()
    for number, ds in enumerate(series):
        ds.save_as(folder / f"{number}.dcm", enforce_file_format=True)

    async def uids(fingerprint="fingerprint", **changes):
        config = dataclasses.replace(site.config, **changes)
        async with AsyncClient(site.service.endpoint) as client:
            files = await analysis_module.analyse(client, sorted(folder.iterdir()), fingerprint, config)
        made = [dcmread(BytesIO(files[name])) for name in ("sr.dcm", "seg.dcm", "measurements.dcm")]
        own = [uid for ds in made for uid in (ds.SOPInstanceUID, ds.SeriesInstanceUID)]
        return {*own, *(segment.TrackingUID for segment in made[1].SegmentSequence)}

    known = await uids()
    assert await uids() == known
    for changes in (
        {"fingerprint": "another"},
        {"geometry_policy": "warn"},
        {"labels": ("liver",)},
        {"labels": ("spleen", "liver")},
    ):
        other = await uids(**changes)
        assert not known & other, changes
        known |= other
    for holder, changes in (
        (site.service, {"software": "medvl-sam2 9"}),
        (site.service, {"report_digest": "e" * 64, "masks_digest": "e" * 64}),
        (site.service, {"quantisation": pb.Quantisation(method="awq", weight_bits=4, digest="d" * 64)}),
        (site.service, {"quantisation": pb.Quantisation(method="awq", weight_bits=4, digest="f" * 64)}),
        (analysis_module, {"_EDITION": "0"}),
    ):
        for name, value in changes.items():
            monkeypatch.setattr(holder, name, value)
        other = await uids()
        assert not known & other, changes
        known |= other


async def test_a_series_that_grows_is_worked_on_again(site, series):
    """Late instances make new results of the whole series; instances that come twice make nothing."""
    async with site.gateway() as gateway:
        await site.send(gateway, series[:-1])
        assert await site.outcomes.get()
        await site.send(gateway, [series[0], series[-1]])
        assert await site.outcomes.get()
        await site.send(gateway, series)
        spooled = site.spooled()
        assert spooled.due_at_s(0.0) is None
    first, second = site.inbox.take(), site.inbox.take()
    assert first["SR"].SOPInstanceUID != second["SR"].SOPInstanceUID
    assert site.service.reports == 2


async def test_an_instance_that_comes_when_work_begins_is_in_the_next_documents(site, series, monkeypatch):
    """Those under way are of the instances that their UIDs follow from, and of no others."""
    *soon, late = series
    record = SpooledSeries.record

    def recorded(self, fingerprint, phase):
        if phase is Phase.BEGUN and len(self.files()) == len(soon):
            late.save_as(self.instances / "late.dcm", enforce_file_format=True)
        return record(self, fingerprint, phase)

    monkeypatch.setattr(SpooledSeries, "record", recorded)
    async with site.gateway() as gateway:
        await site.send(gateway, soon)
        assert await site.outcomes.get()
        assert await site.outcomes.get()
    first, second = site.inbox.take(), site.inbox.take()
    uids = {ds.SOPInstanceUID for ds in series}
    assert evidence(first["SR"]) == uids - {late.SOPInstanceUID}
    assert evidence(second["SR"]) == uids


async def test_a_series_of_a_corrected_patient_is_answered_again(site, series, tmp_path):
    """Under other UIDs, whether the spool still knows the first one: a PACS that has a UID keeps what it has."""
    async with site.gateway() as gateway:
        await site.send(gateway, series)
        assert await site.outcomes.get()
        for ds in series:
            ds.PatientID, ds.PatientName = "CORRECTED", "Corrected^Patient"
        await site.send(gateway, series)
        assert await site.outcomes.get()
    assert len([*site.spooled().instances.iterdir()]) == len(series)
    first, second = site.inbox.take(), site.inbox.take()
    third = await site.answered(series, spool=tmp_path / "second")
    for modality in RESULTS:
        assert (first[modality].PatientID, second[modality].PatientID) == (PATIENT_ID, "CORRECTED")
        assert first[modality].SOPInstanceUID != second[modality].SOPInstanceUID
        assert first[modality].SeriesInstanceUID != second[modality].SeriesInstanceUID
        assert second[modality].SOPInstanceUID == third[modality].SOPInstanceUID


async def test_a_series_is_not_worked_on_before_it_has_been_quiet(site, series):
    """What may be half of a series would have a report of its own, of what is not there as well."""
    series_by_age_s = {3500: series, 3700: make_series()}
    async with site.gateway(quiet_s=3600.0) as gateway:
        for datasets in series_by_age_s.values():
            await site.send(gateway, datasets)
    now_s, folders = time.time(), {}
    for age_s, [first, *_] in series_by_age_s.items():
        folders[age_s] = site.config.spool / "series" / spool_module.hashed(first.SeriesInstanceUID)
        for path in (folders[age_s] / "instances").iterdir():
            os.utime(path, (now_s - age_s, now_s - age_s))
    async with site.gateway(quiet_s=3600.0):
        assert await site.outcomes.get()
    assert SpooledSeries(folders[3700]).state().phase is Phase.DELIVERED
    assert SpooledSeries(folders[3500]).state() is None


async def test_results_go_from_our_title_to_that_of_the_destination(site, series):
    """A PACS takes them from whom it knows, and one process may be several of them."""
    theirs = dataclasses.replace(site.inbox.destination, ae_title="THEIRS")
    async with site.gateway(ae_title="OURS", destination=theirs) as gateway:
        await site.send(gateway, series, title="OURS")
        assert await site.outcomes.get()
    assert site.inbox.titles == [("OURS", "THEIRS")]


async def test_it_answers_an_echo(site):
    """C-ECHO is how a PACS administrator tests a connection."""

    def echo(port):
        entity = AE()
        entity.add_requested_context(Verification)
        association = entity.associate("127.0.0.1", port, ae_title="MEDVL")
        leave_answers(association)
        status = association.send_c_echo().Status
        association.release()
        return status

    async with site.gateway() as gateway:
        assert await asyncio.to_thread(echo, gateway.port) == 0


async def test_what_is_acknowledged_is_in_the_spool(site, series):
    """As it came, compressed pixels unchanged; the gateway may be killed at any moment after."""
    for ds in series:
        ds.compress(RLELossless, generate_instance_uid=False)
    async with site.gateway(quiet_s=3600.0) as gateway:
        assert await site.send(gateway, series) == [0] * len(series)
    spooled = site.spooled()
    stored = sorted(path.read_bytes() for path in spooled.instances.iterdir())
    assert len(stored) == len(series)
    assert all(any(ds.PixelData in data for data in stored) for ds in series)


async def test_a_full_disk_is_told_to_the_sender(site, series, monkeypatch):
    """Out of resources: the sender keeps the instance and sends it again."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool_module, "write_durably", full)
    async with site.gateway() as gateway:
        assert await site.send(gateway, series[:1]) == [OUT_OF_RESOURCES]


async def test_a_defect_that_costs_an_instance_is_logged(site, series, monkeypatch, caplog):
    """And told to the sender, who keeps it: pynetdicom would answer, too, but its log is muted."""

    def defective(*_, **__):
        raise KeyError("Doe^Jane")

    monkeypatch.setattr(spool_module, "write_durably", defective)
    async with site.gateway() as gateway:
        assert await site.send(gateway, series[:1]) == [PROCESSING_FAILURE]
    (record,) = (r for r in caplog.records if r.levelname == "ERROR")
    assert record.getMessage() == "a defect: an instance could not be kept"
    assert cause_of(record.exc_info[1]).startswith("KeyError in ")


async def test_associations_for_another_title_are_rejected(site, series):
    """A misconfigured sender learns it at once."""
    async with site.gateway() as gateway:
        assert await site.send(gateway, series[:1], title="SOMEBODY") is None


async def test_syntaxes_that_can_be_read_are_taken_and_deflate_is_not(site):
    """What is acknowledged can be worked on; a small deflated message can inflate to any size."""

    def accepted(port):
        entity = AE()
        for syntax in (JPEG2000Lossless, DeflatedExplicitVRLittleEndian, DEFLATED_FRAMES, MPEG2MPML, JPEGXL):
            entity.add_requested_context(CTImageStorage, syntax)
        association = entity.associate("127.0.0.1", port, ae_title="MEDVL")
        syntaxes = [c.transfer_syntax[0] for c in association.accepted_contexts]
        association.release()
        return syntaxes

    async with site.gateway() as gateway:
        assert await asyncio.to_thread(accepted, gateway.port) == [JPEG2000Lossless]


# pynetdicom leaves the socket of a refused connection to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_destination_that_is_away_costs_time_only(site, series, monkeypatch):
    """Results stay in the spool, survive a restart and are sent, without asking the service again."""
    monkeypatch.setattr(spool_module, "_FIRST_DELAY_S", 0.1)
    async with site.gateway(destination=Destination("INBOX", "127.0.0.1", 9)) as gateway:
        await site.send(gateway, series)
        assert not await site.outcomes.get()
    async with site.gateway():
        assert await site.outcomes.get()
    assert site.inbox.take().keys() == RESULTS
    assert site.service.reports == 1


async def test_a_result_that_the_destination_refuses_is_kept(site, series):
    """All of it is sent again later, though the destination has refused it."""
    site.inbox.status = OUT_OF_RESOURCES
    async with site.gateway() as gateway:
        await site.send(gateway, series)
        assert not await site.outcomes.get()
    spooled = site.spooled()
    assert spooled.state().phase is Phase.FAILED
    assert len(spooled.results(spooled.fingerprint())) == ALL


async def test_a_destination_that_refuses_the_masks_gets_the_report(site, series):
    """Each result is sent whatever became of the others, what refers to masks after them; all are tried again."""
    site.inbox.statuses["SEG"] = OUT_OF_RESOURCES
    async with site.gateway() as gateway:
        await site.send(gateway, series)
        assert not await site.outcomes.get()
    assert [kind(site.inbox.received.get_nowait()) for _ in RESULTS] == ["SR", "SEG", MEASUREMENTS]


async def test_a_destination_that_knows_no_masks_gets_the_report(site, series):
    """There is no presentation context for the masks; the measurements are readable without them."""
    inbox = Inbox([c for c in AllStoragePresentationContexts if c.abstract_syntax != SegmentationStorage])
    async with site.gateway(destination=inbox.destination) as gateway:
        await site.send(gateway, series)
        assert not await site.outcomes.get()
    inbox.close()
    assert [kind(inbox.received.get_nowait()) for _ in range(2)] == ["SR", MEASUREMENTS]


@pytest.mark.parametrize(
    ("taken", "sent"),
    [
        ([ImplicitVRLittleEndian], ImplicitVRLittleEndian),
        ([ImplicitVRLittleEndian, ExplicitVRLittleEndian], ExplicitVRLittleEndian),
    ],
)
async def test_results_are_readable_in_the_default_transfer_syntax(site, series, taken, sent):
    """An older PACS takes no other; one that takes more has the files as they are."""
    classes = {c.abstract_syntax for c in AllStoragePresentationContexts}
    inbox = Inbox([build_context(sop_class, taken) for sop_class in classes])
    results = await dataclasses.replace(site, inbox=inbox).answered(series, destination=inbox.destination)
    inbox.close()
    assert results.keys() == RESULTS
    assert {ds.file_meta.TransferSyntaxUID for ds in results.values()} == {sent}
    assert "Liver mass" in " ".join(texts(results["SR"]))
    assert len(results[MEASUREMENTS].ContentSequence) > 1
    buffer = BytesIO()
    results["SEG"].save_as(buffer, enforce_file_format=True)
    seg = dcmread(BytesIO(buffer.getvalue()))
    # Of what the service marks: 3 slices of 5 rows and 4 columns, then of 6 columns.
    assert [int(stored_mask(seg, number).sum()) for number in (1, 2)] == [3 * 5 * 4, 3 * 5 * 6]


async def test_a_result_that_is_there_already_is_delivered(site, series):
    """Some archives answer the second sending of an instance with a failure of its own kind."""
    site.inbox.status = DUPLICATE_INSTANCE
    async with site.gateway() as gateway:
        await site.send(gateway, series)
        assert await site.outcomes.get()


@pytest.mark.parametrize("refusal", [BackendUnavailable, Overloaded])
async def test_a_service_that_is_away_costs_time_only(site, series, refusal, monkeypatch):
    """The series waits in the spool and is worked on when its turn comes again."""
    monkeypatch.setattr(spool_module, "_FIRST_DELAY_S", 0.1)
    # The client does not wait so long by itself.
    site.service.refusals.extend([refusal("Not now.", retry_after_s=60.0)] * 2)
    async with site.gateway() as gateway:
        await site.send(gateway, series)
        while not await site.outcomes.get():
            pass
    assert site.inbox.take().keys() == RESULTS


@pytest.mark.parametrize("kind", [OSError, RuntimeError, MemoryError])
async def test_a_failure_that_nobody_foresaw_is_tried_again(site, series, monkeypatch, caplog, kind):
    """It says nothing against the series, which is refused for what it is alone; the log does not quote it."""
    monkeypatch.setattr(analysis_module, "build_sr", Mock(side_effect=kind(PATIENT)))
    async with site.gateway() as gateway:
        await site.send(gateway, series)
        assert not await site.outcomes.get()
    assert site.spooled().state().phase is Phase.FAILED
    assert kind.__name__ in caplog.text
    assert PATIENT not in caplog.text


async def test_a_call_that_ends_as_cancelled_costs_time_only(site, series, monkeypatch):
    """Nobody told the gateway to end: it tries again, as after any other failure of the service."""
    monkeypatch.setattr(spool_module, "_FIRST_DELAY_S", 0.1)
    # The client itself makes four attempts.
    site.service.ends.extend([grpc.StatusCode.CANCELLED] * 5)
    async with site.gateway() as gateway:
        await site.send(gateway, series)
        assert not await site.outcomes.get()
        assert await site.outcomes.get()
    assert site.inbox.take().keys() == RESULTS


async def test_an_instance_that_comes_while_its_series_is_worked_on(site, series):
    """What was begun is delivered, with what it was made from; the whole series is worked on after it."""
    site.service.pause()
    async with site.gateway() as gateway:
        await site.send(gateway, series[:-1])
        await asyncio.to_thread(site.service.asked.wait)
        await site.send(gateway, series[-1:])
        site.service.go_on.set()
        assert await site.outcomes.get()
        assert await site.outcomes.get()
    first, second = site.inbox.take()["SR"], site.inbox.take()["SR"]
    assert evidence(first) == {ds.SOPInstanceUID for ds in series[:-1]}
    assert evidence(second) == {ds.SOPInstanceUID for ds in series}


async def test_a_gateway_that_dies_fails_its_test_at_once(site, monkeypatch):
    """With its own error, where the test waits for something that will not come."""
    monkeypatch.setattr(Spool, "purge", Mock(side_effect=OSError(errno.EIO, "the spool is gone")))
    with pytest.raises(ExceptionGroup) as died:
        async with site.gateway():
            await site.outcomes.get()
    assert died.group_contains(OSError, match="the spool is gone")


@pytest.mark.parametrize(("phase", "reports"), [(Phase.BEGUN, 1), (Phase.DELIVERED, 2)])
async def test_a_series_whose_state_cannot_be_written_holds_up_no_other(site, series, monkeypatch, phase, reports):
    """A disk that is full before or after the work: that series rests, the gateway lives and serves the next."""
    monkeypatch.setattr(gateway_module, "_REST_S", 3600.0)
    record, full = SpooledSeries.record, asyncio.Event()

    def fails_once(self, fingerprint, now):
        if now is phase and not full.is_set():
            full.set()
            raise OSError(errno.ENOSPC, "No space left on device")
        return record(self, fingerprint, now)

    monkeypatch.setattr(SpooledSeries, "record", fails_once)
    async with site.gateway() as gateway:
        await site.send(gateway, series)
        await full.wait()
        await site.send(gateway, make_series())
        assert await site.outcomes.get()
    assert site.service.reports == reports


async def test_a_series_that_cannot_be_read_is_refused_once(site, series):
    """Only another instance can change that, so it is not tried again; others are not held up."""
    async with site.gateway() as gateway:
        await site.send(gateway, series[:1])
        assert not await site.outcomes.get()
        spooled = site.spooled()
        assert spooled.state().phase is Phase.REFUSED
        assert spooled.due_at_s(site.config.quiet_s) is None
        await site.send(gateway, series)
        assert await site.outcomes.get()


@pytest.mark.parametrize(
    "changes", [{"PatientID": "CORRECTED-1", "PatientName": "Corrected^Patient"}, {"StudyInstanceUID": "2.25.7"}]
)
async def test_instances_of_two_patients_or_studies_make_no_result(site, series, changes):
    """As where an identity is corrected while a series is sent: the service is not even asked."""
    for ds in series[5:]:
        ds.update(changes)
    async with site.gateway() as gateway:
        await site.send(gateway, series)
        assert not await site.outcomes.get()
        assert site.spooled().state().phase is Phase.REFUSED
    assert (site.service.reports, site.inbox.received.qsize()) == (0, 0)


async def test_an_identity_that_changes_while_the_service_works_makes_no_result(service, config, series, tmp_path):
    """Instances are read again for their headers; by then they may be of two patients."""
    folder = tmp_path / "ct"
    folder.mkdir()
    for number, ds in enumerate(series):
        ds.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    service.pause()
    async with AsyncClient(service.endpoint) as client:
        made = asyncio.create_task(analysis_module.analyse(client, folder, "fingerprint", config))
        await asyncio.to_thread(service.asked.wait)
        series[3].PatientID = "CORRECTED-1"
        series[3].save_as(folder / "3.dcm", enforce_file_format=True)
        service.go_on.set()
        with pytest.raises(MixedSeries, match="PatientID"):
            await made


async def test_a_series_of_no_study_makes_no_result(site, series):
    """No PACS could file it: a study that was made up would be another one."""
    for ds in series:
        ds.StudyInstanceUID = ""
    async with site.gateway() as gateway:
        await site.send(gateway, series)
        assert not await site.outcomes.get()
        assert site.spooled().state().phase is Phase.REFUSED
    assert site.service.reports == 0


async def test_a_geometry_that_the_policy_refuses_is_not_tried_again(site, series):
    """Slices stay where they are; the service is not even asked."""
    series[4].ImagePositionPatient[2] += 1.0
    async with site.gateway() as gateway:
        await site.send(gateway, series)
        assert not await site.outcomes.get()
        spooled = site.spooled()
        assert spooled.state().phase is Phase.REFUSED
        assert spooled.due_at_s(site.config.quiet_s) is None
    assert (site.service.reports, site.inbox.received.qsize()) == (0, 0)


async def test_a_series_that_was_refused_is_deleted_after_its_time(site, series):
    """Nobody will ask for it, and it holds patient data; one that was delivered has a time of its own."""
    async with site.gateway(keep_refused_s=0.0) as gateway:
        await site.send(gateway, series[:1])
        assert not await site.outcomes.get()
        await site.send(gateway, make_series())
        assert await site.outcomes.get()
    assert site.spooled().state().phase is Phase.DELIVERED


@pytest.mark.parametrize("text", ["", "PACS", "PACS@host", "PACS@host:0", "@host:104", "PACS@:104", "P" * 17 + "@h:1"])
def test_a_destination_that_is_none_is_refused(text):
    """Before the gateway takes its first instance."""
    with pytest.raises(InvalidRequest):
        Destination.parse(text)


def test_a_destination_is_title_host_and_port():
    """As PACS administrators write it."""
    assert Destination.parse("ORTHANC@pacs.local:4242") == Destination("ORTHANC", "pacs.local", 4242)


def test_a_gateway_needs_a_quiet_time(config):
    """Without one, every instance would be a series."""
    with pytest.raises(InvalidRequest):
        dataclasses.replace(config, quiet_s=0.0)
