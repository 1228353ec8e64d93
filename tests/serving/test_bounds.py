"""The segmenter's memory on a large request, in a Triton server with small stores."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from medvl.contracts.checkpoint import load_checkpoint
from medvl.contracts.manifest import MODELS_FOLDER
from medvl.contracts.messages import (
    BoxPrompt,
    ObjectMask,
    ObjectPrompts,
    PointPrompt,
    Progress,
    SegmenterDone,
    SegmenterRequest,
    parse_event,
)
from medvl.orchestrator.calls import Call
from medvl.orchestrator.triton import Triton
from medvl.runtime.ports import free_ports
from medvl.runtime.triton import TritonConfig, TritonServer
from medvl.runtime.triton_home import TritonHome

from ..conftest import in_background  # noqa: TID252 - tests are no installed package

pytestmark = pytest.mark.e2e

DEPTH, ROWS, COLUMNS = 1500, 48, 64
OBJECTS, PROMPTS, THICK = 64, 64, 6
"""Objects, points and box of each, and slices that each is confined to."""
BOUNDS = {"STORE": 130_000_000, "KNOWN": 20_000_000, "RESULT": 10_000_000}
"""Bytes; the slices of the series alone are 98 million, so that features have to make room for one another."""
WORKING_BYTES = 60_000_000
"""What the graphs of two workers take while they run, and what the heap keeps: 28 million were measured."""


@pytest.fixture
def server(triton_home: TritonHome, phantom_repository: Path, tmp_path: Path) -> Iterator[TritonServer]:
    """A server that serves the segmenter alone."""
    grpc_port, metrics_port = free_ports(2)
    config = TritonConfig(
        phantom_repository / MODELS_FOLDER,
        grpc_port,
        metrics_port,
        tmp_path / "triton.log",
        models=("volume_segmenter",),
        environment={f"MEDVL_SEGMENTER_{name}_BYTES": str(size) for name, size in BOUNDS.items()},
    )
    with in_background(TritonServer(triton_home, config)) as server:
        yield server


def prompts(number: int) -> ObjectPrompts:
    """Return a box and points on three of its slices, for an object of its own place."""
    first = number * (DEPTH - THICK) // OBJECTS
    box = BoxPrompt(
        slice=first + 2,
        first_slice=first,
        last_slice=first + THICK - 1,
        row_min=8,
        row_max=30,
        column_min=9,
        column_max=40,
    )
    points = tuple(
        PointPrompt(slice=first + 1 + i % 3, row=12 + i % 11, column=15 + i % 13, positive=i % 3 > 0)
        for i in range(PROMPTS - 1)
    )
    return ObjectPrompts(object_id=number, points=points, boxes=(box,))


def stub(server: TritonServer) -> psutil.Process:
    """Return the process of the segmenter."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    (found,) = (c for c in children if any("volume_segmenter" in word for word in c.cmdline()))
    return found


async def asked(server: TritonServer, request: SegmenterRequest, slices: np.ndarray) -> list[object]:
    """Return what a request is answered, masks left out."""
    inputs = {"request": np.frombuffer(request.to_bytes(), np.uint8), "slices": slices}
    async with Triton(server.endpoint, server.config.key) as client:
        call = Call("test", asyncio.get_running_loop().time() + 300)
        async with aclosing(client.stream("volume_segmenter", inputs, call)) as responses:
            return [parse_event(r["event"].tobytes()) async for r in responses]


def own_bytes(process: psutil.Process) -> int:
    """Return the memory of a process without what it shares: Triton lends it the tensors of a request."""
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


async def most_bytes(process: psutil.Process, found: list[int]) -> None:
    while True:
        found.append(own_bytes(process))
        await asyncio.sleep(0.1)


@pytest.mark.timeout(600)
async def test_many_slices_and_objects_stay_within_the_bounds(server: TritonServer, phantom_checkpoint: Path):
    """1,500 slices and 64 objects with 64 prompts each: answered, with progress, in the memory that was granted."""
    side = load_checkpoint(phantom_checkpoint).segmentation.side
    rng = np.random.default_rng(2)
    slices = np.resize(rng.integers(0, 255, (50, side, side), np.uint8), (DEPTH, side, side))
    process = stub(server)
    small = SegmenterRequest(series="small", window_hu=(-160.0, 240.0), shape=(8, ROWS, COLUMNS), objects=(prompts(0),))
    await asked(server, small, slices[:8])
    before, most = own_bytes(process), []
    # The second series arrives beside full stores; few objects show that as well as many.
    for series, objects in (("large", OBJECTS), ("as large", 8)):
        found: list[int] = []
        watch = asyncio.create_task(most_bytes(process, found))
        large = small.model_copy(
            update={"series": series, "shape": (DEPTH, ROWS, COLUMNS), "objects": tuple(map(prompts, range(objects)))}
        )
        events = await asked(server, large, slices)
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
        most.append(max(found) - before)
        assert isinstance(events[-1], SegmenterDone)
        masks = [e for e in events if isinstance(e, ObjectMask)]
        assert {m.object_id for m in masks} == set(range(objects))
        assert all(len(m.slice_scores) == THICK for m in masks)
        progress = [e for e in events if isinstance(e, Progress)]
        assert progress[-1].slices_done == progress[-1].slices_total == objects * DEPTH
        # Between the first and the last one come as many as the machine leaves time for.
        assert len(progress) > 2
    print("grown by", [round(size / 1e6) for size in most], "MB")
    # Triton's stub copies what a request carries before anybody can make room for it.
    assert max(most) <= sum(BOUNDS.values()) + slices.nbytes + WORKING_BYTES
    assert most[0] <= sum(BOUNDS.values()) + WORKING_BYTES
