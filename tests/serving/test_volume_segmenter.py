"""The segmenter inside the real Triton server, asked without the orchestrator."""

from __future__ import annotations

import asyncio
import hashlib
import re
import urllib.request
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from medvl.contracts.checkpoint import Checkpoint, load_checkpoint
from medvl.contracts.errors import InvalidRequest, MedvlError, PromptOutsideVolume
from medvl.contracts.messages import (
    BoxPrompt,
    NotResident,
    ObjectMask,
    ObjectPrompts,
    PointPrompt,
    Progress,
    SegmenterDone,
    SegmenterEvent,
    SegmenterRequest,
    SliceMask,
    parse_event,
)
from medvl.imaging.masks import pack_mask, unpack_mask
from medvl.orchestrator.calls import Call
from medvl.orchestrator.triton import Triton
from medvl.runtime.triton import TritonServer

pytestmark = pytest.mark.e2e

DEPTH, ROWS, COLUMNS = 6, 48, 64
SHAPE = (DEPTH, ROWS, COLUMNS)
LONG = 40
"""Slices of a series on which tracking has somewhere to go."""
POINT = ObjectPrompts(object_id=7, points=(PointPrompt(slice=2, row=20, column=30),))
BOX = ObjectPrompts(
    object_id=9,
    boxes=(BoxPrompt(slice=3, first_slice=2, last_slice=4, row_min=5, column_min=8, row_max=30, column_max=40),),
)


@dataclass(frozen=True)
class Event:
    """One response."""

    said: SegmenterEvent
    mask: bytes


class Segmenter:
    """The model of the running system, and what it is asked with."""

    def __init__(self, server: TritonServer, checkpoint: Checkpoint) -> None:
        self.server = server
        side = checkpoint.segmentation.side
        rng = np.random.default_rng(4)
        self.slices = rng.integers(0, 255, (DEPTH, side, side), np.uint8)
        self.slices[:, 60:140, 50:160] //= 3
        self.states = rng.normal(size=(1, checkpoint.language.hidden_size)).astype(np.float32)

    async def ask(self, request: SegmenterRequest | bytes, **tensors: np.ndarray) -> list[Event]:
        """Return every event of an answer."""
        data = request if isinstance(request, bytes) else request.to_bytes()
        inputs: Mapping[str, np.ndarray] = {"request": np.frombuffer(data, np.uint8), **tensors}
        async with Triton(self.server.endpoint, self.server.config.key) as client:
            call = Call("test", asyncio.get_running_loop().time() + 60)
            async with aclosing(client.stream("volume_segmenter", inputs, call)) as responses:
                return [Event(parse_event(r["event"].tobytes()), r["mask"].tobytes()) async for r in responses]

    def cancelled(self) -> float:
        """Return how many callers went away so far."""
        with urllib.request.urlopen(self.server.metrics_url, timeout=5) as response:
            text = response.read().decode()
        found = re.search(r"^medvl_segmenter_cancelled_total\{.*\} ([0-9.]+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0


@pytest.fixture(scope="session")
def segmenter(triton_server: TritonServer, phantom_checkpoint: Any) -> Segmenter:
    return Segmenter(triton_server, load_checkpoint(phantom_checkpoint))


def request(series: str, *objects: ObjectPrompts, **changes: Any) -> SegmenterRequest:
    values = {"series": series, "window_hu": (-160.0, 240.0), "shape": SHAPE, "objects": objects} | changes
    return SegmenterRequest(**values)


async def test_events_of_an_answer(segmenter: Segmenter):
    """Prompted slices first, whole masks as each object ends, the account last."""
    events = await segmenter.ask(request("order", POINT, BOX), slices=segmenter.slices)
    kinds = [type(e.said) for e in events]
    assert kinds[:2] == [SliceMask, SliceMask]
    assert [e.said.object_id for e in events if isinstance(e.said, SliceMask)] == [7, 9]
    assert [e.said.object_id for e in events if isinstance(e.said, ObjectMask)] == [7, 9]
    assert set(kinds[2:-1]) <= {Progress, ObjectMask}
    done = events[-1].said
    assert isinstance(done, SegmenterDone)
    assert done.slices_encoded == DEPTH
    assert 0 < done.track_ms < done.total_ms
    assert all(not e.mask for e in events if isinstance(e.said, Progress | SegmenterDone))


async def test_the_whole_mask_holds_what_the_first_one_showed(segmenter: Segmenter):
    """A prompted slice is the same in both; a box bounds the slices; every score has its slice."""
    events = await segmenter.ask(request("masks", POINT, BOX), slices=segmenter.slices)
    first = {e.said.object_id: (e.said, e.mask) for e in events if isinstance(e.said, SliceMask)}
    whole = {e.said.object_id: (e.said, e.mask) for e in events if isinstance(e.said, ObjectMask)}
    assert first.keys() == whole.keys() == {7, 9}
    for object_id, (said, packed) in first.items():
        ended, packed_whole = whole[object_id]
        assert ended.found
        assert ended.key_slices == (said.slice,)
        assert ended.score == said.score
        mask = unpack_mask(packed_whole, SHAPE)
        (shown,) = unpack_mask(packed, (1, ROWS, COLUMNS))
        assert shown.any()
        assert not shown.all()
        assert np.array_equal(mask[said.slice], shown)
        assert {n for n in range(DEPTH) if mask[n].any()} <= ended.slice_scores.keys()
    boxed, _ = whole[9]
    assert boxed.slice_scores.keys() == {2, 3, 4}


async def test_slices_stay_for_the_next_request(segmenter: Segmenter):
    """The second request sends none, computes no feature again and gives the same mask."""
    asked = request("stay", POINT)
    first = await segmenter.ask(asked, slices=segmenter.slices)
    second = await segmenter.ask(asked)
    assert isinstance(second[-1].said, SegmenterDone)
    assert second[-1].said.slices_encoded == 0
    masks = [next(e.mask for e in events if isinstance(e.said, ObjectMask)) for events in (first, second)]
    assert masks[0] == masks[1]


async def test_two_users_of_a_series_share_its_features(segmenter: Segmenter):
    """They ask at the same time, for different objects: no slice is encoded twice."""
    first, second = await asyncio.gather(
        *(segmenter.ask(request("shared", one), slices=segmenter.slices) for one in (POINT, BOX))
    )
    ends = [events[-1].said for events in (first, second)]
    assert sum(end.slices_encoded for end in ends if isinstance(end, SegmenterDone)) == DEPTH


@pytest.mark.parametrize("changes", [{"series": "other"}, {"window_hu": (-1000.0, 400.0)}], ids=["series", "window"])
async def test_what_is_not_resident_is_said(segmenter: Segmenter, changes: dict[str, Any]):
    """Neither another series nor the same one through another window is answered from what is there."""
    await segmenter.ask(request("here", POINT), slices=segmenter.slices)
    values = {"series": "here"} | changes
    (event,) = await segmenter.ask(request(values.pop("series"), POINT, **values))
    assert event.said == NotResident()


async def test_a_state_of_the_language_model_prompts(segmenter: Segmenter):
    """Alone it searches every slice; what it finds has key slices and a mask, what it does not find has neither."""
    spoken = ObjectPrompts(object_id=1, seg_row=0)
    events = await segmenter.ask(request("text", spoken), slices=segmenter.slices, seg_hidden=segmenter.states)
    assert isinstance(events[-1].said, SegmenterDone)
    assert events[-1].said.slices_encoded == DEPTH
    (ended,) = [e for e in events if isinstance(e.said, ObjectMask)]
    assert isinstance(ended.said, ObjectMask)
    assert ended.said.found == bool(ended.mask) == bool(ended.said.key_slices)
    assert 0 <= ended.said.score <= 1


@pytest.mark.parametrize(
    ("asked", "error", "sentence"),
    [
        (b"{", InvalidRequest, "The segmenter's request is wrong: JSON"),
        (request("x"), InvalidRequest, "no objects"),
        (request("x", ObjectPrompts(object_id=1)), InvalidRequest, "Object 1 has no prompt"),
        (request("x", POINT, POINT), InvalidRequest, "Object 7 is described 2 times"),
        (request("x", ObjectPrompts(object_id=1, seg_row=0)), InvalidRequest, "names row 0 of seg_hidden"),
        (request("x", POINT, shape=(DEPTH + 1, ROWS, COLUMNS)), InvalidRequest, "Tensor slices should be"),
        (
            request("x", ObjectPrompts(object_id=1, points=(PointPrompt(slice=DEPTH, row=1, column=1),))),
            PromptOutsideVolume,
            "A point lies outside the volume of 6 slices of 48 x 64 voxels.",
        ),
        (
            request("x", ObjectPrompts(object_id=1, points=(POINT.points * 33))),
            InvalidRequest,
            "Object 1 has 33 points on slice 2",
        ),
    ],
    ids=["no JSON", "no objects", "no prompt", "twice", "no state", "other shape", "outside", "too many points"],
)
async def test_refusals_name_their_reason(
    segmenter: Segmenter, asked: SegmenterRequest | bytes, error: type[MedvlError], sentence: str
):
    """And the next request is answered."""
    with pytest.raises(error, match=re.escape(sentence)):
        await segmenter.ask(asked, slices=segmenter.slices)
    events = await segmenter.ask(request("after", BOX), slices=segmenter.slices)
    assert isinstance(events[-1].said, SegmenterDone)


class Session:
    """A user who corrects one object click by click, on a series of its own."""

    def __init__(self, segmenter: Segmenter, series: str) -> None:
        self.segmenter = segmenter
        self.series = series
        self.slices = np.resize(segmenter.slices, (LONG, *segmenter.slices.shape[1:]))

    async def click(self, count: int, **changes: Any) -> tuple[ObjectMask, np.ndarray, SegmenterDone]:
        """Return the mask and the account after so many of the clicks."""
        clicks = tuple(
            PointPrompt(slice=n, row=20, column=column, positive=positive, correction=i)
            for i, (n, column, positive) in enumerate(((20, 30, True), (25, 5, False), (14, 33, True)))
        )
        earlier = changes.pop("earlier_sha256", None)
        prompts = ObjectPrompts(object_id=1, points=clicks[:count], earlier_sha256=earlier)
        asked = request(self.series, prompts, shape=(LONG, ROWS, COLUMNS), **changes)
        events = await self.segmenter.ask(asked, slices=self.slices)
        ((said, packed),) = [(e.said, e.mask) for e in events if isinstance(e.said, ObjectMask)]
        assert isinstance(said, ObjectMask)
        assert isinstance(events[-1].said, SegmenterDone)
        self.sha256 = hashlib.sha256(packed).hexdigest()
        return said, unpack_mask(packed, (LONG, ROWS, COLUMNS)), events[-1].said


async def test_a_correction_goes_on_from_what_is_known(segmenter: Segmenter):
    """The mask is that of a service which has never seen the object, at the cost of one more tracking."""
    step_by_step, at_once = Session(segmenter, "step by step"), Session(segmenter, "at once")
    found = [await step_by_step.click(count) for count in (1, 2, 3)]
    said, mask, spent = await at_once.click(3)
    assert np.array_equal(found[2][1], mask)
    assert found[2][0] == said
    assert said.key_slices == (20, 25, 14)
    assert not np.array_equal(found[0][1], found[1][1])
    assert found[2][2].track_ms < 0.7 * spent.track_ms


async def test_local_tracking_is_said_and_never_taken_for_exact(segmenter: Segmenter):
    """It needs the earlier answer; where the exact one is known, that is given."""
    session, exact = Session(segmenter, "local"), Session(segmenter, "exact")
    alone, _, _ = await session.click(2, local=True)
    assert not alone.local
    session = Session(segmenter, "local, then exact")
    await session.click(1)
    near, mask, _ = await session.click(2, local=True)
    assert near.local
    assert mask[25].any() == (near.slice_scores[25] > 0.5)
    again, same, _ = await session.click(2, local=True)
    assert again == near
    assert np.array_equal(same, mask)
    whole, other, _ = await session.click(2)
    assert not whole.local
    assert np.array_equal(other, (await exact.click(2))[1])
    assert not (await session.click(2, local=True))[0].local


async def test_what_has_changed_is_told_of_a_mask_that_is_known(segmenter: Segmenter):
    """The box of all differences from the mask that was named; of one that nobody knows nothing is told."""
    session = Session(segmenter, "changed")
    _, first, _ = await session.click(1)
    said, second, _ = await session.click(2, earlier_sha256=session.sha256)
    places = np.argwhere(first ^ second)
    assert said.changed is not None
    assert (said.changed.min, said.changed.max) == (tuple(places.min(0)), tuple(places.max(0)))
    assert (await session.click(2))[0].changed is None
    assert (await session.click(2, earlier_sha256="0" * 64))[0].changed is None
    elsewhere = Session(segmenter, "changed elsewhere")
    assert (await elsewhere.click(2, earlier_sha256=hashlib.sha256(pack_mask(first)).hexdigest()))[0].changed is None


async def test_a_caller_who_leaves_ends_the_work(segmenter: Segmenter):
    """It is counted, the series stays, and the next caller gets the mask of an undisturbed one.

    That one is asked for first, on a series of its own: had the work gone on, its answer would be kept by then.
    """
    depth = 60
    slices = np.resize(segmenter.slices, (depth, *segmenter.slices.shape[1:]))
    asked = request("leave", POINT, shape=(depth, ROWS, COLUMNS))
    before = segmenter.cancelled()
    inputs = {"request": np.frombuffer(asked.to_bytes(), np.uint8), "slices": slices}
    async with Triton(segmenter.server.endpoint, segmenter.server.config.key) as client:
        call = Call("test", asyncio.get_running_loop().time() + 60)
        async with aclosing(client.stream("volume_segmenter", inputs, call)) as responses:
            await anext(responses)
    async with asyncio.timeout(10):
        while segmenter.cancelled() == before:  # noqa: ASYNC110 - Prometheus offers nothing to wait on
            await asyncio.sleep(0.05)
    fresh = await segmenter.ask(asked.model_copy(update={"series": "leave, again"}), slices=slices)
    after = await segmenter.ask(asked)
    masks = [next(e.mask for e in events if isinstance(e.said, ObjectMask)) for events in (after, fresh)]
    assert masks[0] == masks[1]
    done = after[-1].said
    assert isinstance(done, SegmenterDone)
    assert 0 < done.slices_encoded < depth


async def test_the_server_outlives_refusals_and_series_that_it_does_not_have(segmenter: Segmenter):
    """Of calls that were cancelled when they had told it, it died after some ten to a thousand."""
    rounds, callers = 250, 8
    unknown = np.frombuffer(request("nobody has it", POINT).to_bytes(), np.uint8)
    wrong = np.frombuffer(b"{}", np.uint8)
    process = segmenter.server.process.pid

    async def call() -> None:
        for _ in range(rounds):
            soon = Call("test", asyncio.get_running_loop().time() + 60)
            async with aclosing(client.stream("volume_segmenter", {"request": unknown}, soon)) as responses:
                assert [parse_event(r["event"].tobytes()) async for r in responses] == [NotResident()]
            with pytest.raises(InvalidRequest):
                await anext(client.stream("volume_segmenter", {"request": wrong}, soon))

    async with (
        Triton(segmenter.server.endpoint, segmenter.server.config.key) as client,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(callers):
            group.create_task(call())
    assert segmenter.server.process.pid == process
