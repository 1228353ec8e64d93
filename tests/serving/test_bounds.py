"""The segmenter's memory on large requests, in a Triton server with small stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from medvl.contracts.checkpoint import load_checkpoint
from medvl.contracts.errors import InvalidRequest
from medvl.contracts.manifest import MODELS_FOLDER
from medvl.contracts.messages import (
    MAX_GIVEN_SLICES,
    BoxPrompt,
    GivenMask,
    ObjectMask,
    ObjectPrompts,
    PointPrompt,
    Progress,
    SegmenterDone,
    SegmenterRequest,
    parse_event,
)
from medvl.imaging.masks import pack_mask
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
KNOWN_SLICE_BYTES = 34_000
"""Memory, logits and pointer of an object on a prompted slice of the phantom checkpoint."""
GIVEN_SHAPE = MAX_GIVEN_SLICES // OBJECTS, 512, 512
"""Slices, rows and columns of a series that masks cover from end to end: 16.8 million voxels for each object."""


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


async def asked(
    server: TritonServer, request: SegmenterRequest, slices: np.ndarray, masks: bytes = b""
) -> list[object]:
    """Return what a request is answered, masks left out."""
    inputs = {"request": np.frombuffer(request.to_bytes(), np.uint8), "slices": slices}
    inputs |= {"masks": np.frombuffer(masks, np.uint8)} if masks else {}
    async with Triton(server.endpoint, server.config.key) as client:
        call = Call("test", asyncio.get_running_loop().time() + 300)
        async with aclosing(client.stream("volume_segmenter", inputs, call)) as responses:
            return [parse_event(r["event"].tobytes()) async for r in responses]


def own_bytes(process: psutil.Process) -> int:
    """Return the memory of a process without what it shares: Triton lends it the tensors of a request."""
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


@asynccontextmanager
async def watched(process: psutil.Process) -> AsyncIterator[list[int]]:
    """Give the memory of a process over and over, as long as the block lasts."""
    found: list[int] = []

    async def watch() -> None:
        while True:
            found.append(own_bytes(process))
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    try:
        yield found
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


def random_slices(side: int) -> np.ndarray:
    """Return the slices of a series UINT8 [DEPTH, S, S]."""
    rng = np.random.default_rng(2)
    return np.resize(rng.integers(0, 255, (50, side, side), np.uint8), (DEPTH, side, side))


SMALL = SegmenterRequest(series="small", window_hu=(-160.0, 240.0), shape=(8, ROWS, COLUMNS), objects=(prompts(0),))


@pytest.mark.timeout(600)
async def test_many_slices_and_objects_stay_within_the_bounds(server: TritonServer, phantom_checkpoint: Path):
    """1,500 slices and 64 objects with 64 prompts each: answered, with progress, in the memory that was granted."""
    side = load_checkpoint(phantom_checkpoint).segmentation.side
    slices = random_slices(side)
    process = stub(server)
    await asked(server, SMALL, slices[:8])
    before, most = own_bytes(process), []
    # The second series arrives beside full stores; few objects show that as well as many.
    for series, objects in (("large", OBJECTS), ("as large", 8)):
        large = SMALL.model_copy(
            update={"series": series, "shape": (DEPTH, ROWS, COLUMNS), "objects": tuple(map(prompts, range(objects)))}
        )
        async with watched(process) as found:
            events = await asked(server, large, slices)
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


def covering(objects: int) -> tuple[tuple[ObjectPrompts, ...], bytes]:
    """Return objects whose masks have a voxel on every slice, each another rectangle, and the packed masks."""
    packed = b""
    given = []
    for number in range(objects):
        mask = np.zeros(GIVEN_SHAPE, bool)
        mask[:, 10 + number : 500, 12:490] = True
        own = pack_mask(mask)
        given.append(ObjectPrompts(object_id=number, mask=GivenMask(start=len(packed), length=len(own))))
        packed += own
    return tuple(given), packed


@pytest.mark.timeout(600)
async def test_given_masks_stay_packed(server: TritonServer, phantom_checkpoint: Path):
    """64 masks of 64 x 512 x 512 voxels, 15 kB packed and 1.1 GB unpacked: answered, in what their slices are known by.

    One slice more is refused.
    """
    depth = GIVEN_SHAPE[0]
    slices = random_slices(load_checkpoint(phantom_checkpoint).segmentation.side)[:depth]
    objects, masks = covering(OBJECTS)
    assert len(masks) < 2**15
    process = stub(server)
    await asked(server, SMALL, slices[:8])
    before = own_bytes(process)
    request = SMALL.model_copy(update={"series": "covered", "shape": GIVEN_SHAPE, "objects": objects})
    async with watched(process) as found:
        events = await asked(server, request, slices, masks)
    assert [e.object_id for e in events if isinstance(e, ObjectMask) and e.found] == list(range(OBJECTS))
    print("grown by", round((max(found) - before) / 1e6), "MB")
    assert max(found) - before <= sum(BOUNDS.values()) + WORKING_BYTES + MAX_GIVEN_SLICES * KNOWN_SLICE_BYTES
    # Another series, because what has been answered is not unpacked again.
    again = objects[0].model_copy(update={"object_id": OBJECTS})
    too_many = request.model_copy(update={"series": "covered again", "objects": (*objects, again)})
    with pytest.raises(InvalidRequest, match=f"more than {MAX_GIVEN_SLICES} slices"):
        await asked(server, too_many, slices, masks)
