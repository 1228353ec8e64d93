"""Prompts in the pixels of SAM2's slices, and their tensors for the mask decoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medvl.contracts.errors import InvalidRequest

NEGATIVE, POSITIVE, BOX_FIRST, BOX_SECOND = 0, 1, 2, 3
"""SAM2's labels of points and of the two corners of a box."""
NOT_A_POINT, PADDING = -1, -2
"""Labels of SAM2's empty token and of a point without effect."""

MAX_POINTS = 32
"""Points of one object on one slice that the decoder's graph takes, the two corners of a box included."""


@dataclass(frozen=True, slots=True)
class PromptPoint:
    """One sparse prompt: x and y in pixels of the S x S slice with pixel centres at +0.5, and SAM2's label."""

    x: float
    y: float
    label: int


@dataclass(frozen=True, slots=True)
class SlicePrompt:
    """Everything that prompts one object on one slice, in one call.

    Attributes
    ----------
    points
        Points and box corners in the order in which SAM2 is to see them; SAM2 puts a box first.
    seg_hidden
        FP32 [H], the [SEG] state after the language model's final norm.
    """

    points: tuple[PromptPoint, ...] = ()
    seg_hidden: NDArray[np.float32] | None = None

    @property
    def multimask(self) -> bool:
        """Whether SAM2.1 chooses among three masks: with at most one point; a box counts as two."""
        return len(self.points) <= 1


@dataclass(frozen=True, slots=True)
class ObjectPrompt:
    """One object of a volume.

    Attributes
    ----------
    object_id
        Chosen by the caller; results carry it.
    points
        Points and box corners by slice.
    seg_hidden
        FP32 [H]; without points it chooses the key slices itself, with points it joins them on their slices.
    first_slice, last_slice
        The mask stays within; None leaves that end open.
    """

    object_id: int
    points: Mapping[int, tuple[PromptPoint, ...]]
    seg_hidden: NDArray[np.float32] | None = None
    first_slice: int | None = None
    last_slice: int | None = None

    def on(self, number: int) -> SlicePrompt:
        """Return the prompt on a slice."""
        return SlicePrompt(self.points.get(number, ()), self.seg_hidden)


def prompt_arrays(prompts: Sequence[SlicePrompt], *, side: int, hidden_size: int) -> dict[str, np.ndarray]:
    """Return the prompt tensors of ``sam2_mask_decoder`` by name, one row per prompt.

    Shorter lists are padded with label -2, which has no effect; no point at all is SAM2's "not a point".

    Parameters
    ----------
    side
        S, pixels of a slice.
    hidden_size
        H, width of the language model.

    Raises
    ------
    InvalidRequest
        When a prompt has more points than the graph takes.
    """
    listed = [p.points or (PromptPoint(0.0, 0.0, NOT_A_POINT),) for p in prompts]
    longest = max(map(len, listed))
    if longest > MAX_POINTS:
        raise InvalidRequest(f"An object has {longest} points on one slice: give {MAX_POINTS} at most.")
    count = len(prompts)
    points = np.zeros((count, longest, 2), np.float32)
    labels = np.full((count, longest), PADDING, np.int32)
    for row, own in enumerate(listed):
        points[row, : len(own)] = [(p.x, p.y) for p in own]
        labels[row, : len(own)] = [p.label for p in own]
    seg_hidden = np.zeros((count, hidden_size), np.float32)
    for row, prompt in enumerate(prompts):
        if prompt.seg_hidden is not None:
            seg_hidden[row] = prompt.seg_hidden
    return {
        "points": points,
        "labels": labels,
        "mask_input": np.zeros((count, 1, side // 4, side // 4), np.float32),
        "mask_flag": np.zeros((count, 1), np.float32),
        "seg_hidden": seg_hidden,
        "seg_flag": _flags(p.seg_hidden is not None for p in prompts),
        "multimask_flag": _flags(p.multimask for p in prompts),
    }


def _flags(values: Iterable[bool]) -> NDArray[np.float32]:
    return np.array(list(values), np.float32)[:, None]
