"""What a sender may not do to the gateway's port; what it may, the tests of the gateway show."""

from __future__ import annotations

import zlib
from io import BytesIO

import pytest
from pydicom import Dataset
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless
from pynetdicom import AE, build_context
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import Verification

from medvl.pacs.dimse import CANNOT_UNDERSTAND, SUCCESS, StorageScp
from medvl.pacs.spool import Spool, SpooledSeries

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
    return entity.associate("127.0.0.1", scp.port, ae_title="MEDVL")


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
    # Otherwise the association's own thread takes the answer.
    association._reactor_checkpoint.clear()
    begin_store(association, dataset)
    status = association.dimse.get_msg(block=True)[1].Status
    association._reactor_checkpoint.set()
    return status


def encoded(**elements):
    """The bytes of a data set."""
    ds = Dataset()
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return encode(ds, False, True)


def files(spool):
    return [path for series in spool.series() for path in series.instances.iterdir()]


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
