"""What a sender may not do to the gateway's port, and how long a result may take; the rest: test_gateway.py."""

from __future__ import annotations

import socket
import threading
import time
import zlib
from contextlib import nullcontext, suppress
from io import BytesIO
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from pydicom import Dataset
from pydicom.uid import (
    JPEG2000,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    LegacyConvertedEnhancedCTImageStorage,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, build_context, evt
from pynetdicom import association as association_module
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import Verification

from medvl.contracts.errors import BackendUnavailable
from medvl.pacs import dimse
from medvl.pacs.config import Destination
from medvl.pacs.dimse import (
    CANNOT_UNDERSTAND,
    DOES_NOT_MATCH,
    DUPLICATE_INSTANCE,
    SUCCESS,
    StorageScp,
    deliver,
    leave_answers,
)
from medvl.pacs.spool import Spool, SpooledSeries

from .conftest import make_series

PLACES = 10
"""Associations at a time."""


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "spool")
    yield spool
    spool.close()


@pytest.fixture
def scp(spool):
    scp = StorageScp("MEDVL", "127.0.0.1", 0, spool)
    yield scp
    scp.stop()


def associate(scp, contexts=None):
    """An association with the gateway, or one that it has rejected."""
    entity = AE("SENDER")
    entity.requested_contexts = contexts or [
        build_context(Verification),
        build_context(CTImageStorage, ExplicitVRLittleEndian),
    ]
    association = entity.associate("127.0.0.1", scp.port, ae_title="MEDVL")
    leave_answers(association)
    return association


def write(association, data):
    """Send bytes past the rules of pynetdicom."""
    association.dul.socket.socket.sendall(data)


def ended(association):
    """Whether the other side ends an association; waits for it."""
    association.join(60)
    # pynetdicom leaves it to the garbage collector.
    association.dul.socket.socket.close()
    return association.is_aborted and not association.is_alive()


def context_of(association, sop_class):
    return next(c.context_id for c in association.accepted_contexts if c.abstract_syntax == sop_class)


def begin_store(association, dataset):
    """Send the bytes of a data set by C-STORE."""
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CTImageStorage, "1.2.3.4"
    request.DataSet = BytesIO(dataset)
    association.dimse.send_msg(request, context_of(association, CTImageStorage))


def store(association, dataset):
    """Send the bytes of a data set by C-STORE; return the status."""
    begin_store(association, dataset)
    return association.dimse.get_msg(block=True)[1].Status


def encoded(**elements):
    """The bytes of a data set."""
    ds = Dataset()
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return encode(ds, False, True)


def files(spool):
    return [path for series in spool.series() for path in series.instances.iterdir()]


def test_peers_that_stall_within_a_pdu_lose_their_places(scp, monkeypatch):
    """Ten of them would end the service; one that says nothing between two PDUs is idle, and stays."""
    monkeypatch.setattr(dimse, "SOCKET_TIMEOUT_S", 1.0)
    associations = [associate(scp) for _ in range(PLACES)]
    assert all(association.is_established for association in associations)
    assert associate(scp).is_rejected
    *stalled, idle = associations
    for association in stalled:
        write(association, b"\x04\0\0\0")
    assert all(ended(association) for association in stalled)
    assert idle.send_c_echo().Status == SUCCESS
    # Threads of the associations that have ended may still be there for a moment.
    while not (later := associate(scp)).is_established:
        pass
    for association in (idle, later):
        association.release()


@pytest.mark.parametrize("pdus", [False, True], ids=["within-a-pdu", "pdu-by-pdu"])
def test_a_peer_that_trickles_loses_its_place(scp, monkeypatch, pdus):
    """It never stalls, but would be there for ever; one that is slow, but fast enough, is taken."""
    monkeypatch.setattr(dimse, "SOCKET_TIMEOUT_S", 3.0)
    monkeypatch.setattr(dimse, "MIN_BYTES_PER_S", 1000)
    slow, trickling = associate(scp), associate(scp)
    context = context_of(trickling, CTImageStorage)
    # A fragment of a command, of which more follow: 1 byte, or as many as it takes to go on for a minute.
    header, fragment = b"\x04\0", bytes([context, 0b01])

    def pdu(data):
        value = (len(data) + 2).to_bytes(4, "big") + fragment + data
        return header + len(value).to_bytes(4, "big") + value

    drops = [pdu(b"\0")] * 600 if pdus else [byte.to_bytes(1, "big") for byte in pdu(bytes(600))]
    began_s = time.monotonic()
    with suppress(OSError):
        for drop in drops:
            write(trickling, drop)
            time.sleep(0.1)
    assert ended(trickling)
    assert time.monotonic() - began_s < 30
    slow.dul.socket.send, send = lambda data: (time.sleep(0.6), send(data)), slow.dul.socket.send
    began_s = time.monotonic()
    assert store(slow, encoded(SeriesInstanceUID="1.2.3", BitsAllocated=8, PixelData=bytes(100_000))) == SUCCESS
    assert time.monotonic() - began_s > dimse.SOCKET_TIMEOUT_S
    slow.release()


def test_a_request_that_claims_more_than_any_needs_is_not_read(scp):
    """It may claim 4 GiB, which would be kept until they are there."""
    with socket.create_connection(("127.0.0.1", scp.port), timeout=20) as peer:
        peer.sendall(b"\x01\0" + (dimse.MAX_PDU_BYTES + 1).to_bytes(4, "big"))
        assert not peer.recv(1)


def test_the_longest_request_of_an_association_is_taken(scp):
    """128 presentation contexts, each with every transfer syntax."""
    classes = [context.abstract_syntax for context in AllStoragePresentationContexts if context.abstract_syntax]
    classes = [CTImageStorage, *(c for c in classes if c != CTImageStorage)][:128]
    association = associate(scp, [build_context(c, ALL_TRANSFER_SYNTAXES) for c in classes])
    assert [c.abstract_syntax for c in association.accepted_contexts][:1] == [CTImageStorage]
    association.release()


def test_data_that_claim_more_than_was_agreed_on_end_the_association(scp):
    """Before any of them is read."""
    association = associate(scp)
    write(association, b"\x04\0" + (dimse.MAX_PDU_BYTES + 1).to_bytes(4, "big"))
    assert ended(association)


def test_an_instance_that_is_too_large_ends_its_association_and_no_other(scp, spool, monkeypatch):
    """It is not kept until it is there. Smaller ones may be any number."""
    monkeypatch.setattr(dimse, "MAX_MESSAGE_BYTES", 20_000)
    series = make_series(12)
    association = associate(scp)
    assert [association.send_c_store(ds).Status for ds in series] == [SUCCESS] * len(series)
    too_large = series[0]
    too_large.PixelData = bytes(20_000)
    assert "Status" not in association.send_c_store(too_large)
    assert ended(association)
    assert len(files(spool)) == len(series)
    again = associate(scp)
    assert again.send_c_store(series[1]).Status == SUCCESS
    again.release()


def test_all_peers_together_send_only_so_much(scp, spool, monkeypatch):
    """What one brings beyond it ends its association; what is written is nobody's any more, also if its peer stays."""
    monkeypatch.setattr(dimse, "MAX_RECEIVED_BYTES", 300_000)
    receive, entered, go_on = Spool.receive, threading.Event(), threading.Event()

    def slow(*arguments):
        entered.set()
        assert go_on.wait(60)
        receive(*arguments)

    monkeypatch.setattr(Spool, "receive", slow)
    large = encoded(SeriesInstanceUID="1.2.3", BitsAllocated=8, PixelData=bytes(200_000))
    first, second, third = (associate(scp) for _ in range(3))
    begin_store(first, large)
    assert entered.wait(60)
    begin_store(second, large)
    assert ended(second)
    go_on.set()
    assert first.dimse.get_msg(block=True)[1].Status == SUCCESS
    assert store(third, large) == SUCCESS
    for association in (first, third):
        association.release()


def test_a_peer_that_does_not_wait_for_answers_is_not_buffered_for_ever(scp, monkeypatch):
    """Small messages cost more memory than they have bytes."""
    go_on = threading.Event()
    monkeypatch.setattr(Spool, "receive", lambda *_: go_on.wait(60))
    association = associate(scp)
    begin_store(association, encoded(SeriesInstanceUID="1.2.3"))
    for number in range(dimse.MAX_WAITING_MESSAGES + 2):
        echo = C_ECHO()
        echo.MessageID, echo.AffectedSOPClassUID = number + 2, Verification
        association.dimse.send_msg(echo, context_of(association, Verification))
    assert ended(association)
    go_on.set()


def test_a_data_set_cannot_say_how_its_file_is_read(scp, spool):
    """Group 0002 in front of it would go on with the gateway's own: here as deflated, which inflates to any size."""
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    deflated = deflate.compress(encoded(SeriesInstanceUID="1.2.3")) + deflate.flush()
    syntax = DeflatedExplicitVRLittleEndian.encode()
    meta = b"\x02\0\x10\0UI" + len(syntax).to_bytes(2, "little") + syntax
    association = associate(scp)
    assert store(association, meta + deflated) == CANNOT_UNDERSTAND
    assert not files(spool)
    assert store(association, encoded(SeriesInstanceUID="1.2.3")) == SUCCESS
    assert len(files(spool)) == 1
    association.release()


def test_what_is_not_kept_is_not_acknowledged(scp, spool, caplog):
    """The sender would delete what nobody has. The association stays: the next instance may be a good one."""
    association = associate(scp)
    series_uid, patient = b"\x20\0\x0e\0", encoded(PatientID="PLANTED")
    for dataset, status in (
        (patient, DOES_NOT_MATCH),
        (encoded(PatientID="PLANTED", SeriesInstanceUID=""), DOES_NOT_MATCH),
        # There is no value representation of that name, and these are not of UIDs.
        (patient + series_uid + b"U\0\x06\x001.2.3\0", CANNOT_UNDERSTAND),
        (patient + series_uid + b"IS\0\0", CANNOT_UNDERSTAND),
        (patient + series_uid + b"FL\x03\x00123", CANNOT_UNDERSTAND),
        # Cut off: within the UID, which would be another series', and within the header of an element.
        (patient + series_uid + b"UI\x06\x001.2", CANNOT_UNDERSTAND),
        (patient + b"\x18\0\x32\x10SQ\0\0\x12", CANNOT_UNDERSTAND),
    ):
        assert store(association, dataset) == status, dataset
        assert not files(spool)
    assert caplog.text.count("could not be understood") == 5
    assert "PLANTED" not in caplog.text
    assert store(association, encoded(SeriesInstanceUID="1.2.3")) == SUCCESS
    association.release()


def test_every_kind_of_ct_is_taken_and_nothing_else(scp):
    """What is never worked on would be acknowledged for nothing."""
    kinds = [CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage]
    others = [MRImageStorage, SecondaryCaptureImageStorage, SegmentationStorage]
    association = associate(scp, [build_context(kind, ExplicitVRLittleEndian) for kind in [*kinds, *others]])
    assert [context.abstract_syntax for context in association.accepted_contexts] == kinds
    association.release()


def test_what_scanners_and_archives_send_is_taken(scp):
    """An archive that stores one of these sends nothing where it is not taken."""
    syntaxes = [
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        RLELossless,
        JPEGLosslessSV1,
        JPEGLSLossless,
        JPEGLSNearLossless,
        JPEG2000Lossless,
        JPEG2000,
    ]
    association = associate(scp, [build_context(CTImageStorage, syntax) for syntax in syntaxes])
    assert [context.transfer_syntax for context in association.accepted_contexts] == [[one] for one in syntaxes]
    association.release()


def test_other_content_of_an_instance_replaces_it(scp, spool):
    """Other bytes, or the same ones in another transfer syntax; what comes again leaves the series what it was."""

    def fingerprint(patient, syntax=ExplicitVRLittleEndian):
        association = associate(scp, [build_context(CTImageStorage, syntax)])
        assert store(association, encoded(PatientID=patient, SeriesInstanceUID="1.2.3")) == SUCCESS
        association.release()
        [path] = files(spool)
        assert patient.encode() in path.read_bytes()
        return SpooledSeries(path.parent.parent).fingerprint()

    first = fingerprint("PLANTED")
    assert fingerprint("PLANTED") == first
    assert len({first, fingerprint("PLANTED", RLELossless), fingerprint("CORRECTED")}) == 3


def test_an_instance_whose_last_pixel_alone_was_corrected_replaces_it(scp, spool):
    """All of it counts, not only what is said of it."""
    ds = make_series(1)[0]
    association = associate(scp)
    for last_pixel in (b"\1\0", b"\2\0"):
        ds.PixelData = ds.PixelData[:-2] + last_pixel
        assert association.send_c_store(ds).Status == SUCCESS
        [path] = files(spool)
        assert path.read_bytes().endswith(ds.PixelData)
    association.release()


def test_a_destination_that_warns_or_has_it_already_has_the_result(inbox, tmp_path):
    """Elements were coerced, discarded, or do not match the SOP class, but it was stored (PS3.4, table B.2-1)."""
    make_series(1)[0].save_as(tmp_path / "result.dcm", enforce_file_format=True)
    for inbox.status in (SUCCESS, DUPLICATE_INSTANCE, 0xB000, 0xB006, 0xB007):
        deliver([tmp_path / "result.dcm"], "MEDVL", inbox.destination)


def test_a_destination_that_says_anything_else_has_no_result(inbox, tmp_path):
    """It is not forgotten, whatever kind of failure it is; nor where the answer makes no sense for C-STORE."""
    make_series(1)[0].save_as(tmp_path / "result.dcm", enforce_file_format=True)
    for inbox.status in (0x0110, 0x0122, 0x0124, 0xA700, 0xA900, 0xC000, 0xFE00, 0xFF00):
        with pytest.raises(BackendUnavailable, match="did not store every result"):
            deliver([tmp_path / "result.dcm"], "MEDVL", inbox.destination)


def test_an_answer_reaches_whoever_waits_for_it(inbox, tmp_path, monkeypatch):
    """Also where pynetdicom's own thread is not paused, as it is late on a busy machine, and we are later still."""

    class Unpaused(threading.Event):
        def clear(self):
            pass

    take = DIMSEServiceProvider.get_msg

    def late(self, block=False):
        if block:
            time.sleep(0.2)
        return take(self, block)

    monkeypatch.setattr(association_module.Association, "_is_paused", property(lambda _: True, Mock()), raising=False)
    monkeypatch.setattr(association_module, "threading", SimpleNamespace(**vars(threading) | {"Event": Unpaused}))
    monkeypatch.setattr(DIMSEServiceProvider, "get_msg", late)
    monkeypatch.setattr(dimse, "DELIVERY_TIMEOUT_S", 5.0)
    make_series(1)[0].save_as(tmp_path / "result.dcm", enforce_file_format=True)
    deliver([tmp_path / "result.dcm"] * 3, "MEDVL", inbox.destination)
    assert inbox.received.qsize() == 3


@pytest.mark.parametrize(("patience_s", "delivered"), [(dimse.DELIVERY_TIMEOUT_S, True), (0.2, False)])
def test_a_result_may_take_its_time(tmp_path, monkeypatch, patience_s, delivered):
    """The limit is ours, not pynetdicom's 30 s: the line may be slow and the SEG large."""
    make_series(1)[0].save_as(tmp_path / "result.dcm", enforce_file_format=True)
    monkeypatch.setattr(dimse, "DELIVERY_TIMEOUT_S", patience_s)
    entity = AE("PACS")
    entity.supported_contexts = AllStoragePresentationContexts
    let_go = threading.Event()

    def late(_: evt.Event) -> int:
        let_go.wait(1.0)
        return SUCCESS

    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, late)])
    try:
        with nullcontext() if delivered else pytest.raises(BackendUnavailable):
            deliver([tmp_path / "result.dcm"], "MEDVL", Destination("PACS", "127.0.0.1", server.server_address[1]))
    finally:
        let_go.set()
        server.shutdown()
