"""Volumes and geometries on the wire: what a sender writes, and what a receiver accepts of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import zstandard
from numpy.typing import NDArray

from medvl.contracts.errors import GeometryRefused, InvalidRequest
from medvl.imaging.geometry import Geometry
from medvl.wire.v1 import medvl_pb2 as pb

HU_DTYPE = np.dtype("<i2")
"""Voxels on the wire: int16 HU, little-endian."""
CHUNK_BYTES = 256 * 1024
"""Voxels of one chunk as this module sends them, in bytes before compression. gRPC and protobuf copy a chunk several
times on its way into the volume: one that stays in a core's own cache costs a fifth less CPU than one of 512 KiB."""
MAX_CHUNK_BYTES = 1024 * 1024
"""Voxels of one chunk that a receiver accepts, in bytes after decompression."""
_ZSTD_LEVEL = 1


def geometry_to_wire(geometry: Geometry) -> pb.Geometry:
    """Return a geometry as it travels."""
    return pb.Geometry(
        shape=geometry.shape,
        spacing_mm=geometry.spacing_mm,
        origin_mm=geometry.origin_mm,
        direction=[cosine for axis in geometry.direction for cosine in axis],
    )


def geometry_from_wire(message: pb.Geometry) -> Geometry:
    """Return the canonical geometry that a message describes.

    Raises
    ------
    InvalidRequest
        On a wrong number of values, on values that :class:`Geometry` refuses, and on axes that do not run closest to
        superior, posterior and left.
    """
    lengths = (len(message.shape), len(message.spacing_mm), len(message.origin_mm), len(message.direction))
    if lengths != (3, 3, 3, 9):
        raise InvalidRequest("A geometry has 3 lengths, 3 spacings, 3 origin coordinates and 9 direction cosines.")
    slices, rows, columns = message.shape
    d_mm, r_mm, c_mm = message.spacing_mm
    x, y, z = message.origin_mm
    dx, dy, dz, rx, ry, rz, cx, cy, cz = message.direction
    try:
        geometry = Geometry(
            shape=(slices, rows, columns),
            spacing_mm=(d_mm, r_mm, c_mm),
            origin_mm=(x, y, z),
            direction=((dx, dy, dz), (rx, ry, rz), (cx, cy, cz)),
        )
    except GeometryRefused as error:
        raise InvalidRequest(str(error)) from None
    if not geometry.is_canonical:
        raise InvalidRequest("The axes of the volume must run closest to superior, posterior and left.")
    return geometry


def volume_chunks(
    hu: NDArray[np.int16],
    chunk_bytes: int = CHUNK_BYTES,
    compression: pb.Compression = pb.COMPRESSION_NONE,
) -> Iterator[bytes]:
    """Cut a volume into the chunks of a ``PutSeries`` stream.

    Parameters
    ----------
    hu
        int16 [D, R, C], HU on the canonical grid.
    chunk_bytes
        Bytes of voxels in each chunk but the last, before compression; at most :data:`MAX_CHUNK_BYTES`.
    compression
        ``COMPRESSION_ZSTD`` makes each chunk one zstd frame that tells its content size.

    Yields
    ------
    bytes
        The voxels in C order, little-endian.
    """
    voxels = np.ascontiguousarray(hu, dtype=HU_DTYPE).reshape(-1).view(np.uint8).data
    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
    for start in range(0, len(voxels), chunk_bytes):
        chunk = voxels[start : start + chunk_bytes]
        yield compressor.compress(chunk) if compression == pb.COMPRESSION_ZSTD else bytes(chunk)


def check_compression(compression: pb.Compression) -> None:
    """Check that a header names a compression of the protocol.

    Raises
    ------
    InvalidRequest
        When it does not.
    """
    if compression not in (pb.COMPRESSION_NONE, pb.COMPRESSION_ZSTD):
        raise InvalidRequest(f"The header names compression {compression}, which this server does not know.")


class ChunkDecoder:
    """Puts the chunks of one ``PutSeries`` stream together; holds exactly the bytes that its shape says, never more.

    Not safe for calls from several threads at once.

    Parameters
    ----------
    shape
        Slices, rows and columns of the volume. The caller has checked them against its limits.
    compression
        As in the stream's header.

    Raises
    ------
    InvalidRequest
        When the compression is not one of the protocol's.
    """

    def __init__(self, shape: tuple[int, int, int], compression: pb.Compression) -> None:
        check_compression(compression)
        self._decompressor = zstandard.ZstdDecompressor() if compression == pb.COMPRESSION_ZSTD else None
        self._hu = np.empty(shape, HU_DTYPE)
        self._bytes = self._hu.reshape(-1).view(np.uint8).data
        self._received_bytes = 0

    def feed(self, chunk: bytes) -> memoryview:
        """Put the next chunk in its place.

        Returns
        -------
        memoryview
            The voxels that it held, where they lie now, for hashing without a copy.

        Raises
        ------
        InvalidRequest
            On an empty or too long chunk, one that is no zstd frame or claims more than it may hold, and on more bytes
            than the header announced.
        """
        voxels = chunk if self._decompressor is None else self._decompress(self._decompressor, chunk)
        start, end = self._received_bytes, self._received_bytes + len(voxels)
        self._check(len(voxels), end)
        self._bytes[start:end] = voxels
        self._received_bytes = end
        return self._bytes[start:end]

    def finish(self) -> NDArray[np.int16]:
        """Return the volume, int16 [D, R, C] in HU, read-only.

        Raises
        ------
        InvalidRequest
            When the stream ended before the last voxel.
        """
        if self._received_bytes != self._hu.nbytes:
            raise InvalidRequest(
                f"The stream ended after {self._received_bytes} of {self._hu.nbytes} bytes: send the series again."
            )
        self._hu.flags.writeable = False
        return self._hu

    def _check(self, chunk_bytes: int, total_bytes: int) -> None:
        if not 0 < chunk_bytes <= MAX_CHUNK_BYTES:
            raise InvalidRequest(f"A chunk holds {chunk_bytes} bytes of voxels: send 1 to {MAX_CHUNK_BYTES}.")
        if total_bytes > self._hu.nbytes:
            raise InvalidRequest(
                f"The stream holds more than the {self._hu.nbytes} bytes that its header says: send the series again."
            )

    def _decompress(self, decompressor: zstandard.ZstdDecompressor, chunk: bytes) -> bytes:
        try:
            claimed_bytes = zstandard.frame_content_size(chunk)
            # zstandard allocates what the frame claims, whatever max_output_size says; -1 is "not told".
            self._check(claimed_bytes, self._received_bytes + claimed_bytes)
            return decompressor.decompress(chunk, allow_extra_data=False)
        except zstandard.ZstdError:
            raise InvalidRequest("A chunk is not one whole zstd frame: send the series again.") from None
