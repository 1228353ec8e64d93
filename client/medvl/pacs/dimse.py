"""DICOM on the wire: a C-STORE SCP that writes before it acknowledges, and an SCU that delivers."""

from __future__ import annotations

import hashlib
import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.filereader import read_dataset
from pydicom.pixels import get_decoder
from pydicom.tag import Tag
from pydicom.uid import UID, ImplicitVRLittleEndian
from pydicom.valuerep import VR
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
from pynetdicom.dsutils import encode_file_meta
from pynetdicom.sop_class import (
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    Verification,
)
from pynetdicom.status import code_to_category

from medvl.contracts.defects import cause_of
from medvl.contracts.errors import BackendUnavailable, SetupError
from medvl.pacs.config import Destination
from medvl.pacs.spool import Spool

STORAGE_CLASSES = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
CONNECT_TIMEOUT_S = 10.0
SOCKET_TIMEOUT_S = 60.0
"""How long a peer may neither send nor take a byte in the middle of a PDU; without a limit it keeps its association for
ever. Between PDUs nothing is read: how long an association may be idle there, 60 s too, is pynetdicom's own timeout."""
MIN_BYTES_PER_S = 4096
"""Of a message, on the average, :data:`SOCKET_TIMEOUT_S` after it began: a peer that sends a byte now and then never
stalls, but keeps its association for ever, too."""
DELIVERY_TIMEOUT_S = 600.0
"""From the first byte of a result to the answer. pynetdicom's 30 s are over before a slow line has taken a large SEG,
which was never delivered then. A destination that stalls is given up earlier, after :data:`SOCKET_TIMEOUT_S`."""
MAX_PDU_BYTES = 256 << 10
"""Of one PDU, whatever length it claims. The longest that makes sense is a request of an association: 128 presentation
contexts with all transfer syntaxes that there are take 154 KiB. A peer that sends more data at once than was agreed on
(16 KiB) does no harm up to here."""
MAX_MESSAGE_BYTES = (1024 + 64) << 20
"""Of what a peer has sent and nobody has taken yet: one C-STORE. One multi-frame instance can be a whole series; the
service takes 1 GiB of voxels unless told otherwise (``series.max_series_bytes``), and 64 MiB are room for its headers.
"""
MAX_RECEIVED_BYTES = 3 << 30
"""The same of all peers together, whose instances are written one after another; what is more ends the association that
brings it. Without it ten peers may bring ten of the largest at a time, which no memory is meant for."""
MAX_WAITING_MESSAGES = 16
"""Whole messages of one peer. A peer waits for each answer, since nothing else is negotiated, so one is what comes."""

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
OUT_OF_RESOURCES = 0xA700
DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
DUPLICATE_INSTANCE = 0x0111
"""Our UIDs follow from what a result was made of: whoever has one of that UID has the result."""

_PREAMBLE = bytes(128) + b"DICM"
FILE_META_GROUP = b"\x02\x00"
"""Group 0002, little endian. Where a data set begins with it, whoever reads the file takes it for more of our file meta
information: another transfer syntax in it, such as a deflated one, would count."""

_LOG = logging.getLogger(__name__)


class StorageScp:
    """Takes C-STORE and C-ECHO until it is stopped.

    Parameters
    ----------
    ae_title
        Associations that call another title are rejected.
    host, port
        Where to listen; port 0 takes a free one.
    spool
        Where instances go.

    Raises
    ------
    SetupError
        When the port cannot be had.
    """

    def __init__(self, ae_title: str, host: str, port: int, spool: Spool) -> None:
        entity = AE(ae_title)
        entity.require_called_aet = True
        entity.add_supported_context(Verification)
        for storage_class in STORAGE_CLASSES:
            entity.add_supported_context(storage_class, [*_transfer_syntaxes()])
        received = _Received()
        handlers = [
            (evt.EVT_CONN_OPEN, _set_options),
            (evt.EVT_CONN_OPEN, _limit, [received]),
            (evt.EVT_C_STORE, _on_store, [spool, received]),
        ]
        try:
            self._server = entity.start_server((host, port), block=False, evt_handlers=handlers)
        except OSError as error:
            raise SetupError(f"Port {port} cannot be listened on ({error.strerror}): choose another one.") from None

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Take nothing more; running associations are aborted, and their senders send again."""
        self._server.shutdown()


def _transfer_syntaxes() -> Iterator[UID]:
    """Yield those whose pixels can be read here, but not deflate: a small message can inflate to any size."""
    for syntax in map(UID, ALL_TRANSFER_SYNTAXES):
        with suppress(NotImplementedError):
            if "Deflate" not in syntax.name and get_decoder(syntax).is_available:
                yield syntax


def _set_options(event: evt.Event) -> None:
    connection = event.assoc.dul.socket.socket
    # Nagle's algorithm against delayed acknowledgements costs 50 ms an instance.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.settimeout(SOCKET_TIMEOUT_S)


class _Received:
    """What peers have sent and nobody has taken yet: when it began, and its bytes, by association."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._messages: dict[Any, tuple[float, int]] = {}

    def count(self, association: Any, more: int) -> float:  # noqa: ANN401 - pynetdicom has no types that mypy follows
        """Count what is read next; return by when it has to be there, on the monotonic clock.

        Raises
        ------
        ConnectionAbortedError
            When this peer would have sent too much with it, or all of them.
        """
        dimse = association.dimse
        taken = dimse.message is None and dimse.msg_queue.empty()
        none = time.monotonic(), 0
        with self._lock:
            began_s, held = none if taken else self._messages.get(association, none)
            held += more
            self._messages[association] = began_s, held
            self._messages = {peer: own for peer, own in self._messages.items() if own[1] and peer.dul.is_alive()}
            together = sum(own for _, own in self._messages.values())
        if held > MAX_MESSAGE_BYTES or together > MAX_RECEIVED_BYTES:
            raise ConnectionAbortedError
        return began_s + SOCKET_TIMEOUT_S + held / MIN_BYTES_PER_S


def _limit(event: evt.Event, received: _Received) -> None:
    """Bound what a peer makes us hold, and how long: pynetdicom reads what a PDU claims and keeps what comes.

    It tells of a PDU only when it has it, so its reads are ours: one of the 6 bytes of a PDU's header, then one of as
    many as that claims. An error of a read ends the association, as a connection does that is lost.
    """
    association = event.assoc
    connection, waiting = association.dul.socket.socket, association.dimse.msg_queue

    def recv(count: int) -> bytearray:
        try:
            by_s = received.count(association, count)
            if count > MAX_PDU_BYTES or waiting.qsize() > MAX_WAITING_MESSAGES:
                raise ConnectionAbortedError
            return _read(connection, count, by_s)
        except (ConnectionAbortedError, TimeoutError):
            _LOG.warning("an association was ended: its peer sends more than it may, or all together do, or too slowly")
            raise

    association.dul.socket.recv = recv


def _read(connection: socket.socket, count: int, by_s: float) -> bytearray:
    """Read bytes that have to be there by a time of the monotonic clock, fewer where the connection is closed.

    Raises
    ------
    OSError
        When the connection is lost; TimeoutError when the time is over, or when none comes for a while.
    """
    data = bytearray()
    try:
        while len(data) < count:
            left_s = by_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            connection.settimeout(min(SOCKET_TIMEOUT_S, left_s))
            more = connection.recv(count - len(data))
            if not more:
                break
            data += more
    finally:
        connection.settimeout(SOCKET_TIMEOUT_S)
    return data


def _series_uid(dataset: bytes, syntax: UID) -> str:
    """Return the UID of an instance's series, or nothing; what comes after it is not looked at, nor copied.

    Raises
    ------
    Exception
        Whatever pydicom raises of bytes that are no data set; ValueError when one ends within the UID, or it is none.
    """
    tag = Tag("SeriesInstanceUID")
    plain = syntax.is_implicit_VR, syntax.is_little_endian
    header = read_dataset(BytesIO(dataset), *plain, stop_when=lambda now, *_: now > tag, specific_tags=[tag])
    if tag not in header:
        return ""
    element = header.get_item(tag)
    value = element.value or b""
    if len(value) != element.length or element.VR not in {None, VR.UI, VR.UN}:
        raise ValueError("The data set ends within the UID, or it is of another value representation.")
    return str(value, "ascii").strip(" \0")


def _digest(syntax: UID, dataset: bytes) -> str:
    """Return what names the content of an instance: 128 bits of SHA-256 over transfer syntax and data set.

    Not over the file meta information that we put before it, which names the version of pynetdicom. An instance that
    comes again in another transfer syntax is other content: its bytes are, and its pixels may be.
    """
    content = hashlib.sha256(syntax.encode())
    content.update(dataset)
    return content.hexdigest()[:32]


def _on_store(event: evt.Event, spool: Spool, received: _Received) -> int:
    try:
        return _store(event, spool)
    finally:
        # Its peer says nothing before it has its answer, and perhaps nothing for a while after that.
        received.count(event.assoc, 0)


def _store(event: evt.Event, spool: Spool) -> int:
    syntax = event.context.transfer_syntax
    try:
        dataset: bytes = event.encoded_dataset(include_meta=False)
        if dataset.startswith(FILE_META_GROUP):
            return CANNOT_UNDERSTAND
        series_uid = _series_uid(dataset, syntax)
    except Exception as error:
        _LOG.warning("an instance could not be understood: %s", cause_of(error))
        return CANNOT_UNDERSTAND
    if not series_uid:
        return DOES_NOT_MATCH
    head = _PREAMBLE + encode_file_meta(event.file_meta)
    try:
        spool.receive(series_uid, str(event.request.AffectedSOPInstanceUID), _digest(syntax, dataset), head, dataset)
    except OSError as error:
        _LOG.error("an instance could not be written: %s", error.strerror)
        return OUT_OF_RESOURCES
    except Exception:
        # pynetdicom would answer for it, and tell a log that is muted.
        _LOG.exception("a defect: an instance could not be kept")
        return PROCESSING_FAILURE
    return SUCCESS


def deliver(files: Sequence[Path], ae_title: str, destination: Destination) -> None:
    """Send files by C-STORE in one association, each whatever became of those before it.

    Parameters
    ----------
    files
        DICOM files, in the order in which they go.
    ae_title
        Our own title.
    destination
        Where to.

    Raises
    ------
    BackendUnavailable
        When the destination cannot be reached, or does not take every file.
    """
    headers = [dcmread(path, stop_before_pixels=True) for path in files]
    entity = AE(ae_title)
    entity.connection_timeout = CONNECT_TIMEOUT_S
    entity.dimse_timeout = DELIVERY_TIMEOUT_S
    for kind in {(h.file_meta.MediaStorageSOPClassUID, h.file_meta.TransferSyntaxUID) for h in headers}:
        entity.add_requested_context(*kind)
    for sop_class in {h.file_meta.MediaStorageSOPClassUID for h in headers}:
        # PS3.5 10.1 wants it offered. In a context of its own: where both are taken, files go as they are.
        entity.add_requested_context(sop_class, ImplicitVRLittleEndian)
    association = entity.associate(
        destination.host,
        destination.port,
        ae_title=destination.ae_title,
        evt_handlers=[(evt.EVT_CONN_OPEN, _set_options)],
    )
    if not association.is_established:
        raise BackendUnavailable("The destination does not answer: results are kept and sent again later.")
    leave_answers(association)
    try:
        stored = [_send(association, path) for path in files]
    finally:
        association.release()
    if not all(stored):
        raise BackendUnavailable("The destination did not store every result: they are kept and sent again later.")


def leave_answers(association: Any) -> None:  # noqa: ANN401 - pynetdicom has no types that mypy follows
    """Leave what comes in an association that we began to whoever waits for it.

    pynetdicom's own thread takes what a peer asks, which here is nothing. It is paused while an answer is waited for,
    but on a busy machine it may be a turn late (its issue 435), take the answer and drop it: the result would be sent
    again after :data:`DELIVERY_TIMEOUT_S`.
    """
    take = association.dimse.get_msg

    def get_msg(block: bool = False) -> tuple[Any, Any]:
        return take(block) if block else (None, None)

    association.dimse.get_msg = get_msg


def _send(association: Any, path: Path) -> bool:  # noqa: ANN401 - pynetdicom has no types that mypy follows
    """Return whether the destination has a file now."""
    try:
        status = association.send_c_store(path).get("Status")
    except (ValueError, RuntimeError):
        # No accepted presentation context, or the association ended.
        return False
    return status == DUPLICATE_INSTANCE or (status is not None and code_to_category(status) in {"Success", "Warning"})
