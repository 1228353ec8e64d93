"""Sending a series: once, whole, and within the limits."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from medvl.contracts import errors
from medvl.contracts.errors import MedvlError
from medvl.orchestrator.config import AdmissionLimits, SeriesLimits
from medvl.wire.codec import MAX_CHUNK_BYTES, geometry_to_wire
from medvl.wire.status import from_rpc_error
from medvl.wire.v1 import medvl_pb2 as pb

from .conftest import SERIES_BYTES, Series, Start, System, collect


async def refused(call) -> tuple[grpc.StatusCode, MedvlError]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), from_rpc_error(caught.value)


def geometry(series: Series, **changes) -> pb.Geometry:
    message = geometry_to_wire(series.geometry)
    for name, values in changes.items():
        getattr(message, name)[:] = values
    return message


@pytest.mark.parametrize("compression", [pb.COMPRESSION_NONE, pb.COMPRESSION_ZSTD])
async def test_a_series_is_received_once(system: System, series: Series, compression):
    """The first sending is stored; the second is told that it was not needed."""
    first = await system.send(series.messages(compression=compression))
    again = await system.send(series.messages())
    assert (first.digest, first.already_resident) == (series.digest, False)
    assert (again.digest, again.already_resident) == (series.digest, True)


async def test_a_resident_series_is_answered_on_its_header(system: System, series: Series):
    """The answer comes while the sender still holds every voxel."""
    await system.put(series)
    call = system.stub.PutSeries()
    await call.write(series.header())
    assert (await call).already_resident


async def test_two_uploads_of_one_series_become_one(system: System, series: Series):
    """The second waits for the first and is answered without its voxels."""
    header, *chunks = series.messages()
    first, second = system.stub.PutSeries(), system.stub.PutSeries()
    await first.write(header)
    await first.initial_metadata()
    await second.write(header)
    for chunk in chunks:
        await first.write(chunk)
    await first.done_writing()
    assert sorted([(await first).already_resident, (await second).already_resident]) == [False, True]


async def test_an_upload_that_fails_leaves_its_place_to_the_next(system: System, series: Series):
    """Whoever waited for a sender that went away sends the series itself."""
    header, *chunks = series.messages()
    first = system.stub.PutSeries()
    await first.write(header)
    await first.initial_metadata()
    await first.write(chunks[0])
    second = asyncio.ensure_future(system.put(series))
    first.cancel()
    assert not (await second).already_resident


async def test_a_wrong_digest_is_refused(system: System, series: Series):
    """The digest is recomputed: nothing enters under another's name."""
    other = Series.make(1)
    code, error = await refused(system.send(series.messages(digest=other.digest)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert type(error) is errors.InvalidRequest
    assert not (await system.put(other)).already_resident


async def test_the_digest_covers_the_geometry(system: System, series: Series):
    """The same voxels elsewhere are another series."""
    moved = geometry(series, origin_mm=(0.0, 0.0, 1.0))
    code, _ = await refused(system.send(series.messages(geometry=moved)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("digest", ["", "abc", "G" * 64, "A" * 64], ids=["empty", "short", "letters", "upper case"])
async def test_a_digest_is_64_hex_digits(system: System, series: Series, digest):
    """A malformed name is refused before room is reserved."""
    code, _ = await refused(system.send([series.header(digest=digest)]))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((1, 16, 12), errors.TooFewSlices),
        ((7, 16, 12), errors.TooFewSlices),
        ((17, 1, 1), errors.SeriesTooLarge),
        ((8, 16, 25), errors.SeriesTooLarge),
        ((16, 16384, 8192), errors.SeriesTooLarge),
        ((2**32 - 1, 2**32 - 1, 2**32 - 1), errors.SeriesTooLarge),
    ],
    ids=["one slice", "few slices", "many slices", "over the limit", "4 GiB", "the largest claim"],
)
async def test_the_header_alone_is_judged(system: System, series: Series, shape, kind):
    """A series that the limits exclude is refused on its claim, without a voxel."""
    call = system.stub.PutSeries()
    await call.write(series.header(geometry=geometry(series, shape=shape)))
    code, error = await refused(call)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert type(error) is kind
    assert await system.serves()


@pytest.mark.parametrize(
    "changes",
    [{"shape": [8, 16]}, {"spacing_mm": [1.0, 1.0, 0.0]}, {"origin_mm": [float("nan")] * 3}, {"direction": [1.0] * 9}],
    ids=["shape", "spacing", "origin", "direction"],
)
async def test_a_bad_geometry_is_refused(system: System, series: Series, changes):
    """A grid that is none never reaches a model."""
    code, _ = await refused(system.send([series.header(geometry=geometry(series, **changes))]))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("broken", ["nothing", "no header", "short", "long", "two headers", "unknown", "huge chunk"])
async def test_a_broken_stream_is_refused_and_leaves_nothing_behind(system: System, series: Series, broken):
    """Whatever is wrong with a stream, its room is free again and the series can be sent."""
    header, *chunks = series.messages()
    streams = {
        "nothing": [],
        "no header": chunks,
        "short": [header, *chunks[:-1]],
        "long": [header, *chunks, chunks[0]],
        "two headers": [header, header],
        "unknown": [series.header(compression=9), *chunks],
        "huge chunk": [header, pb.PutSeriesRequest(chunk=bytes(MAX_CHUNK_BYTES + 1))],
    }
    for _ in range(4):
        code, _ = await refused(system.send(streams[broken]))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert not (await system.put(series)).already_resident


async def test_an_upload_that_stops_gives_its_room_back(start: Start, series: Series):
    """A sender that hangs holds memory for ``upload_idle_s`` only."""
    system = await start(admission=AdmissionLimits(upload_idle_s=0.05))
    call = system.stub.PutSeries()
    await call.write(series.header())
    code, _ = await refused(call)
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not (await system.put(series)).already_resident


async def test_an_upload_without_a_header_is_ended(start: Start):
    """Nor does it hold anything that a caller could wait for."""
    system = await start(admission=AdmissionLimits(upload_idle_s=0.05))
    code, error = await refused(system.stub.PutSeries())
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert str(error) == "The upload sent nothing for 0.05 seconds: send the series again."


async def test_open_calls_are_bounded(start: Start, series: Series):
    """Whatever they wait for, so that memory is. What may be open leaves room for others, and gives it back."""
    limits = AdmissionLimits(
        max_concurrent_requests=1, max_queued_requests=0, max_concurrent_uploads=1, max_queued_uploads=0
    )
    system = await start(admission=limits)

    async def until(code: grpc.StatusCode) -> None:
        async with asyncio.timeout(10):
            while True:
                call = system.stub.Describe(pb.DescribeRequest())
                if await call.code() is code:
                    break

    idle = [system.stub.PutSeries() for _ in range(limits.max_open_calls - 4)]
    await system.put(series)
    idle += [system.stub.PutSeries() for _ in range(8)]
    await until(grpc.StatusCode.RESOURCE_EXHAUSTED)
    for call in idle:
        call.cancel()
    await until(grpc.StatusCode.OK)


async def test_the_least_recently_used_series_makes_room(system: System):
    """The store holds three: the fourth takes the place of the one that nobody asked about."""
    sent = [Series.make(seed) for seed in range(4)]
    for series in sent[:3]:
        await system.put(series)
    await system.put(sent[0])
    await system.put(sent[3])
    code, error = await refused(collect(system.stub.Report(pb.ReportRequest(series=sent[1].digest))))
    assert code is grpc.StatusCode.NOT_FOUND
    assert type(error) is errors.SeriesNotResident
    assert (await system.put(sent[0])).already_resident


async def test_a_series_in_use_is_not_evicted(start: Start):
    """A store full of series that are worked on refuses the next with a delay; it never forgets one of them."""
    system = await start(series=SeriesLimits(max_store_bytes=SERIES_BYTES, max_series_bytes=SERIES_BYTES))
    first = Series.make(0)
    await system.put(first)
    system.fake.language.close()
    report = system.stub.Report(pb.ReportRequest(series=first.digest))
    await system.fake.language.held.wait()
    code, error = await refused(system.put(Series.make(1)))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.retry_after_s is not None
    system.fake.language.open()
    assert [e async for e in report][-1].WhichOneof("event") == "done"
    assert not (await system.put(Series.make(1))).already_resident


async def test_senders_of_one_series_leave_places_to_others(start: Start):
    """Whoever waits for another that sends the same series has nothing to receive, and takes nobody's place."""
    system = await start(admission=AdmissionLimits(max_concurrent_uploads=2, max_queued_uploads=1))
    header, *chunks = Series.make(0).messages()
    first, *waiting = [system.stub.PutSeries() for _ in range(3)]
    await first.write(header)
    await first.initial_metadata()
    for call in waiting:
        await call.write(header)
    for other in (Series.make(1), Series.make(2)):
        assert not (await system.put(other)).already_resident
    for chunk in chunks:
        await first.write(chunk)
    await first.done_writing()
    assert [(await call).already_resident for call in (first, *waiting)] == [False, True, True]


async def test_waiting_for_another_sender_is_bounded(start: Start):
    """By as many as may upload and wait; the next is refused on its header, with a delay."""
    system = await start(admission=AdmissionLimits(max_concurrent_uploads=1, max_queued_uploads=0))
    header, *chunks = Series.make(0).messages()

    async def send_header() -> pb.PutSeriesResponse:
        call = system.stub.PutSeries()
        await call.write(header)
        return await call

    first = system.stub.PutSeries()
    await first.write(header)
    await first.initial_metadata()
    others = [asyncio.ensure_future(send_header()) for _ in range(2)]
    (refusal,), (waiting,) = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
    code, error = await refused(refusal)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.retry_after_s > 0
    for chunk in chunks:
        await first.write(chunk)
    await first.done_writing()
    assert [(await call).already_resident for call in (first, waiting)] == [False, True]


async def test_an_overload_of_uploads_is_told_on_the_header(start: Start):
    """Whoever is not taken learns it before sending a voxel, with a delay."""
    system = await start(admission=AdmissionLimits(max_concurrent_uploads=1, max_queued_uploads=0))
    first, second = Series.make(0), Series.make(1)
    header, *chunks = first.messages()
    busy = system.stub.PutSeries()
    await busy.write(header)
    await busy.initial_metadata()
    call = system.stub.PutSeries()
    await call.write(second.header())
    code, error = await refused(call)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.retry_after_s > 0
    for chunk in chunks:
        await busy.write(chunk)
    await busy.done_writing()
    assert (await busy).digest == first.digest
