"""From prompts to masks in 3D: SAM2's propagation through a volume, over networks that run anywhere.

A text prompt first chooses its key slices by looking at every slice without memory; points, boxes and masks name
theirs. The prompted slices condition the tracking of their objects in both directions from the lowest of them, each
direction from a fresh state, so that neither the order of the directions nor an earlier request has an effect.

A correction goes on from there as SAM2's video predictor does: a slice that has been tracked or prompted before is
decoded with its memories and its last mask, any other as a prompted one; then it conditions the tracking, too, and
both directions track again, each from a fresh state. So a list of prompts means the same whoever replays it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

from medvl.contracts.checkpoint import SegmentationSpec
from medvl.network.key_slices import choose_key_slices, presence, slice_score
from medvl.network.memory_bank import POINTERS, Known, MemoryBank
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

    @property
    def together(self) -> tuple[object, ...]:
        """What it has in common with the objects that it can be tracked with; one to be corrected is alone."""
        alone = (self.prompt.object_id,) if self.prompt.corrections else ()
        return tuple(sorted(self.key_slices)), self.prompt.given_slices, alone


@dataclass
class _Group(Generic[A]):
    """Objects that are tracked together because the same slices prompt them, by given masks or otherwise."""

    members: list[_Placed]
    conditioning: dict[int, Remembered[A]]
    corrections: int = 0
    """How many of them are in ``conditioning``."""

    @property
    def final(self) -> bool:
        """Whether nothing is left to correct, so that what is found now is told."""
        return all(self.corrections == len(member.prompt.corrections) for member in self.members)

    def keeps(self, number: int) -> bool:
        """Whether the next correction attends to a slice."""
        coming = self.members[0].prompt.corrections[self.corrections :][:1]
        return any(abs(number - other) < POINTERS for slices in coming for other in slices)


@dataclass
class _Kept(Generic[A]):
    """Tracked slices of one object that a correction may attend to."""

    slices: dict[int, Remembered[A]] = field(default_factory=dict)
    whole: bool = True
    """Whether there was room for all that may be asked for."""


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
    kept_bytes
        What is kept of all objects together for corrections by later requests.
    """

    def __init__(  # noqa: PLR0917 - what it works on, who listens, and one bound
        self,
        steps: Steps[F, A],
        source: FeatureSource[F],
        depth: int,
        spec: SegmentationSpec,
        listener: Listener[A],
        kept_bytes: int = 0,
    ) -> None:
        self._steps = steps
        self._source = source
        self._depth = depth
        self._spec = spec
        self._listener = listener
        self._room_bytes = kept_bytes

    async def run(
        self, prompts: Sequence[ObjectPrompt], known: Mapping[int, Known[A]] = MappingProxyType({})
    ) -> dict[int, Known[A]]:
        """Segment the objects; cancelling the task ends it at the next network call.

        Parameters
        ----------
        prompts
            All prompts of each object.
        known
            What an earlier run returned for an object with fewer corrections: it goes on from there.

        Returns
        -------
        dict[int, Known]
            What further corrections can go on from, by object; without those that found no room.
        """
        fresh = [p for p in prompts if p.object_id not in known]
        searched = sum(p.seg_hidden is not None for p in fresh)
        propagated = len(fresh) + sum(len(p.corrections) for p in prompts)
        propagated -= sum(known[p.object_id].corrections for p in prompts if p.object_id in known)
        work = _Work(self._listener, self._depth * (searched + propagated))
        groups = [await self._corrected(p, known[p.object_id]) for p in prompts if p.object_id in known]
        for group in list(self._groups([await self._place(p, work) for p in fresh], work)):
            await self._prompt(group)
            groups.append(group)
        kept: dict[int, Known[A]] = {}
        for group in groups:
            kept |= await self._propagated(group, work)
        return kept

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
        together: dict[tuple[object, ...], list[_Placed]] = defaultdict(list)
        for one in placed:
            if one.key_slices or one.prompt.corrections:
                together[one.together].append(one)
            else:
                self._listener.ended(one.prompt.object_id, one.score, (), found=False)
                work.add(self._depth)
        for members in together.values():
            for start in range(0, len(members), MAX_OBJECTS):
                yield _Group(members[start : start + MAX_OBJECTS], {})

    async def _prompt(self, group: _Group[A]) -> None:
        """Know the objects of a group on the slices that prompt them."""
        prompts = [member.prompt for member in group.members]
        for number in sorted(group.members[0].key_slices):
            (features,) = await self._source.get([number])
            if number in prompts[0].given_slices:
                group.conditioning[number] = await self._steps.given(features, [p.masks[number] for p in prompts])
            else:
                decoded = await self._decoded(features, [p.on(number) for p in prompts])
                group.conditioning[number] = decoded
                self._preview(group, number)
        self._tell_conditioning(group)

    async def _corrected(self, prompt: ObjectPrompt, known: Known[A]) -> _Group[A]:
        """Decode an object on the slices of its next correction, none of which learns of the others."""
        count = known.corrections + 1
        numbers = sorted(prompt.corrections[known.corrections])
        key_slices = (*known.key_slices, *(n for n in numbers if n not in known.key_slices))
        group = _Group([_Placed(prompt, key_slices, 0.0)], dict(known.conditioning), count)
        for number in numbers:
            (features,) = await self._source.get([number])
            points, last = prompt.corrected(count, number), known.on(number)
            if last is None:
                remembered = await self._decoded(features, [SlicePrompt(points, prompt.seg_hidden)])
            else:
                bank = known.view(number, self._depth, self._spec.max_conditioning_slices)
                remembered = await self._steps.correct(features, bank, [points], last.decoded.mask_logits)
            group.conditioning[number] = remembered
            self._preview(group, number)
        self._tell_conditioning(group)
        return group

    async def _decoded(self, features: F, prompts: Sequence[SlicePrompt]) -> Remembered[A]:
        """Decode the prompts of one slice without memory, and remember what they show."""
        decoded = await self._steps.decode([features] * len(prompts), prompts)
        memory = await self._steps.remember(features, decoded.mask_logits, decoded.object_score)
        return Remembered(decoded, memory)

    async def _propagated(self, group: _Group[A], work: _Work) -> dict[int, Known[A]]:
        """Track a group, correct and track again as often as it is prompted to; return what can be gone on from."""
        while True:
            kept = [_Kept[A]() for _ in group.members]
            if group.conditioning:
                # Neither direction knows of the other, so that they can run side by side where the networks can.
                await _side_by_side(self._track(group, 1, kept, work), self._track(group, -1, kept, work))
                work.add(len(group.members))
            else:
                work.add(self._depth)
            known = {
                member.prompt.object_id: _known(group, row, kept[row])
                for row, member in enumerate(group.members)
                if kept[row].whole
            }
            if group.final:
                break
            prompt = group.members[0].prompt
            group = await self._corrected(prompt, known[prompt.object_id])
        self._end(group)
        return known

    async def _track(self, group: _Group[A], step: int, kept: Sequence[_Kept[A]], work: _Work) -> None:
        """Track a group in one direction until its objects have ended."""
        bank = MemoryBank(group.conditioning, self._depth, step, self._spec.max_conditioning_slices)
        active = [_Active(member.prompt, own) for member, own in zip(group.members, kept, strict=True)]
        first, last = min(group.conditioning), max(group.conditioning)
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
            for row, one in enumerate(active):
                self._keep(group, one.kept, number, remembered, row)
            if group.final:
                self._tell(number, [one.prompt for one in active], remembered.decoded)
            for one, (score,) in zip(active, remembered.decoded.object_score.tolist(), strict=True):
                # Between prompted slices the object is known to come back.
                between = step > 0 and number < last
                one.absent = 0 if score > 0 or between else one.absent + 1
            work.add(len(active))

    def _keep(self, group: _Group[A], kept: _Kept[A], number: int, remembered: Remembered[A], row: int) -> None:
        """Keep a tracked slice of one object for its next correction, of this request or of a later one."""
        if not group.final:
            if group.keeps(number):
                kept.slices[number] = remembered.rows([row])
        elif kept.whole:
            own_bytes = remembered.nbytes // len(remembered.memory)
            if own_bytes <= self._room_bytes:
                kept.slices[number] = remembered.rows([row])
                self._room_bytes -= own_bytes
            else:
                kept.whole = False
                self._room_bytes += own_bytes * len(kept.slices)
                kept.slices.clear()

    def _preview(self, group: _Group[A], number: int) -> None:
        """Tell the masks of a prompted slice at once, where nothing is left to correct."""
        if group.final:
            decoded = group.conditioning[number].decoded
            for row, (member, score) in enumerate(zip(group.members, _scores(decoded), strict=True)):
                self._listener.prompted(member.prompt.object_id, number, decoded.mask_logits[row][0], score)

    def _tell_conditioning(self, group: _Group[A]) -> None:
        if group.final:
            for number, remembered in group.conditioning.items():
                self._tell(number, [member.prompt for member in group.members], remembered.decoded)

    def _tell(self, number: int, prompts: Sequence[ObjectPrompt], decoded: Decoded[A]) -> None:
        for row, (prompt, (score,)) in enumerate(zip(prompts, decoded.object_score.tolist(), strict=True)):
            if _within(prompt, number):
                self._listener.worked_on(prompt.object_id, number, decoded.mask_logits[row][0], presence(score))

    def _end(self, group: _Group[A]) -> None:
        scores = {number: _scores(r.decoded) for number, r in group.conditioning.items()}
        seen = {number: r.decoded.object_score.tolist() for number, r in group.conditioning.items()}
        for row, member in enumerate(group.members):
            best = max(own[row] for own in scores.values())
            found = any(own[row][0] > 0 for own in seen.values())
            self._listener.ended(member.prompt.object_id, best, member.key_slices, found=found)


def _known(group: _Group[A], row: int, kept: _Kept[A]) -> Known[A]:
    """Return what is known of one object of a group."""
    conditioning = {number: r.rows([row]) for number, r in group.conditioning.items()}
    return Known(group.members[row].key_slices, group.corrections, conditioning, kept.slices)


@dataclass
class _Active(Generic[A]):
    """An object that one direction still tracks."""

    prompt: ObjectPrompt
    kept: _Kept[A]
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
