"""A real orchestrator on loopback in front of a Triton that can fail."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from medvl.contracts.checkpoint import Checkpoint
from medvl.imaging.geometry import Geometry
from medvl.imaging.volume import SeriesHasher
from medvl.orchestrator import audit
from medvl.orchestrator.config import (
    AdmissionLimits,
    HealthPolicy,
    OrchestratorConfig,
    RequestLimits,
    SeriesLimits,
    TritonKey,
)
from medvl.orchestrator.server import SERVICE, running
from medvl.wire.codec import geometry_to_wire, volume_chunks
from medvl.wire.metadata import UPLOAD_KEY, UPLOAD_SEND
from medvl.wire.v1 import medvl_pb2 as pb
from medvl.wire.v1 import medvl_pb2_grpc as pb_grpc

from .fake_triton import FakeTriton, TritonServer

SHAPE = (8, 16, 12)
SERIES_BYTES = 8 * 16 * 12 * 2


@dataclass(frozen=True)
class Series:
    """A volume to send: asymmetric, and different for every seed."""

    geometry: Geometry
    hu: np.ndarray
    digest: str

    @staticmethod
    def make(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> Series:
        geometry = Geometry(
            shape=shape,
            spacing_mm=(2.5, 0.8, 0.7),
            origin_mm=(-10.0, 20.0, 30.0),
            direction=((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
        )
        hu = np.random.default_rng(seed).integers(-1000, 1000, shape, dtype=np.int16)
        hasher = SeriesHasher(geometry)
        hasher.update(hu.tobytes())
        return Series(geometry, hu, hasher.hexdigest())

    def header(self, **changes: Any) -> pb.PutSeriesRequest:
        fields = {"geometry": geometry_to_wire(self.geometry), "digest": self.digest} | changes
        return pb.PutSeriesRequest(header=pb.SeriesHeader(**fields))

    def messages(self, **changes: Any) -> list[pb.PutSeriesRequest]:
        compression = changes.get("compression", pb.COMPRESSION_NONE)
        chunks = volume_chunks(self.hu, 1024, compression)
        return [self.header(**changes), *(pb.PutSeriesRequest(chunk=c) for c in chunks)]

    def lps(self, *index: float) -> list[float]:
        """The point in LPS millimetres of a slice, row and column."""
        z, y, x = (o + s * i for o, s, i in zip((30.0, 20.0, -10.0), (2.5, 0.8, 0.7), index, strict=True))
        return [x, y, z]


@dataclass
class System:
    """An orchestrator, the Triton behind it, and a client's stub."""

    fake: FakeTriton
    triton: TritonServer
    stub: pb_grpc.MedVLStub
    health: health_pb2_grpc.HealthStub
    metrics_port: int | None
    log: io.StringIO

    async def put(self, series: Series) -> pb.PutSeriesResponse:
        return await self.send(series.messages())

    async def send(self, messages: Sequence[pb.PutSeriesRequest]) -> pb.PutSeriesResponse:
        """Send a stream as a client should: the voxels when the server wants them."""
        call = self.stub.PutSeries()
        for message in messages[:1]:
            await call.write(message)
        if not messages or dict(await call.initial_metadata()).get(UPLOAD_KEY) == UPLOAD_SEND:
            for message in messages[1:]:
                await call.write(message)
            await call.done_writing()
        return await call

    async def until(self, status: int) -> None:
        """Wait for a health status; the health service streams its changes."""
        watch = self.health.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        async for answer in watch:
            if answer.status == status:
                break
        watch.cancel()

    async def lines(self, count: int) -> list[dict[str, Any]]:
        """Wait for the lines of so many calls, which come when a caller has its answer already, and return all."""
        async with asyncio.timeout(10):
            while sum(line["event"] == "call" for line in self._lines()) < count:  # noqa: ASYNC110 - a log has no events
                await asyncio.sleep(0.01)
        return self._lines()

    def _lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    async def serves(self) -> bool:
        """Whether a whole request is answered."""
        series = Series.make(99)
        await self.put(series)
        events = await collect(self.stub.Report(pb.ReportRequest(series=series.digest)))
        return events[-1].WhichOneof("event") == "done"


async def collect(call: Any) -> list[pb.Event]:
    return [event async for event in call]


def kinds(events: Sequence[pb.Event]) -> list[str]:
    return [e.WhichOneof("event") for e in events]


@pytest.fixture
def series() -> Series:
    return Series.make()


@pytest.fixture
def checkpoint() -> Checkpoint:
    return Checkpoint.model_validate(
        {
            "format": 1,
            "name": "tiny",
            "trained": False,
            "licence": "Apache-2.0",
            "provenance": "made for a test",
            "intended_use": "tests",
            "windows": {"soft": (-160.0, 240.0), "lung": (-1350.0, 150.0)},
            "vision": {
                "architecture": "dcformer",
                "grid": (4, 8, 6),
                "window": "soft",
                "dims": (16, 32, 48, 64, 80),
                "depths": (1, 1, 1, 1, 1),
                "kernel_sizes": (7, 5, 3, 3),
                "feature_stages": (3, 4),
            },
            "projector": {"architecture": "mixer", "low_tokens": (16, 8), "high_tokens": (4, 4), "mlp_depth": 2},
            "language": {
                "hidden_size": 8,
                "max_context": 512,
                "dtype": "float32",
                "image_token": "<image>",
                "seg_token": "[SEG]",
                "splice": "prefix",
                "seg_state": "at",
                "max_report_tokens": 64,
                "max_answer_tokens": 32,
                "prompts": {
                    "report": "Write the report.",
                    "ask": "Q: {question}",
                    "segment_label": "Segment the {label}.",
                    "segment_text": "Segment: {text}",
                    "segment_answer": "It is [SEG].",
                },
            },
            "segmentation": {
                "architecture": "sam2.1_hiera_t",
                "side": 32,
                "fit": "pad",
                "window": "soft",
                "max_conditioning_slices": 4,
                "stop_after_absent": 3,
                "key_slices": {"max_slices": 4, "min_gap": 3, "min_score": 0.5},
            },
            "labels": (
                {"name": "liver", "snomed": {"code": "10200004", "meaning": "Liver structure"}},
                {"name": "lung_left", "window": "lung"},
            ),
            "files": {"sam2.safetensors": "0" * 64},
        }
    )


Start = Callable[..., Any]


@pytest_asyncio.fixture
async def start(checkpoint: Checkpoint) -> AsyncIterator[Start]:
    """Start a system with limits of one's own; wait until it serves."""
    from contextlib import AsyncExitStack

    async with AsyncExitStack() as stack:

        async def begin(**changes: Any) -> System:
            fake = FakeTriton(checkpoint)
            triton = TritonServer(fake)
            await triton.start()
            stack.push_async_callback(triton.stop)
            log = io.StringIO()
            audit.configure(log)
            config = default_config(triton.port).model_copy(update=changes)
            server = await stack.enter_async_context(running(config))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{server.port}"))
            stubs = pb_grpc.MedVLStub(channel), health_pb2_grpc.HealthStub(channel)
            system = System(fake, triton, *stubs, server.metrics_port, log)
            await system.until(health_pb2.HealthCheckResponse.SERVING)
            return system

        yield begin


@pytest_asyncio.fixture
async def system(start: Start) -> System:
    """A system with the limits of :func:`default_config`."""
    return await start()


def default_config(triton_port: int) -> OrchestratorConfig:
    return OrchestratorConfig(
        listen="127.0.0.1:0",
        triton=f"127.0.0.1:{triton_port}",
        triton_key=TritonKey(name="medvl", secret="s3cret"),
        drain_s=5.0,
        series=SeriesLimits(max_store_bytes=3 * SERIES_BYTES, max_series_bytes=2 * SERIES_BYTES, max_slices=16),
        request=RequestLimits(max_objects=4, max_prompts_per_object=3, max_text_characters=40),
        admission=AdmissionLimits(max_concurrent_requests=4, max_queued_requests=4, upload_idle_s=5.0),
        health=HealthPolicy(canary_interval_s=0.05),
    )


__all__ = ["Series", "Start", "System", "collect", "default_config", "kinds", "replace"]
