"""A service of the protocol that answers what a test tells it, on a real gRPC server on loopback."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from medvl.client import retry
from medvl.contracts.disclaimer import DISCLAIMER
from medvl.contracts.errors import MedvlError, SeriesNotResident
from medvl.imaging.geometry import Geometry
from medvl.imaging.masks import pack_mask
from medvl.imaging.volume import Volume
from medvl.wire.codec import ChunkDecoder, geometry_from_wire
from medvl.wire.metadata import UPLOAD_KEY, UPLOAD_SEND
from medvl.wire.status import to_status
from medvl.wire.v1 import medvl_pb2 as pb
from medvl.wire.v1 import medvl_pb2_grpc as pb_grpc

SHAPE = (6, 20, 24)


def make_done(text: str = "") -> pb.Event:
    """Return the event that closes a stream."""
    provenance = pb.Provenance(checkpoint="phantom", trained=False, checkpoint_digest="c" * 64, software="medvl-sam2 0")
    return pb.Event(
        done=pb.Done(
            text=text, finish_reason="stop", stages_ms={"encode": 1.5}, provenance=provenance, disclaimer=DISCLAIMER
        )
    )


def make_mask(array: np.ndarray | None, *, index: int = 0, label: str = "liver", prompt: str = "liver") -> pb.Event:
    """Return a mask event; None is an object that was not found."""
    mask = pb.Mask(object=index, label=label, prompt=prompt, found=array is not None, score=0.75, key_slices=[2])
    if array is not None:
        mask.packed = pack_mask(array)
        mask.measurement.CopyFrom(pb.Measurement(voxels=int(array.sum()), volume_mm3=1200.0, diameter_mm=12.0))
    return pb.Event(mask=mask)


class FakeService(pb_grpc.MedVLServicer):
    """Stores series and answers ``events``; raises the errors queued in ``failures`` first.

    What it says that it has stored is ``acknowledges``, where that is set. ``left_s`` is how long each call might last.
    """

    done = staticmethod(make_done)
    mask = staticmethod(make_mask)

    def __init__(self) -> None:
        self.endpoint = ""
        self.provenance = make_done().done.provenance
        self.volumes: dict[str, np.ndarray] = {}
        self.resident: set[str] = set()
        self.acknowledges = ""
        self.calls: list[str] = []
        self.requests: list[Any] = []
        self.left_s: list[float] = []
        self.health = health.HealthServicer()
        self.failures: dict[str, deque[MedvlError | grpc.StatusCode]] = defaultdict(deque)
        self.events: list[pb.Event] = [make_done()]
        self.fail_after: MedvlError | None = None
        self.hold: threading.Event | None = None
        self.ended = threading.Event()

    def fail(self, method: str, *errors: MedvlError | grpc.StatusCode) -> None:
        """Refuse the next calls of a method; a bare code is what a connection says, and no service."""
        self.failures[method].extend(errors)

    def PutSeries(self, request_iterator, context):  # noqa: N802
        """Receive a series; answer on the header when it is here already."""
        header = next(request_iterator).header
        self._begin("PutSeries", header, context)
        if header.digest in self.resident:
            return pb.PutSeriesResponse(digest=self.acknowledges or header.digest, already_resident=True)
        context.send_initial_metadata(((UPLOAD_KEY, UPLOAD_SEND),))
        decoder = ChunkDecoder(geometry_from_wire(header.geometry).shape, header.compression)
        for message in request_iterator:
            decoder.feed(message.chunk)
        self.volumes[header.digest] = decoder.finish()
        self.resident.add(header.digest)
        return pb.PutSeriesResponse(digest=self.acknowledges or header.digest)

    def Report(self, request, context):  # noqa: N802
        """Answer the script."""
        yield from self._answer("Report", request, context)

    def Ask(self, request, context):  # noqa: N802
        """Answer the script."""
        yield from self._answer("Ask", request, context)

    def Segment(self, request, context):  # noqa: N802
        """Answer the script."""
        yield from self._answer("Segment", request, context)

    def Describe(self, request, context):  # noqa: N802
        """Say something of every field."""
        self._begin("Describe", request, context)
        return pb.DescribeResponse(
            provenance=self.provenance,
            labels=[pb.Label(name="liver", snomed_code="10200004", snomed_meaning="Liver")],
            limits=pb.Limits(max_series_bytes=10**9, min_slices=3, max_slices=1500, max_objects=8),
            backends={"llm": "python"},
            intended_use="demonstration",
            disclaimer=DISCLAIMER,
        )

    def _begin(self, method, request, context):
        self.calls.append(method)
        self.requests.append(request)
        self.left_s.append(context.time_remaining())
        if self.failures[method]:
            self.abort(context, self.failures[method].popleft())

    def _answer(self, method, request, context):
        self._begin(method, request, context)
        if request.series not in self.resident:
            self.abort(context, SeriesNotResident("The series is not here: send it."))
        context.add_callback(self.ended.set)
        yield from self.events
        if self.hold is not None:
            self.hold.wait(30)
        if self.fail_after is not None:
            self.abort(context, self.fail_after)

    @staticmethod
    def abort(context, error):
        """End a call with an error of the tree, or a bare code."""
        if isinstance(error, grpc.StatusCode):
            context.abort(error, "")
        context.abort_with_status(rpc_status.to_status(to_status(error)))


@pytest.fixture
def service() -> Iterator[FakeService]:
    """A service of the protocol on loopback."""
    fake = FakeService()
    server = grpc.server(ThreadPoolExecutor(8))
    pb_grpc.add_MedVLServicer_to_server(fake, server)
    fake.health.set("medvl.wire.v1.MedVL", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(fake.health, server)
    fake.endpoint = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield fake
    if fake.hold is not None:
        fake.hold.set()
    server.stop(None).wait()


class Clock:
    """The time of deadlines and of waits between attempts: only waiting moves it, and takes no time."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.waits_s: list[float] = []

    def monotonic(self) -> float:
        """Return the time; see :func:`time.monotonic`."""
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        """Pass time; see :func:`asyncio.sleep`."""
        self.waits_s.append(delay_s)
        self.now_s += delay_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What the client takes for the time between its attempts."""
    clock = Clock()
    monkeypatch.setattr(retry, "time", clock)
    monkeypatch.setattr(retry, "asyncio", clock)
    return clock


def make_volume(shape: tuple[int, int, int] = SHAPE) -> Volume:
    """Return a volume whose voxels all differ from their neighbours."""
    hu = (np.arange(np.prod(shape)) % 1700 - 700).astype(np.int16).reshape(shape)
    direction = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    geometry = Geometry(shape=shape, spacing_mm=(2.5, 0.8, 0.7), origin_mm=(-9.0, -8.0, 40.0), direction=direction)
    return Volume(hu=hu, geometry=geometry)


@pytest.fixture
def volume() -> Volume:
    """A small volume, asymmetric in every axis."""
    return make_volume()
