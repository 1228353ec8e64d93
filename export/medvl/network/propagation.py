"""From prompts to masks in 3D: SAM2's propagation through a volume, over networks that run anywhere.

A text prompt first chooses its key slices by looking at every slice without memory, among those of the thing that it
means where a checkpoint tells several apart, or those about a region of the vision encoder that it means; points, boxes
and masks name theirs. The prompted slices condition the tracking of their objects in both directions from the lowest of
them, each direction from a fresh state, so that neither the order of the directions nor an earlier request has an
effect.

A correction goes on from there as SAM2's video predictor does: a slice that has been tracked or prompted before is
decoded with its memories and its last mask, any other as a prompted one; then it conditions the tracking, too, and
both directions track again, each from a fresh state. So a list of prompts means the same whoever replays it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Generic, TypeVar

import numpy as np

from medvl.contracts.checkpoint import SegmentationSpec
from medvl.network.groups import Group, Placed, Sought, scores_of, within
from medvl.network.heed import full, heeded, positive, unstrayed
from medvl.network.key_slices import choose_key_slices
from medvl.network.listener import Listener, Teller, Work, tell_end
from medvl.network.memory_bank import Known
from medvl.network.prompts import ObjectPrompt, SlicePrompt
from medvl.network.proposal_finder import ProposalFinder
from medvl.network.proposals import ProposalScorer, reach
from medvl.network.region_choice import Outline, Outlined
from medvl.network.room import Room
from medvl.network.steps import A, Decoded, FeatureSource, Remembered, Steps
from medvl.network.tracking import Tracker

MAX_OBJECTS = 16
"""Objects that one call of a graph takes at most."""

LEAST_FIT = 0.15
"""Share of a region's disc and of what SAM2 shows for it that both have in common; less shows something else."""

F = TypeVar("F")


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
    room
        How much of the objects that are being tracked is kept for corrections by later requests; nothing by default.
    batch
        Objects, or slices without memory, that one call takes; it changes no result.
    scorer
        Of a checkpoint that tells several things apart which look like what a text means.
    outlined
        Of the volume, where a text may mean a region that the vision encoder has found.
    """

    def __init__(  # noqa: PLR0917 - what it works on, who listens, and two bounds
        self,
        steps: Steps[F, A],
        source: FeatureSource[F],
        depth: int,
        spec: SegmentationSpec,
        listener: Listener,
        room: Room | None = None,
        batch: int = MAX_OBJECTS,
        scorer: ProposalScorer | None = None,
        outlined: Outlined | None = None,
    ) -> None:
        self._steps = steps
        self._source = source
        self._depth = depth
        self._spec = spec
        self._listener = listener
        self._room = Room(0) if room is None else room
        self._batch = min(batch, MAX_OBJECTS)
        self._scorer = scorer
        self._outlined = outlined
        self._teller = Teller(listener, spec.side)
        self._tracker = Tracker(steps, source, depth, spec, self._teller)

    async def run(
        self,
        prompts: Sequence[ObjectPrompt],
        known: Mapping[int, Known[A]] = MappingProxyType({}),
        local: Collection[int] = (),
        keep: Callable[[int, Known[A]], None] = lambda object_id, known: None,
    ) -> None:
        """Segment the objects; cancelling the task ends it at the next network call.

        Parameters
        ----------
        prompts
            All prompts of each object.
        known
            What an earlier run kept of an object with fewer corrections: it goes on from there.
        local
            Objects whose tracking ends where it agrees with what is known of them without their last correction.
        keep
            Gets what further corrections of an object can go on from, just before the object has ended, so that it
            stays when the rest is cancelled. Without it where there was no room.
        """
        fresh = [p for p in prompts if p.object_id not in known]
        searched = sum(p.seg_hidden is not None for p in fresh)
        propagated = len(fresh) + sum(len(p.corrections) for p in prompts)
        propagated -= sum(known[p.object_id].corrections for p in prompts if p.object_id in known)
        work = Work(self._listener, self._depth * (searched + propagated))
        groups = [await self._corrected(p, known[p.object_id]) for p in prompts if p.object_id in known]
        for group in groups:
            if group.final and (object_id := group.members[0].prompt.object_id) in local:
                group.earlier = known[object_id]
        for group in list(self._groups([await self._place(p, work) for p in fresh], work)):
            await self._prompt(group)
            groups.append(group)
        for group in groups:
            await self._propagate(group, work, keep)

    async def _place(self, prompt: ObjectPrompt, work: Work) -> Placed:
        named = sorted(prompt.points.keys() | prompt.masks.keys())
        if prompt.seg_hidden is None:
            return Placed(prompt, tuple(named), 0.0)
        scores = [0.0] * self._depth
        finder = ProposalFinder(self._depth, self._scorer.rule) if self._scorer else None
        allowed = [n for n in range(self._depth) if within(prompt, n)]
        for start in range(0, len(allowed), self._batch):
            numbers = allowed[start : start + self._batch]
            features = await self._source.get(numbers)
            decoded = await self._steps.decode(features, [SlicePrompt(seg_hidden=prompt.seg_hidden)] * len(numbers))
            for number, score, mask in zip(numbers, scores_of(decoded), decoded.masks, strict=True):
                scores[number] = score
                if finder:
                    finder.see(number, mask, score)
            work.add(len(numbers))
        work.add(self._depth - len(allowed))
        rule, ends = self._spec.key_slices, None
        chosen = choose_key_slices(scores, rule)
        # Points and masks beside a text tell better than it does where its object is and how far it reaches.
        outline = self._outlined(prompt.seg_hidden) if self._outlined and not named else None
        if outline and (placed := await self._sought(prompt, outline, max(scores))):
            return placed
        if chosen and self._scorer and finder and (found := finder.found()):
            meant = self._scorer.meant(found, prompt.seg_hidden)
            # What is meant may be seen less well than something else that tells that there is anything.
            chosen = choose_key_slices(meant.scores.tolist(), rule) or (int(meant.scores.argmax()),)
            ends = None if named else reach(meant, found, chosen, rule.min_score)
        return Placed(prompt, (*chosen, *(n for n in named if n not in chosen)), max(scores), ends)

    async def _sought(self, prompt: ObjectPrompt, outline: Outline, score: float) -> Placed | None:
        """Place a region on the slice and with the prompt that show it best; None where SAM2 sees nothing of it."""
        numbers = [n for n in outline.slices(self._depth) if within(prompt, n)]
        ways = SlicePrompt(seg_hidden=prompt.seg_hidden), *outline.prompts()
        asked = [(number, own) for number in numbers for own in ways]
        features = dict(zip(numbers, await self._source.get(numbers), strict=True))
        shown: list[tuple[float, int, SlicePrompt]] = []
        for start in range(0, len(asked), self._batch):
            part = asked[start : start + self._batch]
            decoded = await self._steps.decode([features[number] for number, _ in part], [own for _, own in part])
            there = [logit > 0 for (logit,) in decoded.object_score.tolist()]
            for (number, own), mask, seen, is_there in zip(part, decoded.masks, scores_of(decoded), there, strict=True):
                disc = outline.disc(number, len(mask), self._spec.side)
                both, either = int(np.count_nonzero(mask & disc)), max(1, int(np.count_nonzero(mask | disc)))
                if is_there and both >= LEAST_FIT * either:
                    shown.append((seen * both / either, number, own))
        if not shown:
            return None
        _, number, own = max(shown, key=lambda one: one[0])
        return Placed(prompt, (number,), score, outline.ends(self._depth), Sought(outline, own))

    def _groups(self, placed: Sequence[Placed], work: Work) -> Iterator[Group[A]]:
        """Yield the objects by their key slices, as many as one call takes; those that are nowhere have ended."""
        together: dict[tuple[object, ...], list[Placed]] = defaultdict(list)
        for one in placed:
            if one.key_slices or one.prompt.corrections:
                together[one.together].append(one)
            else:
                self._listener.ended(one.prompt.object_id, one.score, (), found=False)
                work.add(self._depth)
        for members in together.values():
            for start in range(0, len(members), self._batch):
                yield Group(members[start : start + self._batch], {})

    async def _prompt(self, group: Group[A]) -> None:
        """Know the objects of a group on the slices that prompt them."""
        prompts = [member.prompt for member in group.members]
        given_slices = prompts[0].given_slices
        for number in sorted(group.members[0].key_slices):
            (features,) = await self._source.get([number])
            if number in given_slices:
                group.conditioning[number] = await self._steps.given(features, [p.masks[number] for p in prompts])
            else:
                await self._decode(group, number, features, [member.on(number) for member in group.members])
        self._teller.conditioning(group)

    async def _corrected(self, prompt: ObjectPrompt, known: Known[A]) -> Group[A]:
        """Decode an object on the slices of its next correction, none of which learns of the others."""
        count = known.corrections + 1
        numbers = sorted(prompt.corrections[known.corrections])
        key_slices = (*known.key_slices, *(n for n in numbers if n not in known.key_slices))
        group = Group([Placed(prompt, key_slices, 0.0)], dict(known.conditioning), count)
        for number in numbers:
            (features,) = await self._source.get([number])
            points, last = prompt.corrected(count, number), known.on(number)
            if last is None:
                await self._decode(group, number, features, [SlicePrompt(points, prompt.seg_hidden)])
            else:
                bank = known.view(number, self._depth, self._spec.max_conditioning_slices)
                remembered = await self._steps.correct(features, bank, [points], last.decoded.mask_logits)
                slice_prompt = SlicePrompt(points, prompt.seg_hidden)
                remembered = await self._heeding(features, slice_prompt, last.decoded, remembered)
                group.conditioning[number] = remembered
                self._teller.prompted(group, number, remembered.decoded)
        self._teller.conditioning(group)
        return group

    async def _heeding(
        self, features: F, prompt: SlicePrompt, last: Decoded[A], corrected: Remembered[A]
    ) -> Remembered[A]:
        """Return a corrected slice, or another one where it does not do what its clicks say.

        SAM2 stays with the corrected one: a mask that began as another object may hold on to it, or leave for a third.
        """
        limit, side, points = self._spec.heed_clicks_px, self._spec.side, prompt.points
        if limit is None:
            return corrected
        (mask,) = corrected.decoded.masks
        if not positive(points):
            kept = unstrayed(mask, last.masks[0], side, limit)
            return corrected if (kept == mask).all() else await self._steps.given(features, [full(kept, side)])
        if heeded(mask, points, side, limit):
            return corrected
        decoded = await self._steps.decode([features], [prompt])
        if not heeded(decoded.masks[0], points, side, limit):
            return corrected
        memory = await self._steps.remember(features, decoded.mask_logits, decoded.object_score)
        return Remembered(decoded, memory)

    async def _decode(self, group: Group[A], number: int, features: F, prompts: Sequence[SlicePrompt]) -> None:
        """Decode the prompts of one slice without memory, tell what they show, and remember it."""
        decoded = await self._steps.decode([features] * len(prompts), prompts)
        # Somebody waits for this mask; its memory is for the tracking.
        self._teller.prompted(group, number, decoded)
        memory = await self._steps.remember(features, decoded.mask_logits, decoded.object_score)
        group.conditioning[number] = Remembered(decoded, memory)

    async def _propagate(self, group: Group[A], work: Work, keep: Callable[[int, Known[A]], None]) -> None:
        """Track a group, correct and track again as often as it is prompted to."""
        with self._room.share() as share:
            known = await self._tracker.track(group, share, work)
            while not group.final:
                prompt = group.members[0].prompt
                group = await self._corrected(prompt, known[prompt.object_id])
                known = await self._tracker.track(group, share, work)
            for object_id, found in known.items():
                keep(object_id, found)
        tell_end(self._listener, group)
