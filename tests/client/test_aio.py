"""What the asynchronous client promises, on a real gRPC connection."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from medvl.client import (
    AsyncClient,
    Cleanup,
    Done,
    Mask,
    Measurement,
    ObjectPrompt,
    Point,
    Progress,
    RetryPolicy,
    SeriesRef,
    SlicePreview,
    Stage,
    TextDelta,
    Timeouts,
)
from medvl.contracts.errors import (
    BackendUnavailable,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    Overloaded,
    RequestCancelled,
    SeriesNotResident,
    UnknownLabel,
)
from medvl.imaging.masks import pack_mask
from medvl.imaging.volume import Volume
from medvl.wire import keepalive
from medvl.wire.v1 import medvl_pb2 as pb


@pytest.fixture
async def client(service):
    async with AsyncClient(service.endpoint) as connected:
        yield connected


@pytest.mark.parametrize("compress", [False, True])
async def test_a_series_arrives_as_it_was_sent(service, volume, compress):
    """Voxels arrive whole and in order, compressed or not, and progress ends at all bytes."""
    seen = []
    async with AsyncClient(service.endpoint, compress=compress) as client:
        upload = await client.put_series(volume, on_progress=seen.append)
    assert np.array_equal(service.volumes[volume.digest], volume.hu)
    assert not upload.already_resident
    assert upload.series == SeriesRef(volume.digest, volume.geometry.shape)
    assert seen[0].sent_bytes == 0
    assert seen[-1].sent_bytes == seen[-1].total_bytes == volume.hu.nbytes == upload.sent_bytes


async def test_sending_stops_when_the_server_already_holds_the_series(service, client, volume):
    """A server that answers on the header is not sent the rest."""
    shape = (128, 512, 256)
    geometry = type(volume.geometry)(shape=shape, spacing_mm=(1, 1, 1), origin_mm=(0, 0, 0), direction=np.eye(3))
    large = Volume(hu=np.zeros(shape, np.int16), geometry=geometry)
    service.resident.add(large.digest)
    upload = await client.put_series(large)
    assert upload.already_resident
    assert upload.sent_bytes < upload.total_bytes / 2


async def test_a_series_that_the_server_lacks_is_sent_and_the_call_repeated(service, client, volume):
    """The caller never sees SeriesNotResident of a series whose voxels are at hand."""
    answer = await client.report(volume).collect()
    assert isinstance(answer.done, Done)
    assert service.calls == ["Report", "PutSeries", "Report"]


async def test_a_series_is_sent_again_once_only(service, client, volume):
    """A server that loses a series at once is not fed for ever."""
    service.fail("Ask", SeriesNotResident("gone"), SeriesNotResident("gone"))
    with pytest.raises(SeriesNotResident):
        await client.ask(volume, "?").collect()
    assert service.calls == ["Ask", "PutSeries", "Ask"]


@pytest.mark.parametrize("held", [False, True])
async def test_an_acknowledgement_of_another_series_is_a_defect(service, client, volume, held):
    """A service that takes one series for another would answer about the wrong patient."""
    if held:
        service.resident.add(volume.digest)
    service.acknowledges = "f" * 64
    with pytest.raises(InternalError, match="another series"):
        await client.put_series(volume)
    service.fail("Report", SeriesNotResident("gone"))
    with pytest.raises(InternalError, match="another series"):
        await client.report(volume).collect()
    assert service.calls == ["PutSeries", "Report", "PutSeries"]


async def test_a_series_named_by_reference_cannot_be_sent(service, client):
    """Without voxels the error reaches the caller."""
    with pytest.raises(SeriesNotResident, match="send it"):
        await client.report(SeriesRef("0" * 64, (1, 1, 1))).collect()
    assert service.calls == ["Report"]


@pytest.mark.parametrize("error", [Overloaded("full", retry_after_s=2.5), BackendUnavailable("x", retry_after_s=2.5)])
async def test_a_refused_call_is_repeated_after_the_servers_delay(service, client, volume, clock, error):
    """Overload and absence pass without the caller's doing, for streams, uploads and descriptions."""
    for method in ("PutSeries", "Report", "Describe"):
        service.fail(method, error)
    await client.put_series(volume)
    await client.report(volume).collect()
    await client.describe()
    assert service.calls == ["PutSeries", "PutSeries", "Report", "Report", "Describe", "Describe"]
    assert len(clock.waits_s) == 3
    assert min(clock.waits_s) >= 2.5


@pytest.mark.parametrize("method", ["PutSeries", "Report", "Describe"])
async def test_a_call_that_the_server_cancels_is_repeated(service, client, volume, method):
    """Nobody here cancelled it, so it passes for a server that was away."""
    service.resident.add(volume.digest)
    service.fail(method, RequestCancelled("The server is stopped."))
    begin = {
        "PutSeries": lambda: client.put_series(volume),
        "Report": lambda: client.report(volume).collect(),
        "Describe": client.describe,
    }
    await begin[method]()
    assert service.calls == [method, method]


async def test_an_upload_whose_answer_the_channel_lost_is_repeated(service, client, volume, clock):
    """INTERNAL without a word of the service is the connection's own; where no answer was under way, it is a defect."""
    service.fail("PutSeries", grpc.StatusCode.INTERNAL)
    await client.put_series(volume)
    assert (service.calls, clock.waits_s) == (["PutSeries", "PutSeries"], [0.0])
    service.fail("Report", grpc.StatusCode.INTERNAL)
    with pytest.raises(InternalError):
        await client.report(volume).collect()


@asynccontextmanager
async def falling_silent(endpoint, silent):
    """A way to a service that takes and gives nothing more once ``silent`` is set, and is not closed."""
    pumps = []

    async def pump(reader, writer):
        try:
            while (data := await reader.read(65536)) and not silent.is_set():
                writer.write(data)
                await writer.drain()
            await asyncio.Event().wait()
        finally:
            writer.close()

    async def connect(reader, writer):
        from_service, to_service = await asyncio.open_connection(*endpoint.split(":"))
        ways = ((reader, to_service), (from_service, writer))
        pumps.extend(asyncio.create_task(pump(*way)) for way in ways)

    async with await asyncio.start_server(connect, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for task in pumps:
        task.cancel()
    await asyncio.wait(pumps)


async def test_a_service_that_falls_silent_is_noticed_before_the_deadline(service, volume, monkeypatch):
    """Its host died, or a firewall forgot the connection: nothing is closed, and the kernel goes on to acknowledge."""
    soon = tuple((name, 1000 if name.endswith("_ms") else value) for name, value in keepalive.CLIENT_OPTIONS)
    monkeypatch.setattr(keepalive, "CLIENT_OPTIONS", soon)
    service.resident.add(volume.digest)
    service.hold = threading.Event()
    service.events = [pb.Event(text=pb.TextDelta(text="The"))]
    silent = asyncio.Event()
    async with (
        falling_silent(service.endpoint, silent) as endpoint,
        AsyncClient(endpoint) as client,
        client.report(volume, deadline_s=40) as stream,
    ):
        await anext(stream)
        silent.set()
        with pytest.raises(BackendUnavailable):
            await anext(stream)
    service.hold.set()


async def test_a_call_that_the_connection_cancels_is_an_error_of_the_tree(service, client, volume):
    """grpc.aio raises CancelledError then, which would pass for the end of the caller's task."""
    opened = []
    report = client._stub.Report
    client._stub.Report = lambda *request, **options: opened.append(report(*request, **options)) or opened[-1]
    service.resident.add(volume.digest)
    service.hold = threading.Event()
    service.events = [pb.Event(text=pb.TextDelta(text="The"))]
    async with client.report(volume) as stream:
        await anext(stream)
        opened[0].cancel()
        with pytest.raises(BackendUnavailable, match="ended the call"):
            await anext(stream)


async def test_closing_a_client_ends_its_calls(service, client, volume):
    """Also those in progress in other tasks, which hear of it by an error of the tree."""
    service.resident.add(volume.digest)
    service.hold = threading.Event()
    service.events = []
    begun = asyncio.Event()

    async def read():
        begun.set()
        await client.report(volume).collect()

    task = asyncio.create_task(read())
    await begun.wait()
    await client.close()
    with pytest.raises(RequestCancelled, match="closed"):
        await task
    with pytest.raises(RequestCancelled, match="closed"):
        await client.describe()


async def test_attempts_are_limited(service, volume):
    """The last refusal is raised."""
    service.fail("PutSeries", *(Overloaded(f"full {n}", retry_after_s=0.001) for n in range(1, 10)))
    async with AsyncClient(service.endpoint, retry=RetryPolicy(max_attempts=3)) as client:
        with pytest.raises(Overloaded, match="full 3"):
            await client.put_series(volume)
    assert len(service.calls) == 3


async def test_all_calls_of_a_client_share_one_retry_budget(service):
    """A client does not multiply the load of a server in trouble."""
    service.fail("Describe", *[Overloaded("full", retry_after_s=0.0)] * 99)
    async with AsyncClient(service.endpoint, retry=RetryPolicy(max_attempts=4, max_tokens=5)) as client:
        for _ in range(10):
            with pytest.raises(Overloaded):
                await client.describe()
    assert len(service.calls) == 10 + 5


async def test_a_delay_longer_than_the_policy_or_the_deadline_is_not_waited_for(service, client, clock):
    """The refusal is raised at once."""
    service.fail("Describe", Overloaded("full", retry_after_s=3600.0), Overloaded("full", retry_after_s=5.0))
    with pytest.raises(Overloaded):
        await client.describe(deadline_s=7200.0)
    with pytest.raises(Overloaded):
        await client.describe(deadline_s=2.0)
    assert (len(service.calls), clock.waits_s) == (2, [])


def times_given(client):
    """The seconds that each call of a client from now on may take, in order."""
    given_s = []

    def watched(call):
        return lambda *request, timeout: given_s.append(timeout) or call(*request, timeout=timeout)

    for method in ("PutSeries", "Report", "Ask", "Segment", "Describe"):
        setattr(client._stub, method, watched(getattr(client._stub, method)))
    return given_s


@pytest.mark.usefixtures("clock")
async def test_each_kind_of_call_has_the_time_that_the_client_was_told(service, volume):
    """A long segmentation is not given up for the time of a description."""
    timeouts = Timeouts(describe_s=11.0, upload_s=22.0, text_s=33.0, segment_s=44.0)
    async with AsyncClient(service.endpoint, timeouts=timeouts) as client:
        given_s = times_given(client)
        await client.put_series(volume)
        await client.report(volume).collect()
        await client.ask(volume, "?").collect()
        await client.segment(volume, [ObjectPrompt(label="liver")]).collect()
        await client.describe()
    assert given_s == [22.0, 33.0, 33.0, 44.0, 11.0]


@pytest.mark.parametrize("method", ["PutSeries", "Report", "Ask", "Segment", "Describe"])
async def test_all_attempts_of_a_call_share_one_deadline(service, client, volume, clock, method):
    """Each has what the waits before it have left of it, as has the sending of a series that the service lacks."""
    begin = {
        "PutSeries": lambda: client.put_series(volume, deadline_s=60.0),
        "Report": lambda: client.report(volume, deadline_s=60.0).collect(),
        "Ask": lambda: client.ask(volume, "?", deadline_s=60.0).collect(),
        "Segment": lambda: client.segment(volume, [ObjectPrompt(label="liver")], deadline_s=60.0).collect(),
        "Describe": lambda: client.describe(deadline_s=60.0),
    }
    given_s = times_given(client)
    service.fail(method, *[Overloaded("full", retry_after_s=2.5)] * 2)
    await begin[method]()
    assert len(clock.waits_s) == 2
    first_s, second_s = clock.waits_s
    left_s = [60.0, 60.0 - first_s, 60.0 - first_s - second_s]
    if method not in {"PutSeries", "Describe"}:
        # The third attempt learns that the series is not here: it is sent, and asked about once more.
        left_s += left_s[-1:] * 2
    assert given_s == pytest.approx(left_s)


async def test_a_wrong_request_is_not_repeated(service, client, volume):
    """Errors that do not pass by themselves are raised at once, as the class that the server raised."""
    service.fail("Segment", UnknownLabel("The checkpoint knows no class 'tail'."))
    service.resident.add(volume.digest)
    with pytest.raises(UnknownLabel, match="tail"):
        await client.segment(volume, [ObjectPrompt(label="tail")]).collect()
    assert service.calls == ["Segment"]


async def test_a_call_is_repeated_after_progress_but_not_after_a_part_of_the_answer(service, client, volume):
    """Nothing of an answer is handed on twice."""
    service.resident.add(volume.digest)
    service.fail_after = BackendUnavailable("died", retry_after_s=0.0)
    service.events = [pb.Event(progress=pb.Progress(stage=pb.STAGE_SEGMENT, done=1, total=2))]
    with pytest.raises(BackendUnavailable):
        await client.segment(volume, [ObjectPrompt(label="liver")]).collect()
    assert service.calls == ["Segment"] * 4
    mask = np.ones(volume.geometry.shape, bool)
    for part in (
        pb.Event(text=pb.TextDelta(text="The")),
        pb.Event(preview=pb.SlicePreview(packed=pack_mask(mask[:1]))),
        service.mask(mask),
    ):
        service.calls.clear()
        service.events = [part]
        with pytest.raises(BackendUnavailable):
            await client.report(volume).collect()
        assert service.calls == ["Report"]


async def test_events_are_typed_and_in_order(service, client, volume):
    """Every kind of event becomes its own frozen value, field by field; masks unpack to the canonical grid."""
    mask = np.zeros(volume.geometry.shape, bool)
    mask[2, 3:7, 4:9] = True
    preview = pb.SlicePreview(object=1, slice=2, score=0.5, packed=pack_mask(mask[2:3]))
    measured = {
        "voxels": 20,
        "volume_mm3": 1200.0,
        "diameter_mm": 12.0,
        "diameter_3d_mm": 13.0,
        "centroid_lps_mm": (-12.5, 3.0, 40.0),
        "box_min": (2, 3, 4),
        "box_max": (2, 6, 8),
    }
    mask_event = service.mask(mask, index=1)
    mask_event.mask.score = 0.0625
    mask_event.mask.measurement.CopyFrom(pb.Measurement(**measured))
    mask_event.mask.slice_scores.update({2: 0.25, 3: 0.5})
    service.resident.add(volume.digest)
    service.events = [
        pb.Event(progress=pb.Progress(stage=pb.STAGE_ENCODE, done=1, total=6)),
        pb.Event(preview=preview),
        pb.Event(text=pb.TextDelta(text="Liver [SEG].")),
        mask_event,
        service.mask(None, index=0, label="spleen"),
        service.done("Liver [SEG]."),
    ]
    async with client.segment(volume, [ObjectPrompt(label="liver")], previews=True) as stream:
        progress, shown, text, found, absent, done = [event async for event in stream]
    assert progress == Progress(Stage.ENCODE, 1, 6)
    assert text == TextDelta("Liver [SEG].")
    assert isinstance(shown, SlicePreview)
    assert (shown.object_index, shown.slice_index, shown.score) == (1, 2, 0.5)
    assert np.array_equal(shown.array, mask[2])
    assert isinstance(found, Mask)
    assert np.array_equal(found.array, mask)
    assert found.measurement == Measurement(**measured)
    assert (found.object_index, found.label, found.found, found.score) == (1, "liver", True, 0.0625)
    assert (found.key_slices, found.slice_scores) == ((2,), {2: 0.25, 3: 0.5})
    assert (absent.found, absent.measurement, absent.array.any()) == (False, None, False)
    assert (absent.object_index, absent.label) == (0, "spleen")
    assert done.text == "Liver [SEG]."
    assert "Not for diagnosis" in done.disclaimer


async def test_a_mask_that_does_not_compress_arrives(service, client):
    """It is larger than a message of gRPC may be unless told otherwise, 4 MB."""
    mask = np.random.default_rng(1).random((140, 512, 512), np.float32) < 0.5
    assert len(pack_mask(mask)) > 4 << 20
    service.resident.add("a" * 64)
    service.events = [service.mask(mask), service.done()]
    (found,) = (await client.segment(SeriesRef("a" * 64, mask.shape), [ObjectPrompt(label="liver")]).collect()).masks
    assert np.array_equal(found.array, mask)


async def test_prompts_reach_the_server_as_they_were_given(service, client, volume):
    """Points keep their frame, order and sign."""
    prompt = ObjectPrompt(points=(Point((-12.5, 3.0, 40.0)), Point((1.0, 2.0, 3.0), negative=True)))
    service.resident.add(volume.digest)
    await client.segment(volume, [prompt], previews=True).collect()
    sent = service.requests[-1]
    assert [(list(p.lps_mm), p.negative) for p in sent.objects[0].points] == [
        ([-12.5, 3.0, 40.0], False),
        ([1.0, 2.0, 3.0], True),
    ]
    assert sent.previews


async def test_what_has_changed_is_laid_over_the_earlier_mask(service, client, volume):
    """The earlier mask is named by its digest; a part is never taken for the whole."""
    service.resident.add(volume.digest)
    first = np.zeros(volume.geometry.shape, bool)
    first[2:4, 5:9, 6:8] = True
    service.events = [service.mask(first), service.done()]
    (earlier,) = (await client.segment(volume, [ObjectPrompt(label="liver")]).collect()).masks
    second = first.copy()
    second[3, 6:10, 7] ^= True
    changed = service.mask(second)
    changed.mask.packed = pack_mask(second[3:4, 6:10, 7:8])
    changed.mask.changed.CopyFrom(pb.VoxelBox(min=[3, 6, 7], max=[3, 9, 7]))
    service.events = [changed, service.done()]
    prompt = ObjectPrompt(label="liver", points=(Point((1.0, 2.0, 3.0), correction=1),), earlier=earlier)
    answer = await client.segment(volume, [prompt], local=True, cleanup=Cleanup(fill_holes=True)).collect()
    (part,) = answer.masks
    sent = service.requests[-1]
    assert sent.objects[0].earlier_sha256 == hashlib.sha256(earlier.packed).digest()
    assert (sent.local, sent.cleanup) == (True, pb.Cleanup(fill_holes=True))
    with pytest.raises(InvalidRequest, match="lay it over"):
        assert part.array.any()
    whole = part.laid_over(earlier)
    assert np.array_equal(whole.array, second)
    assert whole.packed == pack_mask(second)
    assert whole.laid_over(earlier) is whole
    other = first.copy()
    other[5, 10, 10] = True
    for wrong in (replace(earlier, packed=pack_mask(other)), replace(earlier, volume_shape=(1, 2, 3))):
        with pytest.raises(InvalidRequest, match="not the mask that the prompt named"):
            part.laid_over(wrong)
    with pytest.raises(InvalidRequest, match="only what has changed"):
        ObjectPrompt(label="liver", earlier=part)


async def test_leaving_a_stream_cancels_the_call_on_the_server(service, client, volume):
    """A reader that has had enough does not keep the server busy."""
    service.resident.add(volume.digest)
    service.hold = threading.Event()
    service.events = [pb.Event(text=pb.TextDelta(text="The"))]
    async with client.report(volume) as stream:
        await anext(stream)
    assert await asyncio.to_thread(service.ended.wait, 10)


async def test_cancelling_the_task_cancels_the_call_on_the_server(service, client, volume):
    """Cancellation passes on."""
    service.resident.add(volume.digest)
    service.hold = threading.Event()
    service.events = [pb.Event(text=pb.TextDelta(text="The"))]
    begun = asyncio.Event()

    async def read():
        async for _ in client.report(volume):
            begun.set()

    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(service.ended.wait, 10)


async def test_a_deadline_covers_the_whole_call(service, client, volume):
    """A server that hangs is left when the deadline passes, with the tree's error."""
    service.resident.add(volume.digest)
    service.hold = threading.Event()
    service.events = []
    with pytest.raises(DeadlineExceeded):
        await client.report(volume, deadline_s=0.2).collect()
    assert await asyncio.to_thread(service.ended.wait, 10)


async def test_an_answer_that_is_not_closed_is_a_defect(service, client, volume):
    """Half an answer is never taken for a whole one."""
    service.resident.add(volume.digest)
    service.events = [pb.Event(text=pb.TextDelta(text="The"))]
    with pytest.raises(InternalError, match="without closing"):
        await client.report(volume).collect()


async def test_an_event_newer_than_the_client_is_passed_over(service, client, volume):
    """Services may grow."""
    service.resident.add(volume.digest)
    service.events = [pb.Event(), service.done("x")]
    assert (await client.report(volume).collect()).text == "x"


async def test_describe_and_health(service, client):
    """What is served is known before anything is sent; health is a plain yes or no."""
    description = await client.describe()
    assert [label.name for label in description.labels] == ["liver"]
    assert description.backends == {"llm": "python"}
    assert description.limits.max_slices == 1500
    assert await client.health()
    service.health.set("medvl.wire.v1.MedVL", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert not await client.health()


async def test_nobody_at_the_endpoint():
    """Health says no; calls say that no server answers."""
    async with AsyncClient("127.0.0.1:1", retry=RetryPolicy(max_attempts=1)) as client:
        assert not await client.health()
        with pytest.raises(BackendUnavailable, match="No server answers"):
            await client.describe()


@pytest.mark.parametrize("endpoint", ["", "localhost", "http://localhost:8500", "a b:1", "host:port"])
async def test_an_endpoint_is_host_and_port(endpoint):
    """Anything else is refused before a connection is tried."""
    with pytest.raises(InvalidRequest, match="host:port"):
        AsyncClient(endpoint)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_policies_refuse_nonsense(value):
    """Durations are positive and finite."""
    with pytest.raises(ValueError, match="text_s"):
        Timeouts(text_s=value)
    with pytest.raises(ValueError, match="max_attempts"):
        RetryPolicy(max_attempts=0)


def test_an_object_is_prompted_in_some_way():
    """Nothing, two descriptions at once, or a mask without a voxel is refused."""
    for fields in ({}, {"label": " "}, {"label": "liver", "text": "the liver"}, {"mask": np.zeros((2, 2, 2), bool)}):
        with pytest.raises(InvalidRequest, match=r"prompted by|no voxel"):
            ObjectPrompt(**fields)
    with pytest.raises(InvalidRequest, match="counted from 1"):
        Point((1.0, 2.0, 3.0), correction=-1)
    assert ObjectPrompt(text="the liver", points=(Point((1.0, 2.0, 3.0), negative=True),)).to_wire().points
    with pytest.raises(InvalidRequest, match="finite"):
        Point((0.0, float("nan"), 0.0))
