"""The size that a compressed frame claims, read before a decoder takes memory for it.

Sources: ITU-T T.81 (JPEG), annex B; T.87 (JPEG-LS), annex C; T.800 (JPEG 2000), annexes A and I; T.814 (HTJ2K) has the
SIZ of T.800.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from struct import unpack_from

from pydicom.uid import JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

SYNTAXES = frozenset({*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes})
"""Transfer syntaxes whose frames say a size."""
_SOI = b"\xff\xd8"
_MARKER = re.compile(rb"\xff+([^\x00\xff])")
"""As decoders find it: behind anything that is none."""
_FRAME_HEADERS = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
"""SOF0 to SOF15 and SOF55; DHT, JPG and DAC lie among them."""
_WITHOUT_SEGMENT = frozenset({0x01, *range(0xD0, 0xD9)})
"""TEM, RST0 to RST7, SOI."""
_EOI, _SOS = 0xD9, 0xDA
_SOC_SIZ = b"\xff\x4f\xff\x51"
_JP2_SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"


@dataclass(frozen=True, slots=True)
class FrameSize:
    """Rows, columns and components of a frame."""

    rows: int
    columns: int
    components: int


def claimed_sizes(frame: bytes, transfer_syntax: str) -> set[FrameSize]:
    """Return every size that a frame claims, compressed in one of :data:`SYNTAXES`.

    Decoders differ in which of several frame headers they believe. A frame whose height only a DNL segment tells claims
    0 rows.

    Raises
    ------
    ValueError, struct.error
        When it is no codestream of its syntax, or ends before its size.
    """
    if transfer_syntax in JPEG2000TransferSyntaxes:
        return {_jpeg2000_size(frame)}
    return set(_jpeg_sizes(frame))


def _jpeg_sizes(frame: bytes) -> Iterator[FrameSize]:
    """Yield the size of every frame header before the first scan."""
    if not frame.startswith(_SOI):
        raise ValueError("no JPEG")
    place = len(_SOI)
    while marker := _MARKER.search(frame, place):
        place, code = marker.end(), marker[1][0]
        if code in {_SOS, _EOI}:
            return
        if code in _FRAME_HEADERS:
            # Behind the length of the segment and the precision of samples.
            yield FrameSize(*unpack_from(">HHB", frame, place + 3))
        if code not in _WITHOUT_SEGMENT:
            place += unpack_from(">H", frame, place)[0]


def _jpeg2000_size(frame: bytes) -> FrameSize:
    """Return the size of the image area of SIZ, which follows SOC."""
    start = _codestream_start(frame)
    if frame[start : start + 4] != _SOC_SIZ:
        raise ValueError("no JPEG 2000")
    right, bottom, left, top = unpack_from(">4I", frame, start + 8)
    (components,) = unpack_from(">H", frame, start + 40)
    return FrameSize(bottom - top, right - left, components)


def _codestream_start(frame: bytes) -> int:
    """Return where the codestream begins: some writers wrap it in a JP2 file, against DICOM PS3.5 A.4.4."""
    if not frame.startswith(_JP2_SIGNATURE):
        return 0
    place = 0
    while True:
        length, kind = unpack_from(">I4s", frame, place)
        header = 8
        if length == 1:
            (length,), header = unpack_from(">Q", frame, place + 8), 16
        if kind == b"jp2c":
            return place + header
        if length < header:
            raise ValueError("no JP2")
        place += length
