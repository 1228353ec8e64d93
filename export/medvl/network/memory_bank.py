"""Which memories and object pointers a slice attends to: SAM2's rules for one direction of one batch of objects.

Read in ``SAM2Base._prepare_memory_conditioned_features`` and ``select_closest_cond_frames`` of the ``sam2`` package:

- conditioning slices: the nearest behind, the nearest ahead, then the nearest of the rest, up to the cap;
- memories: those slices in temporal row 6, and of the six slices passed last each in row (distance - 1);
- pointers: the chosen conditioning slices already passed, at their distance, and those of up to 15 slices passed last.

A conditioning slice that was not chosen counts as a passed one where it lies among the last ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic

from medvl.network.steps import A, Bank, Remembered

MEMORIES = 7
"""Rows of SAM2's temporal table: one for conditioning slices, six for the slices passed last."""
POINTERS = 16
"""SAM2's ``max_obj_ptrs_in_encoder``."""


@dataclass
class MemoryBank(Generic[A]):
    """Memories of the objects of one batch in one direction.

    Parameters
    ----------
    conditioning
        Prompted slices by number.
    depth
        Slices of the volume.
    step
        +1 or -1, the direction.
    cap
        Conditioning slices that a slice attends to at most.
    tracked
        Tracked slices by number, as far as later slices attend to them.
    """

    conditioning: Mapping[int, Remembered[A]]
    depth: int
    step: int
    cap: int
    tracked: dict[int, Remembered[A]] = field(default_factory=dict)

    def add(self, number: int, remembered: Remembered[A]) -> None:
        """Remember a tracked slice; what no later slice attends to is forgotten."""
        self.tracked[number] = remembered
        self.tracked.pop(number - self.step * POINTERS, None)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the objects."""
        self.conditioning = {number: r.rows(rows) for number, r in self.conditioning.items()}
        self.tracked = {number: r.rows(rows) for number, r in self.tracked.items()}

    def view(self, number: int) -> Bank[A]:
        """Return what a slice attends to."""
        chosen = closest(self.conditioning, number, self.cap)
        passed = self.tracked | {n: r for n, r in self.conditioning.items() if n not in chosen}
        memories = [(self.conditioning[n].memory, MEMORIES - 1) for n in chosen]
        memories += [(r.memory, d - 1) for d, r in self._behind(passed, number, MEMORIES - 1)]
        pointers = [
            (self.conditioning[n].decoded.object_pointer, distance)
            for n in chosen
            if (distance := (number - n) * self.step) >= 0
        ]
        limit = min(self.depth, POINTERS)
        pointers += [(r.decoded.object_pointer, d) for d, r in self._behind(passed, number, limit - 1)]
        return Bank(
            memories=[memory for memory, _ in memories],
            rows=[row for _, row in memories],
            pointers=[pointer for pointer, _ in pointers],
            distances=[distance / (limit - 1) for _, distance in pointers],
        )

    def _behind(
        self, passed: Mapping[int, Remembered[A]], number: int, furthest: int
    ) -> list[tuple[int, Remembered[A]]]:
        """Return the slices passed last with their distance, nearest first."""
        places = ((d, number - self.step * d) for d in range(1, furthest + 1))
        return [(d, passed[n]) for d, n in places if n in passed]


@dataclass(frozen=True, slots=True)
class Known(Generic[A]):
    """What is known of one object when its prompts have been propagated: what a correction goes on from.

    Each direction has a state of its own, which holds the conditioning slices and what that direction has tracked.
    """

    key_slices: tuple[int, ...]
    """The conditioning slices in the order in which they came."""
    corrections: int
    """How many corrections are in it."""
    conditioning: Mapping[int, Remembered[A]]
    tracked: Mapping[int, Remembered[A]]

    def on(self, number: int) -> Remembered[A] | None:
        """Return what was last found on a slice, None where nothing has been."""
        return self.conditioning.get(number) or self.tracked.get(number)

    def view(self, number: int, depth: int, cap: int) -> Bank[A]:
        """Return what a slice attends to when it is corrected: the state of the direction that passed it.

        The lowest conditioning slice, from which both directions begin, counts as passed by the upward one.
        """
        step = 1 if number >= min(self.conditioning) else -1
        return MemoryBank(self.conditioning, depth, step, cap, self.passed(step)).view(number)

    def passed(self, step: int) -> dict[int, Remembered[A]]:
        """Return what one direction has tracked: the slices on its side of the lowest conditioning slice."""
        first = min(self.conditioning, default=0)
        return {n: r for n, r in self.tracked.items() if (n - first) * step > 0}

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(r.nbytes for slices in (self.conditioning, self.tracked) for r in slices.values())


def closest(slices: Mapping[int, object], number: int, cap: int) -> list[int]:
    """Return the conditioning slices that a slice attends to, at most ``cap``."""
    if len(slices) <= cap:
        return list(slices)
    before = max((n for n in slices if n < number), default=None)
    after = min((n for n in slices if n >= number), default=None)
    chosen = [n for n in (before, after) if n is not None]
    rest = sorted((n for n in slices if n not in chosen), key=lambda n: abs(n - number))
    return (chosen + rest)[:cap]
