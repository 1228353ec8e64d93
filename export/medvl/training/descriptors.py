"""What a [SEG] state has to say of an object, as numbers: its kind, whether it is there, and where.

While the language model still learns, SAM2 is prompted with a descriptor of the truth through a small teacher network;
later the [SEG] states are taught to say the same (:mod:`medvl.training.language`). So both can be trained side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from medvl.embedded.anatomy import ORGANS
from numpy.typing import NDArray
from torch import Tensor, nn

from medvl.embedded.truth import Finding, FindingKind
from medvl.training.cases import Case

KIND_NAMES: tuple[str, ...] = (*ORGANS, *FindingKind)
"""Organs and kinds of findings, in the order of a descriptor's first numbers."""
LENGTH = len(KIND_NAMES) + 8
"""Of a descriptor: kinds one-hot, present, placed, centre (3), half extent (3)."""
_PLACE_NOISE = 0.02
"""Spread of the error of a place that a language model is likely to make, as a share of the volume's extents."""


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


def targets(case: Case) -> tuple[Target, ...]:
    """Return everything in a case that has voxels: organs with the lesions inside them, and findings."""
    boxes = _boxes(case.labels)
    names = {name: value for value, name in case.truth.names.items()}
    found = []
    for organ in ORGANS:
        values = tuple(v for v in (names[organ], *_inside(case, organ)) if v in boxes)
        if values:
            found.append(Target(organ, values, is_finding=False, place=_place(values, boxes, case.labels.shape)))
    for finding in case.truth.findings:
        if finding.value in boxes:
            found.append(finding_target(case, finding, boxes))
    return tuple(found)


def finding_target(case: Case, finding: Finding, boxes: dict[int, NDArray[np.intp]] | None = None) -> Target:
    """Return the target of a finding with voxels of its own."""
    assert finding.value is not None
    values = (finding.value,)
    place = _place(values, boxes or _boxes(case.labels), case.labels.shape)
    return Target(str(finding.kind), values, is_finding=True, place=place)


def absent(kind: str) -> Target:
    """Return the target of something that is not there."""
    return Target(kind, (), is_finding=kind not in ORGANS, place=None)


def descriptor(target: Target, rng: np.random.Generator, *, placed: bool) -> NDArray[np.float32]:
    """Return the numbers FP32 [LENGTH]; the place, if it is told, with the error of one who guesses it."""
    numbers = np.zeros(LENGTH, np.float32)
    numbers[KIND_NAMES.index(target.kind)] = 1.0
    if target.place is not None:
        numbers[-8] = 1.0
        if placed:
            numbers[-7] = 1.0
            numbers[-6:-3] = np.array(target.place.centre) + rng.normal(0.0, _PLACE_NOISE, 3)
            numbers[-3:] = np.array(target.place.half_extent) * rng.lognormal(0.0, 0.15, 3)
    return numbers


class Teacher(nn.Sequential):
    """Descriptors FP32 [N, LENGTH] to the language token [N, C] of SAM2's mask decoder; not part of a checkpoint."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Linear(LENGTH, 4 * channels), nn.ReLU(), nn.Linear(4 * channels, channels))

    def forward(self, descriptors: Tensor) -> Tensor:
        """Return the tokens; places are spread to the size of the other numbers."""
        scale = torch.ones(LENGTH)
        scale[-6:] = 4.0
        token: Tensor = super().forward(descriptors * scale)
        return token


def _inside(case: Case, organ: str) -> tuple[int, ...]:
    """Return the values of the lesions that belong to an organ's mask."""
    if organ == "body":
        return tuple(case.truth.names)
    outside = {FindingKind.PLEURAL_EFFUSION, FindingKind.PNEUMOTHORAX}
    return tuple(
        f.value for f in case.truth.findings if f.organ == organ and f.value is not None and f.kind not in outside
    )


def _boxes(labels: NDArray[np.uint8]) -> dict[int, NDArray[np.intp]]:
    """Return first and last index (2 x 3) of every value but 0, from one pass over each axis."""
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
    boxes = {int(v): np.zeros((2, 3), np.intp) for v in present if v}
    for axis in range(3):
        planes = np.moveaxis(labels, axis, 0)
        counts = np.stack([np.bincount(p.ravel(), minlength=256) > 0 for p in planes])
        for value, box in boxes.items():
            at = np.flatnonzero(counts[:, value])
            box[:, axis] = at[0], at[-1]
    return boxes


def _place(values: tuple[int, ...], boxes: dict[int, NDArray[np.intp]], shape: tuple[int, ...]) -> Place:
    first = np.min([boxes[v][0] for v in values], axis=0)
    last = np.max([boxes[v][1] for v in values], axis=0) + 1
    centre, half = (first + last) / 2 / np.array(shape), (last - first) / 2 / np.array(shape)
    return Place((centre[0], centre[1], centre[2]), (half[0], half[1], half[2]))
