"""Which of the encoder's regions a text means, and how SAM2 is prompted there.

SAM2 draws nothing for the words of some lesions that the encoder finds: they are small, or look like what is about
them. A region tells where one is and how far it reaches, so SAM2 can be asked with a box and a point instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from medvl.contracts.checkpoint import ProposalRule, RegionRule, VisionSpec
from medvl.network.prompts import BOX_FIRST, BOX_SECOND, POSITIVE, PromptPoint, SlicePrompt

OUTLINE = 6
"""Numbers of a region that come before the logits of its kinds: its middle (3) and its half extents (3)."""
NO_REGION_LOGIT = -30.0
"""Logit of cells that are no region, and of those that a look passes by."""

_LEAST_HALF = 0.75
"""Cells; a disc of a little less holds the middle of none when its own lies where four of them meet."""

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Outline:
    """Where something lies and how far it reaches: slices, rows and columns of fitted slices, edges at whole numbers.

    Attributes
    ----------
    middle, half
        FP64 [3].
    reach
        Half extents from its middle that its mask stays within.
    """

    middle: NDArray[np.float64]
    half: NDArray[np.float64]
    reach: float

    @classmethod
    def of(cls, region: Array, shape: tuple[int, int, int], reach: float) -> Self:
        """Lay a region, in shares of a volume, on its fitted slices; ``shape`` counts these, their rows and columns."""
        lengths = np.array(shape, np.float64)
        return cls(region[:3] * lengths, region[3:OUTLINE] * lengths, reach)

    def slices(self, depth: int) -> range:
        """Return the slice of its middle and those beside it."""
        number = min(max(int(self.middle[0]), 0), depth - 1)
        return range(max(0, number - 1), min(depth, number + 2))

    def ends(self, depth: int) -> tuple[int, int]:
        """Return the first and the last slice that its mask stays within; a slice more on either side."""
        first, last = (self.middle[0] + sign * (self.reach * self.half[0] + 1.0) - 0.5 for sign in (-1, 1))
        return max(0, int(np.ceil(first))), min(depth - 1, int(np.floor(last)))

    def prompts(self) -> tuple[SlicePrompt, ...]:
        """Return the ways to ask SAM2 for it on a slice: its box, and its middle."""
        (_, row, column), (_, high, wide) = self.middle.tolist(), self.half.tolist()
        box = (
            PromptPoint(column - wide, row - high, BOX_FIRST),
            PromptPoint(column + wide, row + high, BOX_SECOND),
        )
        return SlicePrompt(box), SlicePrompt((PromptPoint(column, row, POSITIVE),))

    def disc(self, number: int, size: int, side: int) -> NDArray[np.bool_]:
        """Return its cells bool [size, size] on a slice of ``side`` pixels; at least one where its middle is.

        A middle between two slices may be seen on either, so there it is as large as on its own.
        """
        away = max(0.0, abs(number + 0.5 - self.middle[0]) - 0.5)
        least = _LEAST_HALF * side / size
        return self._ellipse(np.maximum(self.half, [0.0, least, least]), away, size, side)

    def within(self, number: int, size: int, side: int) -> NDArray[np.bool_]:
        """Return the cells bool [size, size] that its mask stays within on a slice, and those beside them."""
        margin = np.array([1.0, side / size, side / size])
        return self._ellipse(self.reach * self.half + margin, abs(number + 0.5 - self.middle[0]), size, side)

    def _ellipse(self, half: NDArray[np.float64], away: float, size: int, side: int) -> NDArray[np.bool_]:
        at = (np.arange(size) + 0.5) * (side / size)
        rows, columns = (((at - self.middle[i]) / half[i]) ** 2 for i in (1, 2))
        inside: NDArray[np.bool_] = (away / half[0]) ** 2 + rows[:, None] + columns <= 1.0
        return inside


Outlined = Callable[[Array], Outline | None]
"""Tells the outline of the region that a [SEG] state FP32 [H] means in one volume, None where it means none."""


@dataclass(frozen=True, eq=False)
class RegionScorer:
    """Chooses the region that a [SEG] state means, or none: a linear map of the state weighs what they are compared by.

    Attributes
    ----------
    weight, bias
        FP32 [F, H] and [F], F being what :func:`features_of_regions` tells of each.
    rule
        Of the checkpoint.
    """

    weight: Array
    bias: Array
    rule: RegionRule

    @classmethod
    def load(cls, path: Path, rule: ProposalRule) -> Self | None:
        """Read the weights of a checkpoint's ``proposals.safetensors``, where its rule has regions."""
        if rule.regions is None:
            return None
        tensors = load_file(path)
        weight, bias = (tensors[f"regions.{name}"].astype(np.float32) for name in ("weight", "bias"))
        return cls(weight, bias, rule.regions)

    def meant(self, regions: Array, seg_hidden: Array) -> Array | None:
        """Return the one of regions FP32 [G, OUTLINE + kinds] that a [SEG] state FP32 [H] means, or None."""
        likely = likely_regions(regions, self.rule)
        chosen = int((features_of_regions(likely) @ (self.weight @ seg_hidden + self.bias)).argmax())
        return likely[chosen] if chosen < len(likely) else None

    def outlined(self, regions: Array, shape: tuple[int, int, int]) -> Outlined:
        """Return what tells outlines in one volume; ``shape`` as in :meth:`Outline.of`."""

        def outline(seg_hidden: Array) -> Outline | None:
            region = self.meant(regions, seg_hidden)
            return None if region is None else Outline.of(region, shape, self.rule.reach)

        return outline


def likely_regions(regions: Array, rule: RegionRule) -> Array:
    """Return the regions of [G, OUTLINE + kinds] that can be chosen from."""
    scores = _sigmoid(regions[:, OUTLINE:]).max(1, initial=0.0)
    likely: Array = regions[(scores >= rule.min_score) & (regions[:, 3:OUTLINE] > 0).all(1)]
    return likely


def region_numbers(vision: VisionSpec) -> int:
    """Return how many numbers a region has; one that is nothing, of an encoder that finds none, has a single kind."""
    return OUTLINE + (vision.regions.kinds if vision.regions else 1)


def feature_count(kinds: int) -> int:
    """Return F of :func:`features_of_regions`."""
    return 3 * kinds + 3


def features_of_regions(regions: Array) -> Array:
    """Return what regions FP32 [G, OUTLINE + kinds] are compared by, and in the last row none of them; FP32 [G + 1, F].

    For each kind: how likely it is, and how many larger and smaller ones of it there are, each counted as far as it is
    likely. Then the logit of the likeliest kind, the logarithm of the volume, and whether it is none of them.
    """
    logits, volumes = regions[:, OUTLINE:], regions[:, 3:OUTLINE].prod(1)
    likely = _sigmoid(logits)
    larger, smaller = (compared @ likely for compared in (volumes > volumes[:, None], volumes < volumes[:, None]))
    columns = (likely, larger, smaller, logits.max(1, keepdims=True, initial=-np.inf), np.log(volumes)[:, None])
    features = np.zeros((len(regions) + 1, feature_count(logits.shape[1])), np.float32)
    features[:-1, :-1] = np.concatenate(columns, axis=1)
    features[-1, -1] = 1.0
    return features


def _sigmoid(logits: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-logits)), np.float32)
