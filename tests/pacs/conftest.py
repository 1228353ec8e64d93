"""A CT scanner, a PACS that takes results and a service that answers, all on loopback."""

# ruff: noqa: N802 - gRPC names its methods

from __future__ import annotations

import asyncio
import dataclasses
import queue
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import highdicom
import numpy as np
import pytest
from grpc_status import rpc_status
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, evt

from medvl.contracts.errors import MedvlError, SeriesNotResident, UnknownLabel
from medvl.imaging.geometry import Geometry
from medvl.imaging.masks import measure, pack_mask
from medvl.pacs.config import Destination, GatewayConfig
from medvl.pacs.dimse import leave_answers
from medvl.pacs.gateway import Gateway
from medvl.pacs.spool import Phase, SpooledSeries
from medvl.wire.codec import geometry_from_wire
from medvl.wire.metadata import UPLOAD_KEY, UPLOAD_SEND
from medvl.wire.status import to_status
from medvl.wire.v1 import medvl_pb2 as pb
from medvl.wire.v1 import medvl_pb2_grpc as pb_grpc

SHAPE = (10, 32, 24)
PATIENT = "Planted^Patient"
PATIENT_ID = "PLANTED-4711"
REPORT = (
    "Findings: The liver shows a 25 mm mass [SEG] and a 10 mm cyst [SEG]. The spleen shows a 5 mm cyst [SEG].\n"
    "Impression: Liver mass."
)
NOTHING_FOUND = "Findings: The liver and spleen are normal.\nImpression: No abnormality."
DISCLAIMER = "Not for diagnosis."
MEASUREMENTS = "TID 1500"
RESULTS = {"SR", "SEG", MEASUREMENTS}
"""Of a series in which something was found."""
ALL = len(RESULTS)


def make_series(slices=SHAPE[0]):
    """An axial CT series in head-first order of its files."""
    study, series, frame = (generate_uid() for _ in range(3))
    return [_make_slice(i, study, series, frame) for i in range(slices)]


def _make_slice(i, study, series, frame):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = PATIENT, PATIENT_ID, "19000101", "O"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20260101", "120000", "1", "PLANTED-ACC"
    ds.ReferringPhysicianName = "Planted^Doctor"
    ds.Modality, ds.ImageType, ds.Laterality = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], ""
    ds.Manufacturer, ds.SeriesNumber, ds.InstanceNumber = "Planted Scanner", 2, i + 1
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [-12.0, -16.0, 3.0 * i], [1, 0, 0, 0, 1, 0]
    ds.PositionReferenceIndicator, ds.PatientPosition = "", "HFS"
    ds.PixelSpacing, ds.SliceThickness = [1.0, 1.0], 3.0
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = *SHAPE[1:], 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType, ds.KVP = -1024, 1, "HU", 120
    ds.PixelData = np.random.default_rng(i).integers(0, 2000, SHAPE[1:]).astype("<i2").tobytes()
    return ds


@dataclass
class FakeService(pb_grpc.MedVLServicer):
    """Reports, and finds a liver but no spleen; refuses with the errors of ``refusals`` first.

    Of what the report names, all but the second have masks; these and that of a class differ in place and size.
    ``report_digest`` and ``masks_digest`` are the checkpoints that report and that find classes.

    Uploads end with the bare codes of ``ends`` first, as a proxy or a server that is stopped ends them. After
    :meth:`pause` a report waits for ``go_on``.
    """

    endpoint: str = ""
    refusals: list[MedvlError] = field(default_factory=list)
    ends: list[grpc.StatusCode] = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    reports: int = 0
    digest: str = ""
    geometry: Geometry | None = None
    quantisation: pb.Quantisation | None = None
    report: str = REPORT
    finish_reason: str = "stop"
    disclaimer: str = DISCLAIMER
    report_digest: str = "c" * 64
    masks_digest: str = "c" * 64
    software: str = "medvl-sam2 0.1.0"

    def __post_init__(self):
        self.go_on.set()

    def pause(self):
        """Hold back the next report."""
        self.go_on.clear()

    def Describe(self, request, context):
        return pb.DescribeResponse(
            labels=[
                pb.Label(name="liver", snomed_code="10200004", snomed_meaning="Liver structure"),
                pb.Label(name="spleen", snomed_code="78961009", snomed_meaning="Splenic structure"),
            ]
        )

    def PutSeries(self, messages, context):
        header = next(messages).header
        context.send_initial_metadata(((UPLOAD_KEY, UPLOAD_SEND),))
        self.digest, self.geometry = header.digest, geometry_from_wire(header.geometry)
        for _ in messages:
            if self.ends:
                context.abort(self.ends.pop(), "")
        return pb.PutSeriesResponse(digest=self.digest)

    def Report(self, request, context):
        if self.refusals:
            context.abort_with_status(rpc_status.to_status(to_status(self.refusals.pop())))
        if request.series != self.digest:
            context.abort_with_status(rpc_status.to_status(to_status(SeriesNotResident("Send the series."))))
        self.reports += 1
        self.asked.set()
        self.go_on.wait()
        yield pb.Event(text=pb.TextDelta(text=self.report))
        # Masks come as they are ready: here, and of classes, the last one first.
        for i, marker in reversed([*enumerate(re.finditer(r"\[SEG\]", self.report))]):
            mask = _mask(i, "", self.geometry, found=i != 1)
            mask.span.CopyFrom(pb.TextSpan(start=marker.start(), end=marker.end()))
            yield pb.Event(mask=mask)
        yield pb.Event(done=self._done(self.report, self.report_digest))

    def Segment(self, request, context):
        known = {label.name for label in self.Describe(None, None).labels}
        if unknown := [o.label for o in request.objects if o.label not in known]:
            context.abort_with_status(rpc_status.to_status(to_status(UnknownLabel(f"There is no class {unknown}."))))
        for i, prompt in reversed([*enumerate(request.objects)]):
            yield pb.Event(mask=_mask(i, prompt.label, self.geometry, found=prompt.label == "liver"))
        yield pb.Event(done=self._done("", self.masks_digest))

    def _done(self, text, checkpoint_digest):
        provenance = pb.Provenance(
            series=self.digest,
            checkpoint="phantom",
            checkpoint_digest=checkpoint_digest,
            software=self.software,
            triton_version="2.51.0",
            windows={"vision": "abdomen [-160, 240] HU"},
            quantisation=self.quantisation,
        )
        finish_reason = self.finish_reason if text else ""
        return pb.Done(text=text, finish_reason=finish_reason, provenance=provenance, disclaimer=self.disclaimer)


def _mask(index, label, geometry, found):
    if not found:
        return pb.Mask(object=index, label=label, prompt=label, found=False, score=0.02)
    mask = np.zeros(geometry.shape, bool)
    first_row, rows = (14, 10) if label else (4 + index, 5)
    mask[2:5, first_row : first_row + rows, 3 : 7 + index] = True
    measurement = pb.Measurement(**dataclasses.asdict(measure(mask, geometry)))
    return pb.Mask(
        object=index, label=label, prompt=label, found=True, score=0.9, packed=pack_mask(mask), measurement=measurement
    )


@pytest.fixture
def service() -> Iterator[FakeService]:
    fake = FakeService()
    server = grpc.server(ThreadPoolExecutor(4))
    pb_grpc.add_MedVLServicer_to_server(fake, server)
    fake.endpoint = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield fake
    fake.go_on.set()
    server.stop(None).wait()


def texts(item):
    """Every text value of a content tree, in order."""
    found = [item.TextValue] if "TextValue" in item else []
    return found + [t for child in item.get("ContentSequence", ()) for t in texts(child)]


def stored_mask(seg, number):
    """The mask of a segment as another library reads it, bool [slice, row, column]."""
    volume = highdicom.seg.Segmentation.from_dataset(seg).get_volume(segment_numbers=[number])
    return volume.array[..., 0] > 0


def evidence(sr):
    """The instances that a report says it was made from."""
    [study] = sr.CurrentRequestedProcedureEvidenceSequence
    return {i.ReferencedSOPInstanceUID for s in study.ReferencedSeriesSequence for i in s.ReferencedSOPSequence}


def kind(ds):
    """What a result is: there are two SRs."""
    measures = ds.Modality == "SR" and ds.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    return MEASUREMENTS if measures else ds.Modality


class Inbox:
    """A storage SCP that keeps what it takes; ``status`` is what it answers, ``statuses`` that by modality.

    ``titles`` are those of each association: who called whom.
    """

    def __init__(self, contexts=AllStoragePresentationContexts):
        self.received: queue.Queue[Dataset] = queue.Queue()
        self.status = 0x0000
        self.statuses: dict[str, int] = {}
        self.titles: list[tuple[str, str]] = []
        entity = AE("INBOX")
        entity.supported_contexts = contexts
        handlers = [(evt.EVT_REQUESTED, self._on_request), (evt.EVT_C_STORE, self._on_store)]
        self._server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.destination = Destination("INBOX", "127.0.0.1", self._server.server_address[1])

    def _on_request(self, event):
        request = event.assoc.requestor.primitive
        self.titles.append((request.calling_ae_title, request.called_ae_title))

    def _on_store(self, event):
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        self.received.put(dataset)
        return self.statuses.get(dataset.Modality, self.status)

    def take(self, count=ALL):
        """Wait for so many datasets; return them by what they are."""
        return {kind(ds): ds for ds in (self.received.get(timeout=60) for _ in range(count))}

    def close(self):
        self._server.shutdown()


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    box = Inbox()
    yield box
    box.close()


@pytest.fixture
def config(service, inbox, tmp_path) -> GatewayConfig:
    return GatewayConfig(
        ae_title="MEDVL",
        host="127.0.0.1",
        port=0,
        endpoint=service.endpoint,
        destination=inbox.destination,
        labels=("liver", "spleen"),
        geometry_policy="reject",
        spool=tmp_path / "spool",
        quiet_s=0.3,
        keep_s=3600.0,
        keep_refused_s=3600.0,
    )


@pytest.fixture
def outcomes(monkeypatch) -> asyncio.Queue[bool]:
    """Gets True for each delivery that succeeded, False for each that failed, once it is in the spool."""
    done: asyncio.Queue[bool] = asyncio.Queue()
    record = SpooledSeries.record

    def watched(self, fingerprint, phase):
        state = record(self, fingerprint, phase)
        if phase is not Phase.BEGUN:
            done.put_nowait(phase is Phase.DELIVERED)
        return state

    monkeypatch.setattr(SpooledSeries, "record", watched)
    return done


@pytest.fixture
def sending(monkeypatch) -> Sending:
    """While something is being sent, nothing is due: a busy machine may take longer than the quiet time between two."""
    sending = Sending()
    due_at_s = SpooledSeries.due_at_s

    def watched(self, quiet_s):
        return None if sending.now else due_at_s(self, quiet_s)

    monkeypatch.setattr(SpooledSeries, "due_at_s", watched)
    return sending


@dataclass
class Sending:
    """Counts the senders at work."""

    now: int = 0

    def __enter__(self):
        self.now += 1

    def __exit__(self, *_):
        self.now -= 1


async def run_until_stopped(gateway: Gateway, stopped: asyncio.Event) -> None:
    """Run a gateway; raise what ended it when nobody had asked for that."""
    try:
        await gateway.run()
    except asyncio.CancelledError:
        # A task group takes a cancelled task for one that was told to end.
        if asyncio.current_task().cancelling():
            raise
        raise RuntimeError("a cancellation that nobody asked for ended the gateway") from None
    if not stopped.is_set():
        raise RuntimeError("the gateway ended by itself")


@dataclass
class Site:
    """All of it together; ``changes`` are fields of the gateway's configuration."""

    config: GatewayConfig
    service: FakeService
    inbox: Inbox
    outcomes: asyncio.Queue[bool]
    sending: Sending

    @asynccontextmanager
    async def gateway(self, **changes):
        """A gateway that works for the length of a block; leaving the block stops it as SIGTERM does.

        One that dies ends the block at once, with what it died of.
        """
        gateway, stopped = Gateway(dataclasses.replace(self.config, **changes)), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(run_until_stopped(gateway, stopped))
            yield gateway
            stopped.set()
            gateway.stop()

    async def send(self, gateway, datasets, title="MEDVL"):
        """Send datasets as a scanner does; return the statuses, or None when the association was rejected."""
        return await self.send_to(gateway.port, datasets, title)

    async def send_to(self, port, datasets, title="MEDVL"):
        """Send datasets to a port of this host."""
        with self.sending:
            return await asyncio.to_thread(send, port, datasets, title)

    async def answered(self, series, count=ALL, **changes):
        """Send a series and return what came back by what it is: so many documents."""
        async with self.gateway(**changes) as gateway:
            assert await self.send(gateway, series) == [0] * len(series)
            assert await self.outcomes.get()
        assert self.inbox.received.qsize() == count
        return self.inbox.take(count)

    def spooled(self):
        """The one series in the spool, which a gateway may be using."""
        [folder] = (self.config.spool / "series").iterdir()
        return SpooledSeries(folder)


@pytest.fixture
def site(config, service, inbox, outcomes, sending) -> Site:
    return Site(config, service, inbox, outcomes, sending)


@pytest.fixture
def series():
    return make_series()


def send(port, datasets, title):
    entity = AE("SCANNER")
    for syntax in {ds.file_meta.TransferSyntaxUID for ds in datasets}:
        entity.add_requested_context(CTImageStorage, syntax)
    association = entity.associate("127.0.0.1", port, ae_title=title)
    if not association.is_established:
        return None
    leave_answers(association)
    statuses = [association.send_c_store(ds).Status for ds in datasets]
    association.release()
    return statuses
