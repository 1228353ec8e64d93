"""The rules of propagation, over networks that only repeat what they were told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import pytest

from medvl.contracts.checkpoint import KeySliceRule, ProposalRule, SegmentationSpec
from medvl.contracts.errors import InvalidRequest
from medvl.contracts.messages import MAX_POINTS
from medvl.contracts.models import ABSENT
from medvl.network.key_slices import choose_key_slices
from medvl.network.memory_bank import Known
from medvl.network.prompts import POSITIVE, ObjectPrompt, PromptPoint, SlicePrompt, prompt_arrays
from medvl.network.propagation import MAX_OBJECTS, Propagation
from medvl.network.proposals import FEATURES, ProposalScorer
from medvl.network.region_choice import Outline
from medvl.network.room import Room
from medvl.network.steps import Bank, Decoded, Remembered

DEPTH = 20
STOP = 3
RULE = KeySliceRule(max_slices=2, min_gap=4, min_score=0.5)


@dataclass
class Echo:
    """Steps whose features are slice numbers: an object is seen on exactly the slices of its ``presence``.

    An object's name is the x of its points or its [SEG] state, and travels in pointers and memories as a real
    network's knowledge of it would; a row that was mixed up answers for the wrong object.
    """

    presence: Mapping[int, Collection[int]]
    decoded: list[tuple[int, ...]] = field(default_factory=list)
    """Slices of every call of the mask decoder."""
    tracked: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    """Slice and objects of every call that tracks."""
    taken: list[int] = field(default_factory=list)
    """Slices whose masks somebody gave."""
    corrected: list[tuple[int, int, int]] = field(default_factory=list)
    """Slice, points and memories of every call that corrects."""
    expected: list[int] = field(default_factory=list)
    """Slices that were to be computed ahead."""
    faint: Collection[int] = ()
    """Slices on which nothing is seen well."""
    before_track: Callable[[int], None] = lambda number: None

    async def get(self, slices: Sequence[int]) -> Sequence[int]:
        return slices

    def expect(self, slices: Sequence[int]) -> None:
        self.expected += slices

    async def decode(self, features: Sequence[int], prompts: Sequence[SlicePrompt]) -> Decoded[np.ndarray]:
        self.decoded.append(tuple(features))
        return self._seen(features, [_name(p) for p in prompts])

    async def given(self, features: int, masks: Sequence[np.ndarray]) -> Remembered[np.ndarray]:
        self.taken.append(features)
        names = [int(mask.sum()) for mask in masks]
        decoded = self._seen([features] * len(names), names)
        return Remembered(decoded, decoded.mask_logits[:, 0, 1:, :])

    async def remember(self, features: int, mask_logits: np.ndarray, object_score: np.ndarray) -> np.ndarray:
        return mask_logits[:, 0, 1:, :]

    async def track(self, features: int, bank: Bank[np.ndarray]) -> Remembered[np.ndarray]:
        self.before_track(features)
        names = bank.pointers[0][:, 0] if bank.pointers else bank.memories[0][:, 0, 0]
        for memory in bank.memories:
            assert (memory[:, 0, 0] == names).all()
        for pointer in bank.pointers:
            assert (pointer[:, 0] == names).all()
        objects = tuple(int(n) for n in names)
        self.tracked.append((features, objects))
        decoded = self._seen([features] * len(objects), objects)
        return Remembered(decoded, decoded.mask_logits[:, 0, 1:, :])

    async def correct(
        self, features: int, bank: Bank[np.ndarray], points: Sequence[tuple[PromptPoint, ...]], mask_logits: np.ndarray
    ) -> Remembered[np.ndarray]:
        assert mask_logits[:, 0, 0, 0].tolist() == [features] * len(points)
        self.corrected.append((features, len(points[0]), len(bank.memories)))
        names = [int(own[0].x) for own in points]
        decoded = self._seen([features] * len(names), names)
        return Remembered(decoded, decoded.mask_logits[:, 0, 1:, :])

    def _seen(self, numbers: Sequence[int], names: Sequence[int]) -> Decoded[np.ndarray]:
        on = [number in self.presence[name] for number, name in zip(numbers, names, strict=True)]
        # The last pixel tells masks of present objects from those of absent ones.
        seen = [(n, name, name if there else -1) for n, name, there in zip(numbers, names, on, strict=True)]
        logits = [[[[number, name], [name, last]]] for number, name, last in seen]
        return Decoded(
            mask_logits=np.array(logits, np.float32),
            iou=np.array([[0.3 if number in self.faint else 0.9] for number in numbers], np.float32),
            object_pointer=np.array(names, np.float32)[:, None],
            object_score=np.where(on, 4.0, -4.0).astype(np.float32)[:, None],
        )


def _name(prompt: SlicePrompt) -> int:
    return int(prompt.points[0].x if prompt.seg_hidden is None else prompt.seg_hidden[0])


@dataclass
class Heard:
    """What propagation told."""

    slices: dict[int, list[int]] = field(default_factory=dict)
    """Slices of each object, in the order in which they were worked on."""
    on: dict[int, set[int]] = field(default_factory=dict)
    """Those of them on which it was present."""
    prompted_on: list[tuple[int, int]] = field(default_factory=list)
    work: list[tuple[int, int]] = field(default_factory=list)
    endings: dict[int, tuple[bool, tuple[int, ...], float]] = field(default_factory=dict)
    kept: dict[int, Known[np.ndarray]] = field(default_factory=dict)

    def prompted(self, object_id: int, number: int, mask_logits: np.ndarray, score: float) -> None:
        assert mask_logits[0].tolist() == [number, object_id]
        self.prompted_on.append((object_id, number))

    def worked_on(self, object_id: int, number: int, mask_logits: np.ndarray, presence: float) -> None:
        assert object_id not in self.endings
        assert mask_logits[0].tolist() == [number, object_id]
        self.slices.setdefault(object_id, []).append(number)
        if presence > 0.5:
            self.on.setdefault(object_id, set()).add(number)

    def progress(self, done: int, total: int) -> None:
        self.work.append((done, total))

    def ended(self, object_id: int, score: float, key_slices: Sequence[int], *, found: bool) -> None:
        assert object_id not in self.endings
        self.endings[object_id] = (found, tuple(key_slices), score)


def by_point(name: int, *numbers: int, first: int | None = None, last: int | None = None) -> ObjectPrompt:
    points = {number: (PromptPoint(float(name), 0.5, POSITIVE),) for number in numbers}
    return ObjectPrompt(name, points, first_slice=first, last_slice=last)


def by_text(name: int, *, first: int | None = None, last: int | None = None) -> ObjectPrompt:
    return ObjectPrompt(name, {}, np.full(4, name, np.float32), first, last)


def by_mask(name: int, *numbers: int) -> ObjectPrompt:
    mask = np.arange(64).reshape(8, 8) < name
    return ObjectPrompt(name, {}, masks=dict.fromkeys(numbers, mask))


@pytest.fixture
def spec(preset_spec: SegmentationSpec) -> SegmentationSpec:
    """Tracking that gives up after three slices without the object, and at most two key slices, four apart."""
    return preset_spec.model_copy(update={"stop_after_absent": STOP, "key_slices": RULE, "heed_clicks_px": None})


def propagated(
    steps: Echo,
    spec: SegmentationSpec,
    *prompts: ObjectPrompt,
    known: Mapping[int, Known[np.ndarray]] = MappingProxyType({}),
    kept_bytes: int = 2**20,
    local: Collection[int] = (),
) -> Heard:
    """Run to the end; whatever was found, progress only grows and ends where it said it would.

    No slice is computed ahead that is not tracked then.
    """
    heard = Heard()
    room = Room(kept_bytes)
    propagation = Propagation(steps, steps, DEPTH, spec, heard, room)
    asyncio.run(propagation.run(prompts, known, local, heard.kept.__setitem__))
    assert room.free_bytes == kept_bytes
    assert set(steps.expected) <= {number for number, _ in steps.tracked}
    done = [d for d, _ in heard.work]
    assert done == sorted(done)
    assert {total for _, total in heard.work} == {done[-1]}
    assert heard.endings.keys() == {p.object_id for p in prompts}
    assert all(len(set(numbers)) == len(numbers) for numbers in heard.slices.values())
    return heard


def test_both_directions_end_after_so_many_slices_without_the_object(spec: SegmentationSpec):
    """The slices of absence are worked on too: only they show that the object has ended."""
    steps = Echo({1: range(8, 12)})
    heard = propagated(steps, spec, by_point(1, 10))
    assert heard.slices[1] == [10, 11, 12, 13, 14, 9, 8, 7, 6, 5]
    assert heard.on[1] == set(range(8, 12))
    assert heard.endings[1] == (True, (10,), pytest.approx(0.9 / (1 + np.exp(-4))))


def test_slices_that_are_certain_to_be_tracked_are_computed_ahead(spec: SegmentationSpec):
    """While a slice is tracked the next two are, as far as the object can end no earlier than there."""
    steps = Echo({1: range(8, 12)})
    propagated(steps, spec, by_point(1, 10))
    assert set(steps.expected) == {5, 6, 7, 8, 12, 13, 14}
    assert sum(n for n in steps.expected if n > 10) == 12 + 13 + 13 + 14 + 14


def test_the_ends_of_the_volume_end_the_tracking(spec: SegmentationSpec):
    """An object that is everywhere is found on every slice, and no slice beyond is asked for."""
    heard = propagated(Echo({1: range(DEPTH)}), spec, by_point(1, DEPTH - 2))
    assert heard.on[1] == set(range(DEPTH))


def test_a_short_gap_is_bridged_in_both_directions(spec: SegmentationSpec):
    """An object that is away for fewer slices than end the tracking is found again."""
    seen = {2, 3, 6, 7, 10, 13, 14}
    heard = propagated(Echo({1: seen}), spec, by_point(1, 10))
    assert heard.on[1] == seen
    assert min(heard.slices[1]) == 0
    assert max(heard.slices[1]) == 14 + STOP


def test_absence_between_prompted_slices_does_not_end_the_tracking(spec: SegmentationSpec):
    """Somebody marked the object further up: it comes back, however long it stays away."""
    seen = {2, 3, 14, 15}
    steps = Echo({1: seen})
    heard = propagated(steps, spec, by_point(1, 3, 14))
    assert set(heard.slices[1]) == set(range(15 + STOP + 1))
    assert heard.on[1] == seen
    assert [n for n, _ in steps.tracked] == [*range(4, 14), 15, 16, 17, 18, 2, 1, 0]


def test_given_masks_are_taken_and_tracked_between_and_beyond(spec: SegmentationSpec):
    """Nothing decodes them; what lies between is filled."""
    steps = Echo({1: range(5, 14)})
    heard = propagated(steps, spec, by_mask(1, 6, 9))
    assert (steps.taken, steps.decoded, heard.prompted_on) == ([6, 9], [], [])
    assert heard.on[1] == set(range(5, 14))
    assert heard.endings[1][:2] == (True, (6, 9))


def test_a_click_on_a_given_mask_corrects_it(spec: SegmentationSpec):
    """There the decoder is asked, with the mask; the other slices stay as they were given."""
    mask = np.ones((8, 8), bool)
    prompt = ObjectPrompt(1, by_point(1, 9).points, masks={6: mask[:1, :1], 9: mask})
    steps = Echo({1: range(5, 14)})
    heard = propagated(steps, spec, prompt)
    assert (steps.taken, steps.decoded, heard.prompted_on) == ([6], [(9,)], [(1, 9)])
    arrays = prompt_arrays([prompt.on(9), SlicePrompt()], side=8, hidden_size=4)
    assert arrays["mask_flag"].tolist() == [[1.0], [0.0]]
    assert (arrays["mask_input"][0] == 10.0).all()


def test_words_choose_slices_beside_those_of_clicks(spec: SegmentationSpec):
    """Best first, then what was clicked; where words find nothing, the clicks stand alone."""
    state = np.full(4, 1.0, np.float32)
    steps = Echo({1: range(8, 12), 2: ()})
    heard = propagated(steps, spec, ObjectPrompt(1, by_point(1, 15).points, state))
    assert heard.endings[1][1] == (8, 15)
    nowhere = propagated(Echo({2: ()}), spec, ObjectPrompt(2, by_point(2, 15).points, np.full(4, 2.0, np.float32)))
    assert nowhere.endings[2][:2] == (False, (15,))


def test_a_box_with_an_extent_is_not_left(spec: SegmentationSpec):
    """Neither by what is told nor by what is computed."""
    steps = Echo({1: range(DEPTH)})
    heard = propagated(steps, spec, by_point(1, 9, first=7, last=12))
    assert heard.slices[1] == [9, 10, 11, 12, 8, 7]
    assert {n for n, _ in steps.tracked} == {7, 8, 10, 11, 12}


def test_a_prompted_slice_without_the_object_is_told_as_such(spec: SegmentationSpec):
    """The prompt is kept as the key slice, and the object is not found there nor anywhere."""
    heard = propagated(Echo({1: ()}), spec, by_point(1, 10))
    found, key_slices, score = heard.endings[1]
    assert (found, key_slices) == (False, (10,))
    assert score < 0.05
    assert 1 not in heard.on


def test_a_text_chooses_its_key_slices(spec: SegmentationSpec):
    """Every slice is looked at once, in calls of as many as a graph takes; the best are told first."""
    steps = Echo({2: range(6, 13)})
    heard = propagated(steps, spec, by_text(2))
    assert steps.decoded[:2] == [tuple(range(MAX_OBJECTS)), tuple(range(MAX_OBJECTS, DEPTH))]
    assert heard.endings[2][:2] == (True, (6, 10))
    assert heard.prompted_on == [(2, 6), (2, 10)]
    assert heard.on[2] == set(range(6, 13))


def test_a_text_looks_only_where_it_is_told_to(spec: SegmentationSpec):
    """An extent bounds the search as it bounds the tracking."""
    steps = Echo({2: range(DEPTH)})
    heard = propagated(steps, spec, by_text(2, first=11, last=15))
    assert steps.decoded[0] == tuple(range(11, 16))
    assert set(heard.slices[2]) == set(range(11, 16))


def test_a_text_that_is_nowhere_is_not_found_and_not_tracked(spec: SegmentationSpec):
    """It costs one look at every slice, and objects beside it are not disturbed."""
    steps = Echo({1: range(DEPTH), 2: ()})
    heard = propagated(steps, spec, by_text(2), by_point(1, 4))
    found, key_slices, score = heard.endings[2]
    assert (found, key_slices) == (False, ())
    assert score < RULE.min_score
    assert 2 not in heard.slices
    assert all(objects == (1,) for _, objects in steps.tracked)


def test_objects_of_the_same_slices_share_calls_and_leave_one_by_one(spec: SegmentationSpec):
    """Whoever stays is not disturbed by who leaves: every row still answers for its own object."""
    seen: dict[int, Collection[int]] = {1: range(9, 12), 2: range(4, 19), 3: range(10, 14)}
    steps = Echo(seen)
    heard = propagated(steps, spec, by_point(1, 10), by_point(2, 10), by_point(3, 10))
    for name, numbers in seen.items():
        assert heard.on[name] == set(numbers)
    assert dict(steps.tracked)[11] == (1, 2, 3)
    assert dict(steps.tracked)[15] == (2, 3)
    assert dict(steps.tracked)[17] == (2,)
    assert [n for n, _ in steps.tracked] == [*range(11, DEPTH), *range(9, 0, -1)]


def test_more_objects_than_a_call_takes_are_split(spec: SegmentationSpec):
    """Each of them is tracked as if it were alone."""
    names = range(1, MAX_OBJECTS + 4)
    steps = Echo(dict.fromkeys(names, range(9, 12)))
    heard = propagated(steps, spec, *(by_point(name, 10) for name in names))
    assert {len(objects) for _, objects in steps.tracked} == {MAX_OBJECTS, 3}
    assert all(heard.on[name] == {9, 10, 11} for name in names)


def corrected(prompt: ObjectPrompt, *slices: Sequence[int]) -> ObjectPrompt:
    click = (PromptPoint(float(prompt.object_id), 0.5, POSITIVE),)
    return replace(prompt, corrections=tuple(dict.fromkeys(numbers, click) for numbers in slices))


def test_a_correction_goes_on_from_what_was_tracked(spec: SegmentationSpec):
    """Tracked slices are corrected with their memories, others prompted; only what is found last is told."""
    steps = Echo({1: range(6, 15)})
    heard = propagated(steps, spec, corrected(by_point(1, 10), (12,), (12, 19)))
    assert steps.decoded == [(10,), (19,)]
    # The prompted slice and those passed since; then both prompted slices, one of them itself, and that in between.
    assert steps.corrected == [(12, 1, 2), (12, 2, 3)]
    assert heard.prompted_on == [(1, 12), (1, 19)]
    assert heard.endings[1][:2] == (True, (10, 12, 19))
    assert heard.on[1] == set(range(6, 15))
    assert set(heard.slices[1]) == set(range(3, DEPTH))


def test_a_correction_costs_one_more_tracking(spec: SegmentationSpec):
    """Where an earlier run has kept what it found; otherwise everything is done again, to the same end."""
    steps, prompt = Echo({1: range(DEPTH)}), corrected(by_point(1, 10), (12,), (3,), (17,))
    before = propagated(steps, spec, replace(prompt, corrections=prompt.corrections[:2]))
    steps.tracked.clear()
    steps.expected.clear()
    again = propagated(steps, spec, prompt, known=before.kept)
    assert len(steps.tracked) == DEPTH - 4
    steps.tracked.clear()
    steps.expected.clear()
    whole = propagated(steps, spec, prompt)
    assert len(steps.tracked) == 4 * DEPTH - (1 + 2 + 3 + 4)
    assert (again.slices[1], again.endings) == (whole.slices[1], whole.endings)
    assert again.kept[1].conditioning.keys() == whole.kept[1].conditioning.keys() == {3, 10, 12, 17}


def test_nothing_is_kept_beyond_its_bound(spec: SegmentationSpec):
    """An object that does not fit is not kept at all, and leaves its room to others; answers do not change."""
    steps = Echo({1: range(DEPTH), 2: range(8, 12)})
    free, short = (
        propagated(steps, spec, by_point(1, 10), by_point(2, 9), kept_bytes=room) for room in (2**20, 15 * 36)
    )
    assert free.kept.keys() == {1, 2}
    assert short.kept.keys() == {2}
    assert free.slices == short.slices
    each = {r.nbytes for r in free.kept[1].tracked.values()}
    assert each == {36}


def test_an_object_that_is_corrected_is_tracked_alone(spec: SegmentationSpec):
    """Its rounds are its own; the others share their calls as before."""
    seen: dict[int, Collection[int]] = {1: range(9, 12), 2: range(4, 19), 3: range(10, 14)}
    steps = Echo(seen)
    heard = propagated(steps, spec, by_point(1, 10), corrected(by_point(2, 10), (11,)), by_point(3, 10))
    assert {objects for _, objects in steps.tracked} == {(1, 3), (1,), (3,), (2,)}
    for name, numbers in seen.items():
        assert heard.on[name] == set(numbers)


def test_local_tracking_ends_where_nothing_changes(spec: SegmentationSpec):
    """After three slices that agree, in both directions; what was known of the others is told again."""
    steps, prompt = Echo({1: range(DEPTH)}), by_point(1, 10)
    before = propagated(steps, spec, prompt)
    steps.tracked.clear()
    steps.expected.clear()
    heard = propagated(steps, spec, corrected(prompt, (12,)), known=before.kept, local={1})
    assert sorted(n for n, _ in steps.tracked) == [8, 9, 11, 13, 14, 15]
    assert set(heard.slices[1]) == set(range(DEPTH))
    assert heard.kept[1].tracked.keys() == set(range(DEPTH)) - {10, 12}


def test_local_tracking_attends_to_its_own_direction(spec: SegmentationSpec):
    """To what that direction has tracked, as an exact correction does; the other one's states are another's."""

    @dataclass
    class Counting(Echo):
        memories: dict[int, int] = field(default_factory=dict)

        async def track(self, features: int, bank: Bank[np.ndarray]) -> Remembered[np.ndarray]:
            self.memories[features] = len(bank.memories)
            return await super().track(features, bank)

    steps, prompt = Counting({1: range(DEPTH)}), by_point(1, 10)
    before = propagated(steps, spec, prompt)
    steps.memories.clear()
    propagated(steps, spec, corrected(prompt, (14,)), known=before.kept, local={1})
    # Both prompted slices, and 11 to 13 for the one that goes up; nothing yet for the one that goes down.
    assert (steps.memories[15], steps.memories[13]) == (2 + 3, 2)


def test_local_tracking_goes_on_while_masks_change(spec: SegmentationSpec):
    """And leaves nothing of an object beyond where it ends now."""
    before = propagated(Echo({1: range(DEPTH)}), spec, by_point(1, 10))
    steps = Echo({1: range(6, 14)})
    heard = propagated(steps, spec, corrected(by_point(1, 10), (12,)), known=before.kept, local={1})
    assert heard.on[1] & set(range(11, DEPTH)) == {11, 12, 13}
    assert max(heard.slices[1]) == 13 + STOP


def test_local_tracking_needs_what_was_before(spec: SegmentationSpec):
    """Where only an earlier correction is known, the last one is tracked as ever."""
    steps, prompt = Echo({1: range(DEPTH)}), by_point(1, 10)
    before = propagated(steps, spec, prompt)
    exact = propagated(steps, spec, corrected(prompt, (12,), (4,)), known=before.kept)
    local = propagated(steps, spec, corrected(prompt, (12,), (4,)), known=before.kept, local={1})
    assert local.slices == exact.slices


def test_clicks_correct_words_that_found_nothing(spec: SegmentationSpec):
    """Nothing has been tracked, so that they tell the object as if they had come first."""
    state = np.full(4, 1.0, np.float32)
    steps = Echo({1: ()})
    heard = propagated(steps, spec, corrected(ObjectPrompt(1, {}, state), (15,)))
    assert steps.decoded[2:] == [(15,)]
    assert heard.endings[1][:2] == (False, (15,))


def test_a_given_mask_that_is_corrected_is_not_kept_as_it_was(spec: SegmentationSpec):
    """The other slices are."""
    prompt = corrected(by_mask(1, 6, 9), (9,))
    steps = Echo({1: range(5, 14)})
    propagated(steps, spec, prompt)
    assert steps.taken == [6, 9]
    assert [number for number, *_ in steps.corrected] == [9]
    assert (prompt.given_slices, prompt.kept_slices) == ({6, 9}, {6})


def test_what_was_prompted_is_told_before_anything_is_tracked(spec: SegmentationSpec):
    """The first mask of every object comes early, also where they are tracked one after the other."""
    heard: list[int] = []
    steps = Echo({1: range(DEPTH), 2: range(DEPTH)}, before_track=lambda n: heard.append(len(steps.decoded)))
    propagated(steps, spec, by_point(1, 5), by_point(2, 12))
    assert heard[0] == 2


def test_cancelling_ends_at_the_next_call(spec: SegmentationSpec):
    """A caller who leaves is not tracked for: no call follows the one that was under way."""

    async def run() -> Echo:
        def leave(number: int) -> None:
            if number == 12:
                task.cancel()

        steps = Echo({1: range(DEPTH)}, before_track=leave)
        task = asyncio.create_task(Propagation(_Yielding(steps), steps, DEPTH, spec, Heard()).run([by_point(1, 10)]))
        with pytest.raises(asyncio.CancelledError):
            await task
        return steps

    assert [n for n, _ in asyncio.run(run()).tracked] == [11, 9, 12]


def test_what_has_ended_stays_when_the_rest_is_cancelled(spec: SegmentationSpec):
    """Each object is kept as it ends; what one that is cancelled has taken of the room is free again."""
    room, kept = Room(2**20), dict[int, Known[np.ndarray]]()

    async def run() -> Heard:
        def leave(number: int) -> None:
            if number == 6 and 1 in heard.endings:
                task.cancel()

        heard, steps = Heard(), Echo({1: range(DEPTH), 2: range(DEPTH)}, before_track=leave)
        propagation = Propagation(_Yielding(steps), steps, DEPTH, spec, heard, room)
        task = asyncio.create_task(propagation.run([by_point(1, 10), by_point(2, 5)], keep=kept.__setitem__))
        with pytest.raises(asyncio.CancelledError):
            await task
        return heard

    assert asyncio.run(run()).endings.keys() == kept.keys() == {1}
    assert kept[1].tracked.keys() == set(range(DEPTH)) - {10}
    assert room.free_bytes == 2**20


def test_requests_side_by_side_share_one_room(spec: SegmentationSpec):
    """Two of which either alone would be kept do not take twice as much together."""
    steps = Echo({1: range(DEPTH), 2: range(DEPTH)})
    needed = (DEPTH - 1) * 36
    room, kept = Room(needed + needed // 2), dict[int, Known[np.ndarray]]()

    async def run() -> None:
        requests = (
            Propagation(_Yielding(steps), steps, DEPTH, spec, Heard(), room).run(
                [by_point(name, 10)], keep=kept.__setitem__
            )
            for name in (1, 2)
        )
        await asyncio.gather(*requests)

    asyncio.run(run())
    assert len(kept) == 1
    assert room.free_bytes == needed + needed // 2


@dataclass
class _Yielding:
    """Steps that wait for somebody else, as those of a server do."""

    steps: Echo

    async def decode(self, features: Sequence[int], prompts: Sequence[SlicePrompt]) -> Decoded[np.ndarray]:
        await asyncio.sleep(0)
        return await self.steps.decode(features, prompts)

    async def given(self, features: int, masks: Sequence[np.ndarray]) -> Remembered[np.ndarray]:
        return await self.steps.given(features, masks)

    async def correct(
        self, features: int, bank: Bank[np.ndarray], points: Sequence[tuple[PromptPoint, ...]], mask_logits: np.ndarray
    ) -> Remembered[np.ndarray]:
        return await self.steps.correct(features, bank, points, mask_logits)

    async def remember(self, features: int, mask_logits: np.ndarray, object_score: np.ndarray) -> np.ndarray:
        await asyncio.sleep(0)
        return await self.steps.remember(features, mask_logits, object_score)

    async def track(self, features: int, bank: Bank[np.ndarray]) -> Remembered[np.ndarray]:
        remembered = await self.steps.track(features, bank)
        await asyncio.sleep(0)
        return remembered


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ([0.1, 0.4, 0.2], ()),
        ([0.1, 0.6, 0.6], (1,)),
        ([0.6, 0.7, 0.9, 0.8, 0.7, 0.6, 0.55], (2, 6)),
        ([0.9, 0.1, 0.1, 0.1, 0.8, 0.1, 0.1, 0.1, 0.85], (0, 8)),
        ([], ()),
    ],
    ids=["nowhere", "a tie", "neighbours are too near", "two at most", "no slices"],
)
def test_key_slices(scores: list[float], chosen: tuple[int, ...]):
    """The best slices by score, so far apart and so many as the rule says, in order of their numbers."""
    assert choose_key_slices(scores, RULE) == chosen


def telling_apart(feature: str, weight: float) -> ProposalScorer:
    """Return what chooses by one feature alone, whatever the state."""
    bias = np.zeros(len(FEATURES), np.float32)
    bias[FEATURES.index(feature)] = weight
    rule = ProposalRule(min_score=0.1, min_share=0.1)
    return ProposalScorer(np.zeros((len(FEATURES), 4), np.float32), bias, rule)


@pytest.mark.parametrize(("wanted", "key_slices"), [(-1.0, (2, 6)), (1.0, (14,))])
def test_a_text_is_prompted_where_what_it_means_is(spec: SegmentationSpec, wanted: float, key_slices: tuple[int, ...]):
    """Of two things its key slices are all of the one that is meant: here the lower and larger, or the upper one."""
    steps, heard = Echo({1: [*range(2, 8), *range(14, 16)]}), Heard()
    scorer = telling_apart("centre_slice", wanted)
    asyncio.run(Propagation(steps, steps, DEPTH, spec, heard, scorer=scorer).run([by_text(1)]))
    assert heard.endings[1][:2] == (True, key_slices)


def test_what_is_meant_may_be_seen_less_well_than_something_else(spec: SegmentationSpec):
    """Whether there is anything is told by the best slice of all; then the best one of what is meant is prompted."""
    steps = Echo({1: [*range(2, 6), *range(14, 16)]}, faint=range(10, DEPTH))
    for scorer, key_slices in ((None, (2,)), (telling_apart("centre_slice", 1.0), (14,))):
        heard = Heard()
        asyncio.run(Propagation(steps, steps, DEPTH, spec, heard, scorer=scorer).run([by_text(1)]))
        assert heard.endings[1][:2] == (True, key_slices)


def test_what_a_text_means_is_not_tracked_into_another(spec: SegmentationSpec):
    """Not before somebody corrects it: a click may say that both are one."""
    steps = Echo({1: [*range(2, 8), *range(9, 16)]})
    scorer = telling_apart("centre_slice", 1.0)
    corrected = replace(by_text(1), corrections=({12: (PromptPoint(1.0, 0.5, POSITIVE),)},))
    for prompt, lowest in ((by_text(1), 8), (corrected, 0)):
        heard = Heard()
        asyncio.run(Propagation(steps, steps, DEPTH, spec, heard, Room(2**20), scorer=scorer).run([prompt]))
        assert min(heard.slices[1]) == lowest


def test_nothing_is_meant_where_nothing_is_seen_well(spec: SegmentationSpec):
    """Proposals choose what is prompted, not whether there is anything."""
    steps, heard = Echo({1: range(2, 6)}, faint=range(DEPTH)), Heard()
    scorer = telling_apart("centre_slice", 1.0)
    asyncio.run(Propagation(steps, steps, DEPTH, spec, heard, scorer=scorer).run([by_text(1)]))
    assert heard.endings[1][:2] == (False, ())


@dataclass
class Drawn(Heard):
    """What propagation told of objects whose names are not those of what they look like."""

    masks: dict[int, np.ndarray] = field(default_factory=dict)

    def prompted(self, object_id: int, number: int, mask_logits: np.ndarray, score: float) -> None:
        self.prompted_on.append((object_id, number))

    def worked_on(self, object_id: int, number: int, mask_logits: np.ndarray, presence: float) -> None:
        self.masks[number] = mask_logits


WORDS, BOX, MIDDLE = 5, 1, 3
"""What an echo sees of the words of a text, of the box of a region and of its middle."""


REGION = Outline(np.array([10.5, 0.0, MIDDLE]), np.array([2.0, 4.0, MIDDLE - BOX]), reach=1.5)
"""About slice 10; of the four cells of an echo, on slices of eight pixels, its disc has the first."""


def found_by_text(spec: SegmentationSpec, steps: Echo, outline: Outline | None, prompt: ObjectPrompt) -> Drawn:
    spec, heard = spec.model_copy(update={"side": 8}), Drawn()
    outlined = Propagation(steps, steps, DEPTH, spec, heard, Room(2**20), outlined=lambda state: outline)
    asyncio.run(outlined.run([prompt]))
    return heard


@pytest.mark.parametrize("words", [range(2, 6), range(0)], ids=["words show another place", "words show nothing"])
def test_a_text_is_prompted_where_the_region_lies_that_it_means(spec: SegmentationSpec, words: range):
    """On the slice that shows it best; its mask ends where it cannot reach."""
    steps = Echo({WORDS: words, BOX: range(3, 18), MIDDLE: range(0)})
    heard = found_by_text(spec, steps, REGION, by_text(WORDS))
    found, (key_slice,), _ = heard.endings[WORDS]
    assert found
    assert key_slice in range(9, 12)
    assert set(heard.masks) == set(range(6, 15)), "one and a half half extents from its middle, and one slice more"
    assert heard.masks[10].tolist() == [[10, BOX], [BOX, BOX]]
    assert (heard.masks[6] == ABSENT).all()
    assert heard.work[-1] == (2 * DEPTH, 2 * DEPTH)


def test_the_words_themselves_may_show_a_region_best(spec: SegmentationSpec):
    """What they show there is asked for like its box and its middle."""
    steps = Echo({WORDS: range(8, 13), BOX: range(0), MIDDLE: range(0)})
    heard = found_by_text(spec, steps, REGION, by_text(WORDS))
    assert heard.endings[WORDS][0]
    assert heard.masks[10][0].tolist() == [10, WORDS]


def test_a_region_of_which_nothing_is_seen_is_none(spec: SegmentationSpec):
    """The words choose their key slices as without it."""
    steps = Echo({WORDS: range(2, 6), BOX: range(0), MIDDLE: range(0)})
    for outline in (REGION, None):
        heard = found_by_text(spec, steps, outline, by_text(WORDS))
        assert heard.endings[WORDS][:2] == (True, (2,))


def test_who_points_at_something_needs_no_region(spec: SegmentationSpec):
    """Points beside a text tell where it is; so do first and last slices that a region does not touch."""
    steps = Echo({WORDS: range(2, 6), BOX: range(3, 18), MIDDLE: range(0)})
    pointed = replace(by_text(WORDS), points={3: (PromptPoint(float(WORDS), 0.5, POSITIVE),)})
    bounded = replace(by_text(WORDS), last_slice=6)
    for prompt in (pointed, bounded):
        heard = found_by_text(spec, steps, REGION, prompt)
        assert max(heard.endings[WORDS][1]) <= 3


def test_a_correction_frees_an_object_from_its_region(spec: SegmentationSpec):
    """Whoever corrects it may say that it reaches further."""
    steps = Echo({WORDS: range(2, 6), BOX: range(3, 18), MIDDLE: range(0)})
    corrected = replace(by_text(WORDS), corrections=({12: (PromptPoint(float(BOX), 0.5, POSITIVE),)},))
    heard = found_by_text(spec, steps, REGION, corrected)
    assert min(heard.masks) < 7
    assert max(heard.masks) > 13


@pytest.mark.parametrize("local", [False, True])
def test_what_is_known_of_a_region_is_what_was_told(spec: SegmentationSpec, *, local: bool):
    """A click corrects the mask that its user saw, and where tracking stays local the rest of that mask stays."""
    spec = spec.model_copy(update={"side": 8})
    steps = Echo({WORDS: range(2, 6), BOX: range(3, 18), MIDDLE: range(0)})
    outline = replace(REGION, half=np.array([4.0, 4.0, 2.0]))
    told, kept = Drawn(), {}
    first = Propagation(steps, steps, DEPTH, spec, told, Room(2**20), outlined=lambda state: outline)
    asyncio.run(first.run([by_text(WORDS)], keep=kept.__setitem__))
    known = kept[WORDS]
    assert {n: known.on(n).decoded.mask_logits[0, 0].tolist() for n in told.masks} == {
        n: mask.tolist() for n, mask in told.masks.items()
    }
    corrected = replace(by_text(WORDS), corrections=({10: (PromptPoint(float(BOX), 0.5, POSITIVE),)},))
    again = Drawn()
    second = Propagation(steps, steps, DEPTH, spec, again, Room(2**20), outlined=lambda state: outline)
    asyncio.run(second.run([corrected], kept, local=[WORDS] if local else ()))
    assert (told.masks[4] == ABSENT).any()
    assert (again.masks[4] == ABSENT).any() == local


def test_a_slice_has_only_so_many_points():
    """As many as the graphs take; one more is refused with a sentence."""
    point = PromptPoint(1.0, 1.0, POSITIVE)
    arrays = prompt_arrays([SlicePrompt((point,) * MAX_POINTS)], side=32, hidden_size=4)
    assert arrays["points"].shape == (1, MAX_POINTS, 2)
    with pytest.raises(InvalidRequest, match=f"{MAX_POINTS + 1} points on one slice"):
        prompt_arrays([SlicePrompt((point,) * (MAX_POINTS + 1))], side=32, hidden_size=4)
