"""Segmentation by class, text, points and boxes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import grpc
import numpy as np
import pytest

from medvl.contracts.errors import Overloaded, SeriesTooLarge
from medvl.imaging.masks import pack_mask, unpack_mask
from medvl.orchestrator import segmentation
from medvl.orchestrator.config import AdmissionLimits
from medvl.wire.status import from_rpc_error
from medvl.wire.v1 import medvl_pb2 as pb

from .conftest import Series, Start, System, collect, kinds
from .fake_triton import seg_states


async def segment(system: System, series: Series, *objects: pb.ObjectPrompt, **fields) -> list[pb.Event]:
    await system.put(series)
    return await collect(system.stub.Segment(pb.SegmentRequest(series=series.digest, objects=objects, **fields)))


def masks(events: list[pb.Event]) -> list[pb.Mask]:
    return sorted((e.mask for e in events if e.HasField("mask")), key=lambda m: m.object)


def point(series: Series, *index: float, negative: bool = False, correction: int = 0) -> pb.Point:
    return pb.Point(lps_mm=series.lps(*index), negative=negative, correction=correction)


def box(series: Series, lower, upper) -> pb.Box:
    return pb.Box(min_lps_mm=series.lps(*lower), max_lps_mm=series.lps(*upper))


async def test_a_point_in_millimetres_meets_its_voxel(system: System, series: Series):
    """LPS becomes slice, row and column of the canonical grid; rows and columns keep their fractions."""
    events = await segment(system, series, pb.ObjectPrompt(points=[point(series, 5, 9.25, 3)]))
    (prompt,) = system.fake.seen.segmenter[-1].objects
    assert (prompt.points[0].slice, prompt.points[0].positive) == (5, True)
    assert (prompt.points[0].row, prompt.points[0].column) == pytest.approx((9.25, 3.0))
    (mask,) = masks(events)
    assert np.argwhere(unpack_mask(mask.packed, series.hu.shape))[0].tolist() == [5, 9, 3]
    assert mask.prompt == "1 point"
    assert list(mask.measurement.centroid_lps_mm) == pytest.approx(series.lps(5, 9, 3.5))
    assert (list(mask.measurement.box_min), list(mask.measurement.box_max)) == ([5, 9, 3], [5, 9, 4])


@pytest.mark.parametrize(("place", "of"), [(-0.4, 0), (5.4, 5), (5.6, 6), (7.4, 7)])
async def test_a_point_between_slices_is_one_of_the_nearest(system: System, series: Series, place: float, of: int):
    """Its row and column stay where they are."""
    await segment(system, series, pb.ObjectPrompt(points=[point(series, place, 9.25, 3)]))
    (prompt,) = system.fake.seen.segmenter[-1].objects
    assert prompt.points[0].slice == of
    assert (prompt.points[0].row, prompt.points[0].column) == pytest.approx((9.25, 3.0))


async def test_a_box_may_be_given_by_any_two_opposite_corners(system: System, series: Series):
    """Corners are sorted along the axes of the grid; the middle slice is prompted, the ends bound the mask."""
    await segment(system, series, pb.ObjectPrompt(boxes=[box(series, (6, 2, 8), (2, 10, 1))]))
    (prompt,) = system.fake.seen.segmenter[-1].objects[0].boxes
    assert (prompt.first_slice, prompt.slice, prompt.last_slice) == (2, 4, 6)
    assert (prompt.row_min, prompt.row_max, prompt.column_min, prompt.column_max) == pytest.approx((2, 10, 1, 8))


async def test_a_box_is_cut_to_the_volume(system: System, series: Series):
    """What lies outside is left out."""
    await segment(system, series, pb.ObjectPrompt(boxes=[box(series, (-5, -5, 3), (2, 40, 6))]))
    (prompt,) = system.fake.seen.segmenter[-1].objects[0].boxes
    assert (prompt.first_slice, prompt.last_slice) == (0, 2)
    assert (prompt.row_min, prompt.row_max) == pytest.approx((-0.5, 15.5))


async def test_a_box_on_one_slice_is_a_box(system: System, series: Series):
    """No thickness means one slice, not zero size."""
    await segment(system, series, pb.ObjectPrompt(boxes=[box(series, (3, 2, 2), (3, 5, 5))]))
    (prompt,) = system.fake.seen.segmenter[-1].objects[0].boxes
    assert (prompt.first_slice, prompt.last_slice) == (3, 3)


async def test_points_and_boxes_need_no_language_model(system: System, series: Series):
    """A click costs neither an encoding nor a token, and waits for nobody."""
    system.fake.language.close()
    events = await segment(system, series, pb.ObjectPrompt(points=[point(series, 1, 2, 3)]))
    assert kinds(events)[-2:] == ["progress", "done"]
    assert not system.fake.seen.volumes
    assert dict(events[-1].done.provenance.windows) == {"segmentation": "soft [-160, 240] HU"}


async def test_a_class_is_asked_for_in_the_checkpoints_words(system: System, series: Series):
    """The answer is forced; its one hidden state prompts the segmenter through the class's own window."""
    events = await segment(system, series, pb.ObjectPrompt(label="lung_left"))
    assert system.fake.seen.prompts == ["Segment the lung_left."]
    assert system.fake.seen.options[0].answer_template == "It is [SEG]."
    request = system.fake.seen.segmenter[-1]
    assert request.window_hu == (-1350.0, 150.0)
    assert (request.objects[0].seg_row, request.objects[0].points) == (0, ())
    (mask,) = masks(events)
    assert (mask.label, mask.prompt) == ("lung_left", "lung_left")


async def test_free_text_is_asked_for_as_it_stands(system: System, series: Series):
    """A description keeps its words and looks through the default window."""
    events = await segment(system, series, pb.ObjectPrompt(text="the big dark organ"))
    assert system.fake.seen.prompts == ["Segment: the big dark organ"]
    (mask,) = masks(events)
    assert (mask.label, mask.prompt) == ("", "the big dark organ")


async def test_objects_keep_their_order_and_share_requests_by_window(system: System, series: Series):
    """Mixed objects come back under their own numbers; what looks through one window is segmented together."""
    events = await segment(
        system,
        series,
        pb.ObjectPrompt(label="liver"),
        pb.ObjectPrompt(points=[point(series, 4, 5, 6), point(series, 4, 1, 1, negative=True)]),
        pb.ObjectPrompt(label="lung_left"),
        pb.ObjectPrompt(text="spine"),
    )
    assert [(m.object, m.label, m.prompt) for m in masks(events)] == [
        (0, "liver", "liver"),
        (1, "", "2 points"),
        (2, "lung_left", "lung_left"),
        (3, "", "spine"),
    ]
    by_objects = {tuple(o.object_id for o in r.objects): r.window_hu for r in system.fake.seen.segmenter}
    assert by_objects == {(1,): (-160.0, 240.0), (0, 3): (-160.0, 240.0), (2,): (-1350.0, 150.0)}
    assert events[-1].done.provenance.windows["segmentation"].count("HU") == 2


async def test_every_object_is_prompted_by_its_own_words(system: System, series: Series):
    """The state that the language model gives to one description never reaches another's row."""
    words = ["left kidney", "right kidney", "spine"]
    await segment(system, series, *(pb.ObjectPrompt(text=w) for w in words))
    request, states = system.fake.seen.segmenter[-1], system.fake.seen.states[-1]
    assert states is not None
    assert {o.object_id: o.seg_row for o in request.objects} == {0: 0, 1: 1, 2: 2}
    for row, w in enumerate(words):
        (own,) = seg_states(f"Segment: {w}", ["It is [SEG].".index("[SEG]")], states.shape[1])
        assert np.array_equal(states[row], own)


async def test_every_object_shows_its_own_mask(system: System, series: Series):
    """They travel end to end in one tensor, each cut out at its own bytes."""
    given = np.zeros((3, *series.hu.shape), bool)
    for i, mask in enumerate(given):
        mask[i + 1, i : i + 5, 2 : 6 + 2 * i] = True
    await segment(system, series, *(pb.ObjectPrompt(mask=pack_mask(m)) for m in given))
    sent = system.fake.seen.masks[-1]
    for asked in system.fake.seen.segmenter[-1].objects:
        assert asked.mask is not None
        own = sent[asked.mask.start : asked.mask.start + asked.mask.length]
        assert np.array_equal(unpack_mask(own, series.hu.shape), given[asked.object_id])


@pytest.mark.parametrize(("label", "window"), [("liver", (-160, 240)), ("lung_left", (-1350, 150))])
async def test_slices_are_seen_through_the_window_of_the_class(
    system: System, series: Series, label: str, window: tuple[int, int]
):
    """Slices of 16 x 12 fill 32 x 24 of 32 x 32: corners keep their values and their places, the rest is black."""
    await segment(system, series, pb.ObjectPrompt(label=label))
    (slices,) = system.fake.seen.slices
    low, high = window
    grey = np.rint(255.0 * (np.clip(series.hu, low, high) - float(low)) / (high - low))
    assert np.array_equal(slices[:, ::31, 0], grey[:, ::15, 0])
    assert np.array_equal(slices[:, ::31, 23], grey[:, ::15, 11])
    assert not slices[:, :, 24:].any()


async def test_a_mask_without_a_voxel_is_not_found(system: System, series: Series):
    """Whatever the segmenter says: nothing is measured and nothing delivered as an organ of no size."""
    system.fake.empty = True
    (mask,) = masks(await segment(system, series, pb.ObjectPrompt(label="liver")))
    assert (mask.found, mask.packed) == (False, b"")
    assert not mask.HasField("measurement")


async def test_words_and_clicks_are_one_object(system: System, series: Series):
    """A class with a correcting click and a mask goes to the segmenter as one object, with all three."""
    given = np.zeros(series.hu.shape, bool)
    given[2:4, 3:9, 5:7] = True
    prompt = pb.ObjectPrompt(label="liver", points=[point(series, 4, 1, 1, negative=True)], mask=pack_mask(given))
    (mask,) = masks(await segment(system, series, prompt))
    assert (mask.label, mask.prompt) == ("liver", "liver, 1 point, 1 mask")
    (asked,) = system.fake.seen.segmenter[-1].objects
    assert asked.seg_row == 0
    assert not asked.points[0].positive
    assert asked.mask is not None
    sent = system.fake.seen.masks[-1][asked.mask.start : asked.mask.start + asked.mask.length]
    assert np.array_equal(unpack_mask(sent, series.hu.shape), given)


async def test_corrections_keep_their_numbers(system: System, series: Series):
    """A negative click may stand alone there; it corrects what the first one found."""
    clicks = [point(series, 4, 5, 6), point(series, 2, 1, 1, negative=True, correction=1)]
    events = await segment(system, series, pb.ObjectPrompt(points=clicks))
    (prompt,) = system.fake.seen.segmenter[-1].objects
    assert [(p.slice, p.positive, p.correction) for p in prompt.points] == [(4, True, 0), (2, False, 1)]
    assert prompt.corrections == (1,)
    assert masks(events)[0].prompt == "2 points"


async def test_local_tracking_is_asked_for_and_said(system: System, series: Series):
    """By whom it was done is known to the segmenter alone."""
    prompt = pb.ObjectPrompt(points=[point(series, 1, 2, 3)])
    for local in (False, True):
        (mask,) = masks(await segment(system, series, prompt, local=local))
        assert mask.local == system.fake.seen.segmenter[-1].local == local


async def test_what_has_changed_comes_alone(system: System, series: Series):
    """The box of the differences and its voxels; what is measured is the whole mask."""
    named = bytes(range(32))
    prompt = pb.ObjectPrompt(points=[point(series, 5, 9, 3)], earlier_sha256=named)
    (mask,) = masks(await segment(system, series, prompt))
    assert system.fake.seen.segmenter[-1].objects[0].earlier_sha256 == named.hex()
    assert (list(mask.changed.min), list(mask.changed.max)) == ([5, 9, 3], [5, 9, 3])
    assert unpack_mask(mask.packed, (1, 1, 1)).all()
    assert mask.measurement.voxels == 2


async def test_a_cleanup_is_done_measured_and_said(system: System, series: Series):
    """The mask comes whole, also to who asked for what has changed."""
    system.fake.stray = True
    cleanup = pb.Cleanup(largest_component=True)
    prompt = pb.ObjectPrompt(points=[point(series, 5, 9, 3)], earlier_sha256=bytes(32))
    (mask,) = masks(await segment(system, series, prompt, cleanup=cleanup))
    assert (mask.cleaned.cleanup, mask.cleaned.removed_voxels, mask.cleaned.filled_voxels) == (cleanup, 1, 0)
    assert mask.measurement.voxels == np.count_nonzero(unpack_mask(mask.packed, series.hu.shape)) == 2
    assert not mask.HasField("changed")
    (plain,) = masks(await segment(system, series, pb.ObjectPrompt(points=[point(series, 5, 9, 3)])))
    assert plain.measurement.voxels == 3
    assert plain.measurement.diameter_3d_mm > plain.measurement.diameter_mm
    assert not plain.HasField("cleaned")


async def test_slices_are_sent_only_to_a_segmenter_that_lacks_them(system: System, series: Series):
    """First request: asked, then sent; second: asked only; after the segmenter forgot: sent again, unnoticed."""
    prompt = pb.ObjectPrompt(points=[point(series, 1, 2, 3)])
    for _ in range(2):
        assert len(masks(await segment(system, series, prompt))) == 1
    assert [s.shape for s in system.fake.seen.slices] == [(8, 32, 32)]
    system.fake.resident.clear()
    assert len(masks(await segment(system, series, prompt))) == 1
    assert [s.shape for s in system.fake.seen.slices] == [(8, 32, 32)] * 2


async def test_slices_that_fit_into_no_request_are_refused(system: System, series: Series, monkeypatch):
    """Before the segmenter is asked, which protobuf would keep from reading them."""
    monkeypatch.setattr(segmentation, "MAX_SLICES_BYTES", 8 * 32**2 - 1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await segment(system, series, pb.ObjectPrompt(points=[point(series, 1, 2, 3)]))
    assert type(error := from_rpc_error(caught.value)) is SeriesTooLarge
    assert str(error) == "The series has 8 slices: of this checkpoint the segmenter takes 7 at most."
    assert not system.fake.seen.segmenter


@dataclass
class Cold:
    """Requests on one series that the segmenter lacks."""

    system: System
    series: Series

    def begin(self, count: int) -> list[asyncio.Future[list[pb.Event]]]:
        return [asyncio.ensure_future(segment(self.system, self.series, self.prompt)) for _ in range(count)]

    async def asked(self, count: int) -> None:
        """Wait until the segmenter has been asked so many times."""
        async with asyncio.timeout(10):
            while len(self.system.fake.seen.segmenter) < count:  # noqa: ASYNC110 - a list has no events
                await asyncio.sleep(0.01)

    async def sent(self, count: int) -> None:
        """Wait until slices have been sent so many times."""
        async with asyncio.timeout(10):
            while self.sendings < count:  # noqa: ASYNC110 - a list has no events
                await asyncio.sleep(0.01)

    @property
    def prompt(self) -> pb.ObjectPrompt:
        return pb.ObjectPrompt(points=[point(self.series, 1, 2, 3)])

    @property
    def sendings(self) -> int:
        return len(self.system.fake.seen.slices)


@pytest.fixture
async def cold(system: System, series: Series) -> Cold:
    """Slices that are sent are held by a gate before they arrive."""
    await system.put(series)
    system.fake.arrival.close()
    return Cold(system, series)


async def test_requests_on_a_series_that_the_segmenter_lacks_send_its_slices_once(cold: Cold):
    """One sends them, the others wait and find them there, each with its own answer."""
    requests = cold.begin(4)
    await cold.asked(5)
    cold.system.fake.arrival.open()
    answers = await asyncio.gather(*requests)
    assert [len(masks(events)) for events in answers] == [1] * 4
    assert cold.sendings == 1


async def test_a_request_does_not_wait_for_slices_that_the_segmenter_holds(cold: Cold):
    """Whoever sends them may still be at it."""
    (sender,) = cold.begin(1)
    await cold.system.fake.arrival.held.wait()
    cold.system.fake.resident.add((cold.series.digest, (-160.0, 240.0)))
    (other,) = cold.begin(1)
    assert len(masks(await other)) == 1
    assert not sender.done()
    cold.system.fake.arrival.open()
    assert len(masks(await sender)) == 1


async def test_another_window_does_not_wait(cold: Cold):
    """Its slices are others."""
    (sender,) = cold.begin(1)
    await cold.system.fake.arrival.held.wait()
    other = asyncio.ensure_future(segment(cold.system, cold.series, pb.ObjectPrompt(label="lung_left")))
    await cold.sent(2)
    cold.system.fake.arrival.open()
    for request in (sender, other):
        assert len(masks(await request)) == 1


async def test_whoever_waited_for_slices_of_a_cancelled_request_sends_them(cold: Cold):
    """Its caller's leaving is nobody else's failure; of those that waited one sends."""
    call = cold.system.stub.Segment(pb.SegmentRequest(series=cold.series.digest, objects=[cold.prompt]))
    await cold.system.fake.arrival.held.wait()
    waiting = cold.begin(2)
    await cold.asked(4)
    call.cancel()
    await cold.system.fake.arrival.cancelled.wait()
    await cold.sent(2)
    cold.system.fake.arrival.open()
    for request in waiting:
        assert len(masks(await request)) == 1
    assert cold.sendings == 2


async def test_whoever_waited_for_slices_that_were_refused_sends_them(cold: Cold):
    """Each request hears of its own refusal only."""
    cold.system.fake.slices_error = Overloaded("No room.", retry_after_s=1.0)
    requests = cold.begin(3)
    await cold.asked(4)
    cold.system.fake.arrival.open()
    refused = await asyncio.gather(*requests, return_exceptions=True)
    assert all(isinstance(error, grpc.aio.AioRpcError) for error in refused)
    assert cold.sendings == 3
    cold.system.fake.slices_error = None
    assert len(masks(await cold.begin(1)[0])) == 1


async def test_slices_that_are_forgotten_at_once_are_sent_again(cold: Cold):
    """Between another's sending and one's own asking, too."""
    requests = cold.begin(2)
    await cold.asked(3)
    cold.system.fake.segmenter.close()
    cold.system.fake.arrival.open()
    await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
    cold.system.fake.resident.clear()
    cold.system.fake.segmenter.open()
    for request in requests:
        assert len(masks(await request)) == 1
    assert cold.sendings == 2


async def test_a_request_has_a_bounded_number_of_texts_at_work(start: Start, series: Series):
    """The next ones wait; every object has its mask."""
    system = await start(admission=AdmissionLimits(max_parts_per_request=2))
    system.fake.language_end.close()
    objects = [pb.ObjectPrompt(text=f"organ {i}") for i in range(4)]
    request = asyncio.ensure_future(segment(system, series, *objects))
    async with asyncio.timeout(10):
        while len(system.fake.seen.prompts) < 2:  # noqa: ASYNC110 - a list has no events
            await asyncio.sleep(0.01)
    system.fake.language_end.open()
    assert [(m.object, m.prompt) for m in masks(await request)] == [(i, f"organ {i}") for i in range(4)]
    assert system.fake.seen.at_work["llm"].most == 2


async def test_previews_are_sent_when_asked_for(system: System, series: Series):
    """The 2D mask of a prompted slice comes before its 3D mask, and not at all unasked."""
    prompt = pb.ObjectPrompt(points=[point(series, 1, 2, 3)])
    events = await segment(system, series, prompt, previews=True)
    assert kinds(events).index("preview") < kinds(events).index("mask")
    (preview,) = [e.preview for e in events if e.HasField("preview")]
    assert (preview.object, preview.slice, preview.score) == (0, 1, 0.5)
    assert np.argwhere(unpack_mask(preview.packed, (1, 16, 12))).tolist() == [[0, 1, 2]]
    assert "preview" not in kinds(await segment(system, series, prompt))


async def test_progress_counts_slices(system: System, series: Series):
    """Whoever waits sees how far the propagation is."""
    events = await segment(system, series, pb.ObjectPrompt(points=[point(series, 1, 2, 3)]))
    steps = [(e.progress.stage, e.progress.done, e.progress.total) for e in events if e.HasField("progress")]
    assert steps == [(pb.STAGE_SEGMENT, 1, 2), (pb.STAGE_SEGMENT, 2, 2)]
