"""Prompts in the pixels of SAM2's slices, and their tensors for the mask decoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from medvl.contracts.errors import InvalidRequest
from medvl.contracts.messages import MAX_POINTS

if TYPE_CHECKING:
    from torch import Tensor

Shares = TypeVar("Shares", NDArray[np.float32], "Tensor")

NEGATIVE, POSITIVE, BOX_FIRST, BOX_SECOND = 0, 1, 2, 3
"""SAM2's labels of points and of the two corners of a box."""
NOT_A_POINT, PADDING = -1, -2
"""Labels of SAM2's empty token and of a point without effect."""


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
    mask
        bool [S, S], a mask that somebody gave. Alone it is taken as it is; beside points it is what they correct.
    """

    points: tuple[PromptPoint, ...] = ()
    seg_hidden: NDArray[np.float32] | None = None
    mask: NDArray[np.bool_] | None = None

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
        Points and box corners by slice: what tells the object.
    seg_hidden
        FP32 [H]; it chooses key slices of its own and joins the points on theirs.
    first_slice, last_slice
        The mask stays within; None leaves that end open.
    masks
        bool [S, S] by slice, what somebody gave as the object's mask there; looked up when the slice is prompted.
    corrections
        Points by slice, each entry given on seeing the mask that everything before it makes.
    """

    object_id: int
    points: Mapping[int, tuple[PromptPoint, ...]]
    seg_hidden: NDArray[np.float32] | None = None
    first_slice: int | None = None
    last_slice: int | None = None
    masks: Mapping[int, NDArray[np.bool_]] = field(default_factory=dict)
    corrections: tuple[Mapping[int, tuple[PromptPoint, ...]], ...] = ()

    @property
    def given_slices(self) -> frozenset[int]:
        """The slices whose mask is first taken as it is, because no point comes with it."""
        return frozenset(n for n in self.masks if not self.points.get(n))

    @property
    def kept_slices(self) -> frozenset[int]:
        """The slices whose mask stays as it was given, because no correction comes there either."""
        return self.given_slices.difference(*self.corrections)

    def on(self, number: int) -> SlicePrompt:
        """Return the prompt on a slice, without corrections."""
        return SlicePrompt(self.points.get(number, ()), self.seg_hidden, self.masks.get(number))

    def corrected(self, count: int, number: int) -> tuple[PromptPoint, ...]:
        """Return all points of a slice up to and with so many corrections, which SAM2 sees together."""
        more = (p for correction in self.corrections[:count] for p in correction.get(number, ()))
        return (*self.points.get(number, ()), *more)


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
    points, labels = _points([p.points for p in prompts])
    count = len(prompts)
    seg_hidden = np.zeros((count, hidden_size), np.float32)
    for row, prompt in enumerate(prompts):
        if prompt.seg_hidden is not None:
            seg_hidden[row] = prompt.seg_hidden
    return {
        "points": points,
        "labels": labels,
        "mask_input": _mask_logits(prompts, side),
        "mask_flag": _flags(p.mask is not None for p in prompts),
        "seg_hidden": seg_hidden,
        "seg_flag": _flags(p.seg_hidden is not None for p in prompts),
        "multimask_flag": _flags(p.multimask for p in prompts),
    }


def track_arrays(
    prompts: Sequence[tuple[PromptPoint, ...]], masks: NDArray[np.float32] | None, *, side: int
) -> dict[str, np.ndarray]:
    """Return the prompt tensors of ``sam2_track_step`` by name, one row per object.

    Parameters
    ----------
    prompts
        Points that correct each object on the slice; none where it is only tracked.
    masks
        FP32 [N, 1, S/4, S/4], logits of what was last found there; None where the objects are only tracked.
    side
        S, pixels of a slice.

    Raises
    ------
    InvalidRequest
        As :func:`prompt_arrays`.
    """
    points, labels = _points(prompts)
    count = len(prompts)
    return {
        "points": points,
        "labels": labels,
        "mask_input": np.zeros((count, 1, side // 4, side // 4), np.float32) if masks is None else masks,
        "mask_flag": np.full((count, 1), masks is not None, np.float32),
        "multimask_flag": _flags(SlicePrompt(own).multimask for own in prompts),
    }


def _points(prompts: Sequence[tuple[PromptPoint, ...]]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return points FP32 [N, P, 2] and labels INT32 [N, P], padded."""
    listed = [own or (PromptPoint(0.0, 0.0, NOT_A_POINT),) for own in prompts]
    longest = max(map(len, listed))
    if longest > MAX_POINTS:
        raise InvalidRequest(f"An object has {longest} points on one slice: give {MAX_POINTS} at most.")
    points = np.zeros((len(listed), longest, 2), np.float32)
    labels = np.full((len(listed), longest), PADDING, np.int32)
    for row, own in enumerate(listed):
        points[row, : len(own)] = [(p.x, p.y) for p in own]
        labels[row, : len(own)] = [p.label for p in own]
    return points, labels


def given_masks(masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.uint8]:
    """Return masks bool [S, S] as ``sam2_mask_prompt`` takes them, UINT8 [N, 1, S, S]."""
    return np.stack(masks)[:, None].view(np.uint8)


def logits_of(covered: Shares) -> Shares:
    """Return SAM2's logits of a mask, 10 and -10, from how much of each place it covers: averaged where an edge is."""
    return 20.0 * covered - 10.0


def _mask_logits(prompts: Sequence[SlicePrompt], side: int) -> NDArray[np.float32]:
    """Return masks as prompts, logits FP32 [N, 1, S/4, S/4]."""
    logits = np.zeros((len(prompts), 1, side // 4, side // 4), np.float32)
    for row, mask in enumerate(p.mask for p in prompts):
        if mask is not None:
            logits[row, 0] = logits_of(mask.reshape(side // 4, 4, side // 4, 4).mean((1, 3), dtype=np.float32))
    return logits


def _flags(values: Iterable[bool]) -> NDArray[np.float32]:
    return np.array(list(values), np.float32)[:, None]
