"""What a [SEG] state has to say of an object, as numbers: its kind, whether it is there, and where.

While the language model still learns, SAM2 is prompted with a descriptor of the truth through a small teacher network;
later the [SEG] states are taught to say the same (:mod:`medvl.training.language`). So both can be trained side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medvl.embedded.anatomy import ORGANS
from medvl.embedded.parts import BODY
from medvl.embedded.truth import Finding, FindingKind, Truth

KIND_NAMES: tuple[str, ...] = (*ORGANS, *FindingKind)
"""Organs and kinds of findings, in the order of a descriptor's first numbers."""
KINDS, PRESENT, PLACED = slice(0, len(KIND_NAMES)), len(KIND_NAMES), len(KIND_NAMES) + 1
"""Numbers of a descriptor: kinds one-hot; whether it is there, and whether its place is told."""
CENTRE, HALF_EXTENT, PLACE = slice(PLACED + 1, PLACED + 4), slice(PLACED + 4, PLACED + 7), slice(PLACED + 1, PLACED + 7)
"""Those behind these: the centre (3) and the half extent (3), and both together."""
LENGTH = PLACED + 7
_PLACE_NOISE, _SIZE_NOISE = 0.02, 0.15
"""Spread of the errors that a language model is likely to make: of a centre as a share of the volume's extents, of a
half extent in its logarithm."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an object lies: shares of the volume's extents along slices, rows and columns."""

    centre: tuple[float, float, float]
    half_extent: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Target:
    """An object of a case that can be asked for; ``values`` of the label map make up its mask, none when absent."""

    kind: str
    values: tuple[int, ...]
    is_finding: bool
    place: Place | None


def targets(truth: Truth, places: Mapping[int, Place]) -> tuple[Target, ...]:
    """Return what can be asked for in a case and has voxels: organs with the lesions inside them, and findings.

    The body is left out: it is what an untrained network takes everything for, and nobody asks for it.
    """
    found = []
    for organ in (o for o in ORGANS if o != BODY):
        values = tuple(v for v in truth.values_of(organ) if v in places)
        if values:
            found.append(Target(organ, values, is_finding=False, place=_around([places[v] for v in values])))
    shown = (f for f in truth.findings if f.value in places)
    return (*found, *(finding_target(f, places) for f in shown))


def finding_target(finding: Finding, places: Mapping[int, Place]) -> Target:
    """Return the target of a finding with voxels of its own."""
    assert finding.value is not None
    return Target(str(finding.kind), (finding.value,), is_finding=True, place=places[finding.value])


def absent(kind: str) -> Target:
    """Return the target of something that is not there."""
    return Target(kind, (), is_finding=kind not in ORGANS, place=None)


def descriptor(target: Target, rng: np.random.Generator | None, *, placed: bool) -> NDArray[np.float32]:
    """Return the numbers FP32 [LENGTH]; the place with the error of one who guesses it where ``rng`` is given."""
    numbers = np.zeros(LENGTH, np.float32)
    numbers[KIND_NAMES.index(target.kind)] = 1.0
    if target.place is not None:
        numbers[PRESENT] = 1.0
        if placed:
            numbers[PLACED] = 1.0
            numbers[CENTRE], numbers[HALF_EXTENT] = target.place.centre, target.place.half_extent
            if rng is not None:
                numbers[CENTRE] += rng.normal(0.0, _PLACE_NOISE, 3)
                numbers[HALF_EXTENT] *= rng.lognormal(0.0, _SIZE_NOISE, 3)
    return numbers


class Teacher(nn.Sequential):
    """Descriptors FP32 [N, LENGTH] to the language token [N, C] of SAM2's mask decoder; not part of a checkpoint."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Linear(LENGTH, 4 * channels), nn.ReLU(), nn.Linear(4 * channels, channels))

    def forward(self, descriptors: Tensor) -> Tensor:
        """Return the tokens; places are spread to the size of the other numbers."""
        scale = torch.ones(LENGTH)
        scale[PLACE] = 4.0
        token: Tensor = super().forward(descriptors * scale)  # type: ignore[no-untyped-call]
        return token


def places(labels: NDArray[np.uint8]) -> dict[int, Place]:
    """Return where every value but 0 of a label map [D, R, C] lies, from one pass over each axis."""
    present = [int(v) for v in np.flatnonzero(np.bincount(labels.ravel(), minlength=256)) if v]
    ends = np.zeros((256, 2, 3))
    for axis, length in enumerate(labels.shape):
        planes = np.moveaxis(labels, axis, 0)
        there = np.stack([np.bincount(plane.ravel(), minlength=256) > 0 for plane in planes])
        for value in present:
            at = np.flatnonzero(there[:, value])
            ends[value, :, axis] = at[0] / length, (at[-1] + 1) / length
    return {value: _between(*ends[value]) for value in present}


def _around(parts: Sequence[Place]) -> Place:
    centres, halves = (np.array([getattr(p, name) for p in parts]) for name in ("centre", "half_extent"))
    return _between((centres - halves).min(0), (centres + halves).max(0))


def _between(first: NDArray[np.float64], last: NDArray[np.float64]) -> Place:
    centre, half = (first + last) / 2, (last - first) / 2
    return Place(tuple(centre.tolist()), tuple(half.tolist()))
