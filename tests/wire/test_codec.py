"""Volumes and geometries survive the wire, and nothing that they are not is accepted."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from medvl.contracts.errors import InvalidRequest
from medvl.imaging.geometry import Geometry
from medvl.wire.codec import (
    CHUNK_BYTES,
    MAX_CHUNK_BYTES,
    ChunkDecoder,
    geometry_from_wire,
    geometry_to_wire,
    volume_chunks,
)
from medvl.wire.v1 import medvl_pb2 as pb

COMPRESSIONS = [pb.COMPRESSION_NONE, pb.COMPRESSION_ZSTD]
LPS = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
SHAPE = (3, 5, 7)


def message(**changes) -> pb.Geometry:
    fields = {
        "shape": SHAPE,
        "spacing_mm": (2.5, 0.8, 0.7),
        "origin_mm": (-10.0, 20.0, 30.0),
        "direction": np.ravel(LPS).tolist(),
    }
    return pb.Geometry(**(fields | changes))


def decode(chunks, shape=SHAPE, compression=pb.COMPRESSION_NONE) -> np.ndarray:
    decoder = ChunkDecoder(shape, compression)
    for chunk in chunks:
        decoder.feed(chunk)
    return decoder.finish()


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    chunk_bytes=st.integers(1, 400),
    compression=st.sampled_from(COMPRESSIONS),
    seed=st.integers(0, 2**16),
)
def test_a_volume_comes_back_as_it_was_sent(shape, chunk_bytes, compression, seed):
    """Whatever the shape, the size of the chunks (also odd ones) and the compression."""
    hu = np.random.default_rng(seed).integers(-(2**15), 2**15, shape, dtype=np.int16)
    back = decode(volume_chunks(hu, chunk_bytes, compression), shape, compression)
    assert back.dtype == np.int16
    np.testing.assert_array_equal(back, hu)


def test_a_view_is_sent_in_the_order_of_its_axes():
    """A flipped and permuted array needs no copy by the caller."""
    hu = np.arange(2 * 3 * 4, dtype=np.int16).reshape(4, 3, 2).transpose(2, 1, 0)[::-1]
    np.testing.assert_array_equal(decode(volume_chunks(hu, 10), (2, 3, 4)), hu)


def test_chunks_have_the_size_of_the_protocol():
    """All but the last hold the same number of voxels."""
    hu = np.zeros((3, 400, 400), np.int16)
    sizes = [len(c) for c in volume_chunks(hu)]
    assert sizes[:-1] == [CHUNK_BYTES] * (len(sizes) - 1)
    assert sum(sizes) == hu.nbytes


def test_fed_voxels_are_handed_back_for_hashing():
    """``feed`` returns what the chunk held, decompressed, without a copy."""
    hu = np.arange(105, dtype=np.int16).reshape(SHAPE)
    decoder = ChunkDecoder(SHAPE, pb.COMPRESSION_ZSTD)
    fed = [decoder.feed(c) for c in volume_chunks(hu, 64, pb.COMPRESSION_ZSTD)]
    assert b"".join(fed) == hu.tobytes()
    assert all(view.obj is fed[0].obj for view in fed)


def test_a_received_volume_is_read_only():
    """Nobody changes a series that others look at."""
    hu = decode(volume_chunks(np.zeros(SHAPE, np.int16)))
    with pytest.raises(ValueError, match="read-only"):
        hu[0, 0, 0] = 1


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_more_than_announced_is_refused(compression):
    """One byte above the header's shape is too many."""
    chunks = [
        *volume_chunks(np.zeros(SHAPE, np.int16), 64, compression),
        *volume_chunks(np.zeros((1, 1, 1), np.int16), 64, compression),
    ]
    with pytest.raises(InvalidRequest, match="more than the 210 bytes"):
        decode(chunks, compression=compression)


def test_less_than_announced_is_refused():
    """A stream that ends early is not a series."""
    with pytest.raises(InvalidRequest, match="after 64 of 210 bytes"):
        decode(list(volume_chunks(np.zeros(SHAPE, np.int16), 64))[:1])


def test_a_decompression_bomb_is_refused_before_it_is_unpacked():
    """A frame that claims more than a chunk may hold costs nothing but the look at its header."""
    bomb = zstandard.compress(bytes(64 * MAX_CHUNK_BYTES))
    with pytest.raises(InvalidRequest, match=f"send 1 to {MAX_CHUNK_BYTES}"):
        decode([bomb], (1024, 1024, 64), pb.COMPRESSION_ZSTD)


def test_a_frame_that_hides_its_size_is_refused():
    """Without the claim nothing bounds what it unpacks to."""
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64))
    with pytest.raises(InvalidRequest):
        decode([frame], compression=pb.COMPRESSION_ZSTD)


@pytest.mark.parametrize(
    "chunk",
    [
        pytest.param(b"no frame", id="junk"),
        pytest.param(zstandard.compress(bytes(64))[:-2], id="cut"),
        pytest.param(zstandard.compress(bytes(64)) + b"x", id="followed by more"),
        pytest.param(zstandard.compress(bytes(64)) * 2, id="two frames"),
        pytest.param(b"", id="empty"),
    ],
)
def test_a_chunk_is_one_whole_frame(chunk):
    """What is not, is refused, whatever zstd makes of it."""
    with pytest.raises(InvalidRequest):
        decode([chunk], compression=pb.COMPRESSION_ZSTD)


@pytest.mark.parametrize("chunk", [b"", bytes(MAX_CHUNK_BYTES + 1)], ids=["empty", "too long"])
def test_a_plain_chunk_is_bounded(chunk):
    """Chunks without voxels would keep a stream alive for ever; longer ones than the protocol's are refused."""
    with pytest.raises(InvalidRequest):
        decode([chunk], (1024, 1024, 64))


def test_an_unknown_compression_is_refused():
    """A newer client's compression is named, not guessed."""
    with pytest.raises(InvalidRequest, match="compression 7"):
        ChunkDecoder(SHAPE, 7)


@given(
    shape=st.tuples(*[st.integers(1, 2**31)] * 3),
    spacing_mm=st.tuples(*[st.floats(1e-3, 1e3)] * 3),
    origin_mm=st.tuples(*[st.floats(-1e6, 1e6)] * 3),
    angle=st.floats(-0.7, 0.7),
)
def test_a_geometry_comes_back_bit_for_bit(shape, spacing_mm, origin_mm, angle):
    """Both sides hash the same numbers."""
    cos, sin = np.cos(angle), np.sin(angle)
    direction = ((0.0, sin, cos), (0.0, cos, -sin), (1.0, 0.0, 0.0))
    geometry = Geometry(shape=shape, spacing_mm=spacing_mm, origin_mm=origin_mm, direction=direction)
    assert geometry_from_wire(pb.Geometry.FromString(geometry_to_wire(geometry).SerializeToString())) == geometry


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"shape": (3, 5)}, id="two lengths"),
        pytest.param({"shape": (3, 0, 7)}, id="an empty axis"),
        pytest.param({"spacing_mm": (1.0, 1.0, 0.0)}, id="zero spacing"),
        pytest.param({"spacing_mm": (1.0, 1.0, -1.0)}, id="negative spacing"),
        pytest.param({"spacing_mm": (1.0, 1.0, float("nan"))}, id="spacing not a number"),
        pytest.param({"spacing_mm": (1.0, 1.0, float("inf"))}, id="infinite spacing"),
        pytest.param({"origin_mm": (0.0, 0.0)}, id="two coordinates"),
        pytest.param({"origin_mm": (0.0, 0.0, float("nan"))}, id="origin not a number"),
        pytest.param({"direction": [0.0] * 9}, id="no axes"),
        pytest.param({"direction": [1.0] * 8}, id="eight cosines"),
        pytest.param({"direction": [float("nan")] * 9}, id="axes not numbers"),
        pytest.param({"direction": [0, 0, 2, 0, 1, 0, 1, 0, 0]}, id="a long axis"),
        pytest.param({"direction": [0, 0, 1, 0, 1, 0, 0.6, 0.8, 0]}, id="a sheared axis"),
        pytest.param({"direction": [0, 0, -1, 0, 1, 0, 1, 0, 0]}, id="slices to the feet"),
        pytest.param({"direction": [1, 0, 0, 0, 1, 0, 0, 0, 1]}, id="permuted axes"),
    ],
)
def test_a_geometry_that_is_none_is_refused(changes):
    """Nothing is computed from numbers that describe no grid."""
    with pytest.raises(InvalidRequest):
        geometry_from_wire(message(**changes))
