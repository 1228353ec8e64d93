"""Who is told what propagation finds, and what is told when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from medvl.network.groups import Group, Placed, scores_of, within
from medvl.network.key_slices import presence
from medvl.network.steps import A, Decoded

Values = NDArray[np.float32]


class Listener(Protocol):
    """Whoever is told what propagation finds, as it finds it."""

    def prompted(self, object_id: int, number: int, mask_logits: Values, score: float) -> None:
        """Take the mask of a prompted slice, logits FP32 [f_4, f_4], before any tracking."""

    def worked_on(self, object_id: int, number: int, mask_logits: Values, presence: float) -> None:
        """Take the mask of a slice and how sure the network is that the object is on it, 0 to 1."""

    def progress(self, done: int, total: int) -> None:
        """Take how much of the work is done."""

    def ended(self, object_id: int, score: float, key_slices: Sequence[int], *, found: bool) -> None:
        """Learn that nothing more will come of an object."""


@dataclass
class Work:
    """Slices to look at, and how many have been; what is not needed in the end counts as done."""

    listener: Listener
    total: int
    done: int = 0

    def add(self, slices: int) -> None:
        """Count slices, and tell."""
        self.done += slices
        self.listener.progress(self.done, self.total)


@dataclass(frozen=True)
class Teller:
    """Tells a listener what is found on slices of ``side`` pixels."""

    listener: Listener
    side: int

    def prompted(self, group: Group[A], number: int, decoded: Decoded[A]) -> None:
        """Tell the masks of a prompted slice at once, where nothing is left to correct."""
        if group.final:
            for row, (member, score) in enumerate(zip(group.members, scores_of(decoded), strict=True)):
                self.listener.prompted(member.prompt.object_id, number, self._mask(member, number, decoded, row), score)

    def conditioning(self, group: Group[A]) -> None:
        """Tell the masks of all prompted slices, where nothing is left to correct."""
        if group.final:
            for number, remembered in group.conditioning.items():
                self.worked_on(number, group.members, remembered.decoded)

    def worked_on(self, number: int, members: Sequence[Placed], decoded: Decoded[A]) -> None:
        """Tell the masks of a slice to whom it belongs."""
        for row, (member, (score,)) in enumerate(zip(members, decoded.object_score.tolist(), strict=True)):
            if within(member.prompt, number):
                mask = self._mask(member, number, decoded, row)
                # What cannot be there is not, however sure SAM2 is of it.
                there = presence(score) if member.sought is None or (mask > 0).any() else 0.0
                self.listener.worked_on(member.prompt.object_id, number, mask, there)

    def _mask(self, member: Placed, number: int, decoded: Decoded[A], row: int) -> Values:
        return member.bounded(number, np.asarray(decoded.mask_logits[row][0]), self.side)


def tell_end(listener: Listener, group: Group[A]) -> None:
    """Tell that nothing more will come of the objects of a group."""
    scores = {number: scores_of(r.decoded) for number, r in group.conditioning.items()}
    seen = {number: r.decoded.object_score.tolist() for number, r in group.conditioning.items()}
    for row, member in enumerate(group.members):
        best = max(own[row] for own in scores.values())
        found = any(own[row][0] > 0 for own in seen.values())
        listener.ended(member.prompt.object_id, best, member.key_slices, found=found)
