"""Key slices of a text prompt: where in the volume the language model's object is seen best."""

from __future__ import annotations

import math
from collections.abc import Sequence

from medvl.contracts.checkpoint import KeySliceRule


def slice_score(object_score: float, iou: float) -> float:
    """Return sigmoid(object score) x predicted IoU, the score of a mask on one slice, 0 to 1."""
    return presence(object_score) * iou


def presence(object_score: float) -> float:
    """Return the sigmoid of an object score: how sure the network is that the object is on the slice."""
    if object_score < 0:
        return 1.0 - presence(-object_score)
    return 1.0 / (1.0 + math.exp(-object_score))


def choose_key_slices(scores: Sequence[float], rule: KeySliceRule) -> tuple[int, ...]:
    """Choose the best slice, then further ones in the order of their score.

    Every key slice reaches ``min_score`` and lies at least ``min_gap`` slices from the others, so that no slice
    without the object conditions its tracking. Ties go to the lower slice.

    Returns
    -------
    tuple[int, ...]
        Slice numbers, best first; empty when the object is nowhere.
    """
    chosen: list[int] = []
    for number in sorted(range(len(scores)), key=lambda n: (-scores[n], n)):
        if scores[number] < rule.min_score or len(chosen) == rule.max_slices:
            break
        if all(abs(number - other) >= rule.min_gap for other in chosen):
            chosen.append(number)
    return tuple(chosen)
