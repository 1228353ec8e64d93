"""From prompts to masks in 3D: SAM2's propagation through a volume, over networks that run anywhere.

A text prompt first chooses its key slices by looking at every slice without memory; points, boxes and masks name
theirs. The prompted slices condition the tracking of their objects in both directions from the lowest of them, each
direction from a fresh state, so that neither the order of the directions nor an earlier request has an effect.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from medvl.contracts.checkpoint import SegmentationSpec
from medvl.network.key_slices import choose_key_slices, presence, slice_score
from medvl.network.memory_bank import MemoryBank
from medvl.network.prompts import ObjectPrompt, SlicePrompt
from medvl.network.steps import ArrayLike, Decoded, FeatureSource, Remembered, Steps

MAX_OBJECTS = 16
"""Objects that one call of a graph takes."""

F = TypeVar("F")
A = TypeVar("A", bound=ArrayLike)
A_contra = TypeVar("A_contra", bound=ArrayLike, contravariant=True)


class Listener(Protocol[A_contra]):
    """Whoever is told what propagation finds, as it finds it."""

    def prompted(self, object_id: int, number: int, mask_logits: A_contra, score: float) -> None:
        """Take the mask of a prompted slice, logits FP32 [f_4, f_4], before any tracking."""

    def worked_on(self, object_id: int, number: int, mask_logits: A_contra, presence: float) -> None:
        """Take the mask of a slice and how sure the network is that the object is on it, 0 to 1."""

    def progress(self, done: int, total: int) -> None:
        """Take how much of the work is done."""

    def ended(self, object_id: int, score: float, key_slices: Sequence[int], *, found: bool) -> None:
        """Learn that nothing more will come of an object."""


@dataclass
class _Work:
    """Slices to look at, and how many have been; what is not needed in the end counts as done."""

    listener: Listener[Any]
    total: int
    done: int = 0

    def add(self, slices: int) -> None:
        self.done += slices
        self.listener.progress(self.done, self.total)


@dataclass(frozen=True)
class _Placed:
    """An object and the slices on which it is prompted: those that a text chose, best first, then the others."""

    prompt: ObjectPrompt
    key_slices: tuple[int, ...]
    score: float
    """Of the best slice that a text was looked for on; 0 without a text."""


@dataclass
class _Group(Generic[A]):
    """Objects that are tracked together because the same slices prompt them, by given masks or otherwise."""

    key_slices: tuple[int, ...]
    """Ascending."""
    given: frozenset[int]
    members: list[_Placed]
    conditioning: dict[int, Remembered[A]] = field(default_factory=dict)


class Propagation(Generic[F, A]):
    """Segments the objects of one request.

    Parameters
    ----------
    steps
        The networks.
    source
        Features of the volume's slices.
    depth
        Slices of the volume.
    spec
        Rules of the checkpoint.
    listener
        Learns what is found.
    """

    def __init__(
        self,
        steps: Steps[F, A],
        source: FeatureSource[F],
        depth: int,
        spec: SegmentationSpec,
        listener: Listener[A],
    ) -> None:
        self._steps = steps
        self._source = source
        self._depth = depth
        self._spec = spec
        self._listener = listener

    async def run(self, prompts: Sequence[ObjectPrompt]) -> None:
        """Segment the objects; cancelling the task ends it at the next network call."""
        searched = sum(p.seg_hidden is not None for p in prompts)
        work = _Work(self._listener, self._depth * (searched + len(prompts)))
        groups = list(self._groups([await self._place(p, work) for p in prompts], work))
        for group in groups:
            await self._prompt(group)
        for group in groups:
            # Neither direction knows of the other, so that they can run side by side where the networks can.
            await _side_by_side(self._track(group, 1, work), self._track(group, -1, work))
            work.add(len(group.members))
            self._end(group)

    async def _place(self, prompt: ObjectPrompt, work: _Work) -> _Placed:
        named = sorted(prompt.points.keys() | prompt.masks.keys())
        if prompt.seg_hidden is None:
            return _Placed(prompt, tuple(named), 0.0)
        scores = [0.0] * self._depth
        allowed = [n for n in range(self._depth) if _within(prompt, n)]
        for start in range(0, len(allowed), MAX_OBJECTS):
            numbers = allowed[start : start + MAX_OBJECTS]
            features = await self._source.get(numbers)
            decoded = await self._steps.decode(features, [SlicePrompt(seg_hidden=prompt.seg_hidden)] * len(numbers))
            for number, score in zip(numbers, _scores(decoded), strict=True):
                scores[number] = score
            work.add(len(numbers))
        work.add(self._depth - len(allowed))
        chosen = choose_key_slices(scores, self._spec.key_slices)
        return _Placed(prompt, (*chosen, *(n for n in named if n not in chosen)), max(scores))

    def _groups(self, placed: Sequence[_Placed], work: _Work) -> Iterator[_Group[A]]:
        """Yield the objects by their key slices, as many as one call takes; those that are nowhere have ended."""
        together: dict[tuple[tuple[int, ...], frozenset[int]], list[_Placed]] = defaultdict(list)
        for one in placed:
            if one.key_slices:
                together[tuple(sorted(one.key_slices)), one.prompt.given_slices].append(one)
            else:
                self._listener.ended(one.prompt.object_id, one.score, (), found=False)
                work.add(self._depth)
        for (key_slices, given), members in together.items():
            for start in range(0, len(members), MAX_OBJECTS):
                yield _Group(key_slices, given, members[start : start + MAX_OBJECTS])

    async def _prompt(self, group: _Group[A]) -> None:
        """Know the objects of a group on the slices that prompt them."""
        prompts = [member.prompt for member in group.members]
        for number in group.key_slices:
            (features,) = await self._source.get([number])
            if number in group.given:
                remembered = await self._steps.given(features, [p.masks[number] for p in prompts])
            else:
                remembered = await self._decoded(number, features, prompts)
            self._tell(number, prompts, remembered.decoded)
            group.conditioning[number] = remembered

    async def _decoded(self, number: int, features: F, prompts: Sequence[ObjectPrompt]) -> Remembered[A]:
        """Decode the prompts of a slice, tell their masks at once, and remember them."""
        decoded = await self._steps.decode([features] * len(prompts), [p.on(number) for p in prompts])
        for row, (prompt, score) in enumerate(zip(prompts, _scores(decoded), strict=True)):
            self._listener.prompted(prompt.object_id, number, decoded.mask_logits[row][0], score)
        memory = await self._steps.remember(features, decoded.mask_logits, decoded.object_score)
        return Remembered(decoded, memory)

    async def _track(self, group: _Group[A], step: int, work: _Work) -> None:
        """Track a group in one direction until its objects have ended."""
        bank = MemoryBank(group.conditioning, self._depth, step, self._spec.max_conditioning_slices)
        active = [_Active(member.prompt) for member in group.members]
        first, last = group.key_slices[0], group.key_slices[-1]
        numbers = range(first + 1, self._depth) if step > 0 else range(first - 1, -1, -1)
        for number in numbers:
            if number in group.conditioning:
                work.add(len(group.members))
                continue
            going = [row for row, one in enumerate(active) if one.goes_to(number, step, self._spec.stop_after_absent)]
            if len(going) < len(active):
                work.add((len(active) - len(going)) * (abs(numbers.stop - number)))
                active = [active[row] for row in going]
                bank.keep(going)
            if not active:
                return
            (features,) = await self._source.get([number])
            remembered = await self._steps.track(features, bank.view(number))
            bank.add(number, remembered)
            self._tell(number, [one.prompt for one in active], remembered.decoded)
            for one, (score,) in zip(active, remembered.decoded.object_score.tolist(), strict=True):
                # Between prompted slices the object is known to come back.
                between = step > 0 and number < last
                one.absent = 0 if score > 0 or between else one.absent + 1
            work.add(len(active))

    def _tell(self, number: int, prompts: Sequence[ObjectPrompt], decoded: Decoded[A]) -> None:
        for row, (prompt, (score,)) in enumerate(zip(prompts, decoded.object_score.tolist(), strict=True)):
            if _within(prompt, number):
                self._listener.worked_on(prompt.object_id, number, decoded.mask_logits[row][0], presence(score))

    def _end(self, group: _Group[A]) -> None:
        scores = {number: _scores(r.decoded) for number, r in group.conditioning.items()}
        seen = {number: r.decoded.object_score.tolist() for number, r in group.conditioning.items()}
        for row, member in enumerate(group.members):
            best = max(scores[number][row] for number in group.key_slices)
            found = any(seen[number][row][0] > 0 for number in group.key_slices)
            self._listener.ended(member.prompt.object_id, best, member.key_slices, found=found)


@dataclass
class _Active:
    """An object that one direction still tracks."""

    prompt: ObjectPrompt
    absent: int = 0
    """Slices in a row without it."""

    def goes_to(self, number: int, step: int, stop_after_absent: int) -> bool:
        """Whether the object is tracked on a slice."""
        end = self.prompt.last_slice if step > 0 else self.prompt.first_slice
        beyond = end is not None and (number - end) * step > 0
        return not beyond and self.absent < stop_after_absent


async def _side_by_side(*work: Coroutine[Any, Any, None]) -> None:
    """Carry out all, or raise what failed first when nothing of it goes on any more."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _within(prompt: ObjectPrompt, number: int) -> bool:
    first, last = prompt.first_slice, prompt.last_slice
    return (first is None or first <= number) and (last is None or number <= last)


def _scores(decoded: Decoded[A]) -> list[float]:
    """Return the score of every object of one call."""
    pairs = zip(decoded.object_score.tolist(), decoded.iou.tolist(), strict=True)
    return [slice_score(score, iou) for (score,), (iou,) in pairs]
