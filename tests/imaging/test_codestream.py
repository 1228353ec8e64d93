"""No decoder takes memory for what a compressed frame claims against its file."""

from __future__ import annotations

import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders import rle
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import (
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from medvl.contracts.errors import CorruptFile
from medvl.embedded.files import TRANSFER_SYNTAXES, write_series
from medvl.embedded.phantom import make_phantom, sized
from medvl.imaging.codestream import FrameSize, claimed_sizes
from medvl.imaging.series import read_series

SIDE = 40
LIE = 12000


def written(folder, syntax):
    """A phantom as a series of a transfer syntax."""
    phantom = make_phantom(3, sized(4, SIDE))
    write_series(folder, phantom, transfer_syntax=syntax)
    return phantom


def rewritten(folder, change, syntax=None):
    """Put the frames that ``change`` makes of the one of each file into it."""
    for path in folder.iterdir():
        dataset = dcmread(path)
        frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
        dataset.PixelData = encapsulate([bytes(made) for made in change(frame)])
        if syntax:
            dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path)


def jpeg(rows, columns, **options):
    """A frame of JPEG Baseline."""
    buffer = BytesIO()
    Image.fromarray(np.zeros((rows, columns), np.uint8)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def stated(frame, marker, layout, offset, *values):
    """A frame with other values at a place behind a marker."""
    lying = bytearray(frame)
    struct.pack_into(layout, lying, lying.index(marker) + offset, *values)
    return bytes(lying)


def of_jpeg2000(frame, side=LIE):
    return stated(stated(frame, b"\xff\x51", ">II", 6, side, side), b"\xff\x51", ">II", 22, side, side)


def in_jp2(frame):
    """A codestream in the file format that DICOM does not want and some writers use."""
    inner = struct.pack(">I4sIIHBBBB", 22, b"ihdr", SIDE, SIDE, 1, 15, 7, 0, 0)
    inner += struct.pack(">I4sBBBI", 15, b"colr", 1, 0, 0, 17)
    kind = struct.pack(">I4s4sI4s", 20, b"ftyp", b"jp2 ", 0, b"jp2 ")
    header = struct.pack(">I4s", 8 + len(inner), b"jp2h") + inner
    return b"\0\0\0\x0cjP  \r\n\x87\n" + kind + header + struct.pack(">I4s", 0, b"jp2c") + frame


@pytest.mark.parametrize("name", TRANSFER_SYNTAXES)
def test_every_syntax_loads_as_it_was_written(name, tmp_path):
    """Nothing that is true is refused."""
    truth = written(tmp_path, TRANSFER_SYNTAXES[name])
    assert np.array_equal(read_series(tmp_path).volume.hu, truth.hu)


def test_real_frames_claim_the_size_of_their_files(test_data):
    """JPEG Lossless and others, written by others."""
    syntaxes = set()
    for path in [*(test_data / "d2n_tricky").rglob("*.dcm"), *(test_data / "ts_example_ct_dicom_j2k").iterdir()]:
        dataset = dcmread(path)
        syntax = dataset.file_meta.TransferSyntaxUID
        if syntax.is_encapsulated and syntax != RLELossless:
            (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
            assert claimed_sizes(frame, syntax) == {FrameSize(dataset.Rows, dataset.Columns, 1)}
            syntaxes.add(syntax)
    assert {JPEGLosslessSV1, JPEG2000Lossless} <= syntaxes
    assert syntaxes & {JPEGLSLossless, JPEGLSNearLossless}


def test_a_progressive_jpeg_with_a_thumbnail_claims_its_own_size():
    """Segments are passed over by their lengths, whatever they hold."""
    thumbnail = jpeg(8, 8)
    frame = jpeg(30, 20, progressive=True, comment=b"\xff\xc0\0\x0b\x08" + b"\xff" * 6, exif=b"Exif\0\0" + thumbnail)
    assert thumbnail in frame
    assert claimed_sizes(frame, JPEGBaseline8Bit) == {FrameSize(30, 20, 1)}


def test_every_frame_header_is_believed():
    """A second one is an error that decoders find at different times."""
    frame = jpeg(30, 20)
    at = frame.index(b"\xff\xc0")
    header = stated(frame[at : at + 13], b"\xff\xc0", ">HH", 5, LIE, LIE)
    assert claimed_sizes(frame[:at] + header + frame[at:], JPEGBaseline8Bit) == {
        FrameSize(30, 20, 1),
        FrameSize(LIE, LIE, 1),
    }


@pytest.mark.parametrize(
    ("syntax", "change"),
    [
        (JPEG2000Lossless, of_jpeg2000),
        (JPEG2000Lossless, lambda frame: in_jp2(of_jpeg2000(frame))),
        (JPEG2000Lossless, lambda frame: stated(frame, b"\xff\x51", ">H", 38, 3)),
        (JPEG2000Lossless, lambda frame: frame[:20]),
        (JPEG2000Lossless, lambda frame: jpeg(SIDE, SIDE)),
        (JPEGLSLossless, lambda frame: stated(frame, b"\xff\xf7", ">HH", 5, LIE, LIE)),
        (JPEGLSLossless, lambda frame: stated(frame, b"\xff\xf7", ">HH", 5, 0, SIDE)),
        (JPEGLSLossless, lambda frame: frame[: frame.index(b"\xff\xf7")]),
    ],
)
def test_a_frame_that_claims_another_size_meets_no_decoder(syntax, change, tmp_path, monkeypatch):
    """Nor one that does not say its size: 144 bytes can claim gigabytes."""
    written(tmp_path, syntax)
    rewritten(tmp_path, lambda frame: [change(frame)])
    monkeypatch.setattr(Decoder, "as_array", lambda *_args, **_options: pytest.fail("was decoded"))
    with pytest.raises(CorruptFile, match="fetch it again"):
        read_series(tmp_path)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, HTJ2KLossless])
def test_other_syntaxes_are_looked_at_too(syntax, tmp_path, monkeypatch):
    """JPEG, and HTJ2K, which has the size where JPEG 2000 has it."""
    written(tmp_path, JPEG2000Lossless)
    lies = {JPEGBaseline8Bit: lambda _: [jpeg(600, 600)], HTJ2KLossless: lambda frame: [of_jpeg2000(frame)]}
    rewritten(tmp_path, lies[syntax], syntax)
    monkeypatch.setattr(Decoder, "as_array", lambda *_args, **_options: pytest.fail("was decoded"))
    with pytest.raises(CorruptFile, match="rows and columns"):
        read_series(tmp_path)


def test_a_codestream_in_a_file_of_its_own_loads(tmp_path):
    """JP2, which decoders read although DICOM does not allow it."""
    truth = written(tmp_path, JPEG2000Lossless)
    rewritten(tmp_path, lambda frame: [in_jp2(frame)])
    assert np.array_equal(read_series(tmp_path).volume.hu, truth.hu)


def test_frames_beyond_those_that_a_file_claims_are_not_decoded(tmp_path, monkeypatch):
    """There may be any number of them, and each costs a whole slice."""
    truth = written(tmp_path, JPEG2000Lossless)
    rewritten(tmp_path, lambda frame: [frame] * 5)
    shapes, as_array = set(), Decoder.as_array

    def watched(*args, **options):
        array, properties = as_array(*args, **options)
        shapes.add(array.shape)
        return array, properties

    monkeypatch.setattr(Decoder, "as_array", watched)
    assert np.array_equal(read_series(tmp_path).volume.hu, truth.hu)
    assert shapes == {(SIDE, SIDE)}


@pytest.mark.parametrize("copies", [100, 128])
def test_rle_that_is_longer_than_its_slice_is_damage(copies, tmp_path, monkeypatch):
    """Its decoder panics, which is no Exception of Python, or refuses it; that of pydicom has no limit and rests."""
    written(tmp_path, RLELossless)
    monkeypatch.setattr(rle, "_rle_decode_segment", lambda _: pytest.fail("was decoded without a limit"))
    run = bytes([257 - copies, 0])
    frame = struct.pack("<16L", 2, 64, 64 + len(run), *[0] * 13) + run * 5000
    rewritten(tmp_path, lambda _: [frame])
    with pytest.raises(CorruptFile, match="fetch it again"):
        read_series(tmp_path)
