"""Tracking of prompted objects through a volume, each direction from a fresh state.

After a correction it can stay local: it then goes away from the corrected slices until it agrees with what was known
before, and takes the rest from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from medvl.contracts.checkpoint import SegmentationSpec
from medvl.network.groups import Group, Placed
from medvl.network.listener import Teller, Work
from medvl.network.memory_bank import Known, MemoryBank
from medvl.network.room import Share
from medvl.network.steps import A, Decoded, FeatureSource, Remembered, Steps

LOCAL_SLICES, LOCAL_IOU = 3, 0.995
"""Local tracking ends after so many slices in a row whose masks agree with the earlier ones so far."""

F = TypeVar("F")


@dataclass
class Kept(Generic[A]):
    """Tracked slices of one object that a correction may attend to."""

    share: Share
    slices: dict[int, Remembered[A]] = field(default_factory=dict)
    whole: bool = True
    """Whether there was room for all that may be asked for."""

    def add(self, number: int, own: Remembered[A]) -> None:
        """Keep a slice for a later request, or none at all where there is no room for every one."""
        own_bytes = own.nbytes
        if self.whole and self.share.take(own_bytes):
            self.slices[number] = own
        elif self.whole:
            self.whole = False
            self.share.give_back(own_bytes * len(self.slices))
            self.slices.clear()


@dataclass
class _Active(Generic[A]):
    """An object that one direction still tracks."""

    placed: Placed
    kept: Kept[A]
    absent: int = 0
    """Slices in a row without it."""

    def goes_to(self, number: int, step: int, stop_after_absent: int) -> bool:
        """Whether the object is tracked on a slice."""
        prompt, ends = self.placed.prompt, self.placed.ends
        asked = prompt.last_slice if step > 0 else prompt.first_slice
        beyond = any(end is not None and (number - end) * step > 0 for end in (asked, ends and ends[step > 0]))
        return not beyond and self.absent < stop_after_absent


class Tracker(Generic[F, A]):
    """Tracks the groups of one request and tells; parameters as of :class:`medvl.network.propagation.Propagation`."""

    def __init__(
        self, steps: Steps[F, A], source: FeatureSource[F], depth: int, spec: SegmentationSpec, teller: Teller
    ) -> None:
        self._steps = steps
        self._source = source
        self._depth = depth
        self._spec = spec
        self._teller = teller

    async def track(self, group: Group[A], share: Share, work: Work) -> dict[int, Known[A]]:
        """Track a group; return what corrections can go on from, by object, as far as its share of the room goes."""
        kept = [Kept[A](share) for _ in group.members]
        if group.earlier is not None:
            await self._track_locally(group, group.earlier, kept[0], work)
        elif group.conditioning:
            # Neither direction knows of the other, so that they can run side by side where the networks can.
            await side_by_side(self._track(group, 1, kept, work), self._track(group, -1, kept, work))
            work.add(len(group.members))
        else:
            work.add(self._depth)
        return {
            member.prompt.object_id: self._known(group, row, own)
            for row, (member, own) in enumerate(zip(group.members, kept, strict=True))
            if own.whole
        }

    async def _track(self, group: Group[A], step: int, kept: Sequence[Kept[A]], work: Work) -> None:
        """Track a group in one direction until its objects have ended."""
        bank = MemoryBank(group.conditioning, self._depth, step, self._spec.max_conditioning_slices)
        active = [_Active(member, own) for member, own in zip(group.members, kept, strict=True)]
        first, last = min(group.conditioning), max(group.conditioning)
        numbers = range(first + 1, self._depth) if step > 0 else range(first - 1, -1, -1)
        limit = self._spec.stop_after_absent
        for number in numbers:
            if number in group.conditioning:
                work.add(len(group.members))
                continue
            going = [row for row, one in enumerate(active) if one.goes_to(number, step, limit)]
            if len(going) < len(active):
                work.add((len(active) - len(going)) * (abs(numbers.stop - number)))
                active = [active[row] for row in going]
                bank.keep(going)
            if not active:
                return
            (features,) = await self._source.get([number])
            coming = certain(active, number, step, limit)
            self._source.expect([n for n in coming if n in numbers and n not in group.conditioning])
            remembered = await self._steps.track(features, bank.view(number))
            bank.add(number, remembered)
            for row, one in enumerate(active):
                self._keep(group, one, number, remembered, row)
            if group.final:
                self._teller.worked_on(number, [one.placed for one in active], remembered.decoded)
            for one, (score,) in zip(active, remembered.decoded.object_score.tolist(), strict=True):
                # Between prompted slices the object is known to come back.
                between = step > 0 and number < last
                one.absent = 0 if score > 0 or between else one.absent + 1
            work.add(len(active))

    def _keep(self, group: Group[A], one: _Active[A], number: int, remembered: Remembered[A], row: int) -> None:
        """Keep a tracked slice of one object for its next correction, of this request or of a later one."""
        if group.final and one.kept.whole:
            one.kept.add(number, one.placed.kept(number, remembered, row, self._spec.side))
        elif not group.final and group.keeps(number):
            one.kept.slices[number] = one.placed.kept(number, remembered, row, self._spec.side)

    def _known(self, group: Group[A], row: int, kept: Kept[A]) -> Known[A]:
        """Return what is known of one object of a group."""
        placed, side = group.members[row], self._spec.side
        conditioning = {number: placed.kept(number, r, row, side) for number, r in group.conditioning.items()}
        return Known(placed.key_slices, group.corrections, conditioning, kept.slices)

    async def _track_locally(self, group: Group[A], earlier: Known[A], kept: Kept[A], work: Work) -> None:
        """Track one object away from its corrected slices until nothing changes any more."""
        upward: dict[int, Remembered[A] | None] = {}
        downward: dict[int, Remembered[A] | None] = {}
        await side_by_side(
            self._track_away(group, earlier, kept, 1, upward), self._track_away(group, earlier, kept, -1, downward)
        )
        for number, remembered in {**earlier.tracked, **downward, **upward}.items():
            if remembered is not None and number not in group.conditioning:
                self._teller.worked_on(number, group.members, remembered.decoded)
                self._keep(group, _Active(group.members[0], kept), number, remembered, 0)
        work.add(self._depth)

    async def _track_away(
        self, group: Group[A], earlier: Known[A], kept: Kept[A], step: int, found: dict[int, Remembered[A] | None]
    ) -> None:
        """Track one object in one direction; a slice beyond its end becomes None."""
        (placed,) = group.members
        corrected = placed.prompt.corrections[-1]
        passed = {n: r for n, r in earlier.passed(step).items() if n not in group.conditioning}
        bank = MemoryBank(group.conditioning, self._depth, step, self._spec.max_conditioning_slices, passed)
        one, agreeing = _Active(placed, kept), 0
        begin, end = (min(corrected), self._depth) if step > 0 else (max(corrected), -1)
        for number in range(begin, end, step):
            if number in corrected:
                # What lies behind it has to be looked at again.
                agreeing = 0
            elif number in group.conditioning or agreeing == LOCAL_SLICES:
                continue
            elif not one.goes_to(number, step, self._spec.stop_after_absent):
                found[number] = None
            else:
                (features,) = await self._source.get([number])
                remembered = await self._steps.track(features, bank.view(number))
                bank.add(number, remembered)
                found[number] = remembered
                last = earlier.tracked.get(number)
                agreeing = agreeing + 1 if last is not None and _agree(last.decoded, remembered.decoded) else 0
                between = any((other - number) * step > 0 for other in group.conditioning)
                ((score,),) = remembered.decoded.object_score.tolist()
                one.absent = 0 if score > 0 or between else one.absent + 1


def certain(active: Sequence[_Active[A]], number: int, step: int, stop_after_absent: int) -> list[int]:
    """Return the slices behind one about to be tracked, nearest first, that will be tracked whatever it shows.

    An object that is on the slice before is looked for on as many slices as end its direction, this one too.
    """
    behind = range(number + step, number + step * stop_after_absent, step)
    return [n for n in behind if any(one.goes_to(n, step, stop_after_absent - abs(n - number)) for one in active)]


def _agree(one: Decoded[A], other: Decoded[A]) -> bool:
    """Whether two masks of a slice are nearly the same; two empty ones are."""
    first, second = one.masks, other.masks
    return bool(np.count_nonzero(first & second) >= LOCAL_IOU * np.count_nonzero(first | second))


async def side_by_side(*work: Coroutine[Any, Any, None]) -> None:
    """Carry out all, or raise what failed first when nothing of it goes on any more."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
