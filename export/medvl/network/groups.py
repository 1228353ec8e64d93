"""Objects of one request, as they are placed on slices and tracked together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

import numpy as np
from numpy.typing import NDArray

from medvl.contracts.models import ABSENT
from medvl.network.key_slices import slice_score
from medvl.network.memory_bank import POINTERS, Known
from medvl.network.prompts import ObjectPrompt, SlicePrompt
from medvl.network.region_choice import Outline
from medvl.network.steps import A, Decoded, Remembered


@dataclass(frozen=True, eq=False)
class Sought:
    """A region that a text means, and how it is prompted on its key slice."""

    outline: Outline
    prompt: SlicePrompt


@dataclass(frozen=True)
class Placed:
    """An object and the slices on which it is prompted: those that a text chose, best first, then the others."""

    prompt: ObjectPrompt
    key_slices: tuple[int, ...]
    score: float
    """Of the best slice that a text was looked for on; 0 without a text."""
    ends: tuple[int, int] | None = None
    """First and last slice that it is tracked to until somebody corrects it; None where nothing is in its way."""
    sought: Sought | None = None
    """How the region is prompted that its text means; None where a text or anything else prompts its key slices."""

    def on(self, number: int) -> SlicePrompt:
        """Return the prompt on a key slice, without corrections."""
        return self.sought.prompt if self.sought else self.prompt.on(number)

    def bounded(self, number: int, mask_logits: NDArray[np.float32], side: int) -> NDArray[np.float32]:
        """Return the logits FP32 [f_4, f_4] of its mask on a slice of ``side`` pixels, absent where it cannot be."""
        if self.sought is None:
            return mask_logits
        within = self.sought.outline.within(number, len(mask_logits), side)
        return np.where(within, mask_logits, np.float32(ABSENT))

    def kept(self, number: int, rows: Remembered[A], row: int, side: int) -> Remembered[A]:
        """Return one of the rows of a slice as it was told, which is what a correction corrects."""
        own = rows.rows([row])
        if self.sought is not None:
            logits = np.asarray(own.decoded.mask_logits)
            logits[0, 0] = self.bounded(number, logits[0, 0], side)
        return own

    @property
    def together(self) -> tuple[object, ...]:
        """What it has in common with the objects that it can be tracked with; one to be corrected is alone."""
        alone = (self.prompt.object_id,) if self.prompt.corrections else ()
        return tuple(sorted(self.key_slices)), self.prompt.given_slices, alone


@dataclass
class Group(Generic[A]):
    """Objects that are tracked together because the same slices prompt them, by given masks or otherwise."""

    members: list[Placed]
    conditioning: dict[int, Remembered[A]]
    corrections: int = 0
    """How many of them are in ``conditioning``."""
    earlier: Known[A] | None = None
    """What was known before the last of them, where tracking is to end when it agrees with that."""

    @property
    def final(self) -> bool:
        """Whether nothing is left to correct, so that what is found now is told."""
        return all(self.corrections == len(member.prompt.corrections) for member in self.members)

    def keeps(self, number: int) -> bool:
        """Whether the next correction attends to a slice."""
        coming = self.members[0].prompt.corrections[self.corrections :][:1]
        return any(abs(number - other) < POINTERS for slices in coming for other in slices)


def scores_of(decoded: Decoded[A]) -> list[float]:
    """Return the score of every object of one call."""
    pairs = zip(decoded.object_score.tolist(), decoded.iou.tolist(), strict=True)
    return [slice_score(score, iou) for (score,), (iou,) in pairs]


def within(prompt: ObjectPrompt, number: int) -> bool:
    """Whether a slice lies in the extent of an object."""
    first, last = prompt.first_slice, prompt.last_slice
    return (first is None or first <= number) and (last is None or number <= last)
