"""The synchronous face gives what the asynchronous client gives."""

from __future__ import annotations

import inspect
import threading

import numpy as np
import pytest

from medvl.client import AsyncClient, Cleanup, Client, EventStream, ObjectPrompt, SyncStream, TextDelta
from medvl.contracts.errors import InvalidRequest, Overloaded, UnknownLabel
from medvl.wire.v1 import medvl_pb2 as pb


@pytest.fixture
def client(service):
    with Client(service.endpoint) as connected:
        yield connected


def test_both_faces_take_the_same_arguments():
    """Every public call of one face exists in the other with the same parameters."""
    for asynchronous, synchronous in ((AsyncClient, Client), (EventStream, SyncStream)):
        for name, function in inspect.getmembers(asynchronous, inspect.isfunction):
            if not name.startswith("_") and name != "aclose":
                twin = inspect.signature(getattr(synchronous, name))
                assert twin.parameters == inspect.signature(function).parameters, name


async def test_both_faces_give_the_same_answer(service, volume):
    """Results are equal values, masks included."""
    mask = np.zeros(volume.geometry.shape, bool)
    mask[1:4, 2:9, 5] = True
    service.events = [pb.Event(text=pb.TextDelta(text="Liver.")), service.mask(mask), service.done("Liver.")]
    objects = [ObjectPrompt(label="liver")]
    async with AsyncClient(service.endpoint) as asynchronous:
        uploaded = await asynchronous.put_series(volume)
        expected = [await asynchronous.segment(volume, objects).collect(), await asynchronous.describe()]
    service.resident.clear()
    with Client(service.endpoint) as synchronous:
        assert synchronous.put_series(volume) == uploaded
        assert [synchronous.segment(volume, objects).collect(), synchronous.describe()] == expected
        assert synchronous.health()


async def test_both_faces_send_all_that_they_are_given(service, volume):
    """Every field of every request, and how long it may take."""
    objects, cleanup = [ObjectPrompt(label="liver")], Cleanup(fill_holes=True)

    def streams(client):
        yield client.report(volume, max_tokens=7, deadline_s=40.0)
        yield client.ask(volume, "Is the liver large?", max_tokens=8, deadline_s=40.0)
        yield client.segment(volume, objects, previews=True, local=True, cleanup=cleanup, deadline_s=40.0)

    async with AsyncClient(service.endpoint) as asynchronous:
        await asynchronous.put_series(volume, deadline_s=40.0)
        for stream in streams(asynchronous):
            await stream.collect()
        await asynchronous.describe(deadline_s=4.0)
    with Client(service.endpoint) as synchronous:
        synchronous.put_series(volume, deadline_s=40.0)
        for stream in streams(synchronous):
            stream.collect()
        synchronous.describe(deadline_s=4.0)
    header, *asked = service.requests[:5]
    assert service.requests == [header, *asked] * 2
    assert asked == [
        pb.ReportRequest(series=volume.digest, max_tokens=7),
        pb.AskRequest(series=volume.digest, question="Is the liver large?", max_tokens=8),
        pb.SegmentRequest(
            series=volume.digest,
            objects=[pb.ObjectPrompt(label="liver")],
            previews=True,
            local=True,
            cleanup=pb.Cleanup(fill_holes=True),
        ),
        pb.DescribeRequest(),
    ]
    # Without being told they may take 10 s and more. gRPC rounds up on its way.
    assert all(left_s < limit_s for left_s, limit_s in zip(service.left_s, [50, 50, 50, 50, 5] * 2, strict=True))


def test_a_stream_is_an_iterator_of_events(service, client, volume):
    """Events come one by one in a plain for loop; a missing series is sent unasked."""
    service.events = [pb.Event(text=pb.TextDelta(text=t)) for t in ("No ", "finding.")] + [service.done("No finding.")]
    events = list(client.report(volume))
    assert events[:2] == [TextDelta("No "), TextDelta("finding.")]
    assert service.calls == ["Report", "PutSeries", "Report"]


def test_leaving_a_stream_cancels_the_call_on_the_server(service, client, volume):
    """A reader that has had enough does not keep the server busy."""
    service.resident.add(volume.digest)
    service.hold = threading.Event()
    service.events = [pb.Event(text=pb.TextDelta(text="The"))]
    with client.ask(volume, "?") as stream:
        next(stream)
    assert service.ended.wait(10)


def test_errors_are_those_of_the_tree(service, client, volume):
    """The same class and sentence as in the asynchronous client."""
    service.resident.add(volume.digest)
    service.fail("Segment", Overloaded("full", retry_after_s=0.0), UnknownLabel("no such class"))
    with pytest.raises(UnknownLabel, match="no such class"):
        client.segment(volume, [ObjectPrompt(label="tail")]).collect()
    with pytest.raises(InvalidRequest, match="host:port"):
        Client("nowhere")


def test_closing_ends_the_thread(service):
    """No thread of the client stays behind."""
    with Client(service.endpoint) as client:
        client.describe()
        assert "medvl-client" in {thread.name for thread in threading.enumerate()}
    assert "medvl-client" not in {thread.name for thread in threading.enumerate()}
