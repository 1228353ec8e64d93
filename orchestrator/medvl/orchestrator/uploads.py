"""Receiving a series: its header is checked and room reserved before a voxel is read."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass

from medvl.contracts.errors import DeadlineExceeded, InvalidRequest, SeriesTooLarge, TooFewSlices
from medvl.imaging.geometry import Geometry
from medvl.imaging.volume import SeriesHasher, Volume
from medvl.orchestrator.config import SeriesLimits
from medvl.wire.codec import HU_DTYPE, ChunkDecoder, check_compression, geometry_from_wire
from medvl.wire.v1 import medvl_pb2 as pb

_DIGEST = re.compile(r"[0-9a-f]{64}")
_DRAIN_S = 1.0

Messages = AsyncIterator[pb.PutSeriesRequest]


@dataclass(frozen=True, slots=True)
class Announcement:
    """A header that has been found to be acceptable.

    Attributes
    ----------
    digest
        SHA-256 that the sender claims, lower-case hex.
    geometry
        Where the voxels lie.
    compression
        Of every chunk.
    size_bytes
        Voxels to come, before compression.
    """

    digest: str
    geometry: Geometry
    compression: pb.Compression
    size_bytes: int


async def read_header(messages: Messages, limits: SeriesLimits, idle_s: float) -> Announcement:
    """Read the first message of a ``PutSeries`` stream.

    Raises
    ------
    InvalidRequest
        When it is no header, or one whose digest, compression or geometry is malformed.
    TooFewSlices, SeriesTooLarge
        When it announces less or more than the limits allow.
    DeadlineExceeded
        When it does not come for ``idle_s`` seconds.
    """
    first = await _next(messages, idle_s)
    if first is None or first.WhichOneof("part") != "header":
        raise InvalidRequest("The first message of PutSeries must be the series' header.")
    header = first.header
    check_digest(header.digest)
    check_compression(header.compression)
    geometry = geometry_from_wire(header.geometry)
    slices, rows, columns = geometry.shape
    size_bytes = slices * rows * columns * HU_DTYPE.itemsize
    if slices < limits.min_slices:
        raise TooFewSlices(
            f"A volume needs {limits.min_slices} slices at least and this series has {slices}: send a whole series."
        )
    if slices > limits.max_slices:
        raise SeriesTooLarge(f"The series has {slices} slices: this server takes {limits.max_slices} at most.")
    if size_bytes > limits.max_series_bytes:
        raise SeriesTooLarge(
            f"The series holds {size_bytes} bytes of voxels: this server takes {limits.max_series_bytes} at most."
        )
    return Announcement(header.digest, geometry, header.compression, size_bytes)


def check_digest(digest: str) -> None:
    """Check the form of a series' digest.

    Raises
    ------
    InvalidRequest
        When it is not 64 lower-case hexadecimal digits.
    """
    if not _DIGEST.fullmatch(digest):
        raise InvalidRequest("A series is named by its SHA-256 in 64 lower-case hexadecimal digits.")


async def read_volume(messages: Messages, announced: Announcement, idle_s: float) -> Volume:
    """Read the voxels of a series; each chunk is unpacked and hashed in a thread while the next one comes in.

    Raises
    ------
    InvalidRequest
        When the stream holds anything but the announced voxels, or they do not have the announced digest.
    DeadlineExceeded
        When nothing comes for ``idle_s`` seconds.
    """
    decoder, hasher = ChunkDecoder(announced.geometry.shape, announced.compression), SeriesHasher(announced.geometry)

    def take(chunk: bytes) -> None:
        hasher.update(decoder.feed(chunk))

    try:
        await _take_all(messages, take, idle_s)
    except InvalidRequest:
        await _drain(messages, announced.size_bytes)
        raise
    hu = decoder.finish()
    if hasher.hexdigest() != announced.digest:
        raise InvalidRequest("The voxels do not have the digest that the header claims: send the series again.")
    return Volume(hu=hu, geometry=announced.geometry)


async def _take_all(messages: Messages, take: Callable[[bytes], None], idle_s: float) -> None:
    loop = asyncio.get_running_loop()
    taken: asyncio.Future[None] = loop.create_future()
    taken.set_result(None)
    try:
        while (chunk := await _chunk(messages, idle_s)) is not None:
            await taken
            taken = loop.run_in_executor(None, take, chunk)
    finally:
        await taken


async def _drain(messages: Messages, most_bytes: int) -> None:
    """Read on before a refusal: a sender whose write fails on an answered stream may never read the answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_S):
            async for message in messages:
                most_bytes -= len(message.chunk)
                if most_bytes < 0:
                    return


async def _next(messages: Messages, idle_s: float) -> pb.PutSeriesRequest | None:
    try:
        async with asyncio.timeout(idle_s):
            return await anext(messages, None)
    except TimeoutError:
        raise DeadlineExceeded(f"The upload sent nothing for {idle_s:g} seconds: send the series again.") from None


async def _chunk(messages: Messages, idle_s: float) -> bytes | None:
    message = await _next(messages, idle_s)
    if message is None:
        return None
    if message.WhichOneof("part") != "chunk":
        raise InvalidRequest("After its header, a PutSeries stream holds chunks of voxels only.")
    return message.chunk
