"""Evaluation cases: phantoms that no training has seen, their objects, and volumes that show something else instead."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from medvl.contracts.errors import InvalidRequest
from medvl.embedded.phantom import make_phantom
from medvl.embedded.scanner import Protocol
from medvl.embedded.truth import Truth
from medvl.imaging.volume import Volume
from medvl.training.cases import FIRST_SEED

AIR_HU, WATER_HU = -1000, 0
_WATER_RADII = 0.32, 0.42
"""Of the water's ellipse, as shares of the rows and columns."""


class Condition(StrEnum):
    """What a subject is shown; its answers are judged against the case's truth whatever that is."""

    OWN = "own"
    EMPTY = "empty"
    """A cylinder of water in air."""
    SHUFFLED = "shuffled"
    """The voxels of another case."""


@dataclass(frozen=True, eq=False)
class Case:
    """A phantom and its truth, of which a subject sees the volume only.

    Attributes
    ----------
    labels
        uint8 [D, R, C], canonical.
    """

    seed: int
    volume: Volume
    labels: NDArray[np.uint8]
    truth: Truth

    @classmethod
    def make(cls, seed: int, protocol: Protocol | None = None) -> Case:
        """Return the phantom of a seed; the acquisition is that of training unless a protocol says otherwise."""
        phantom = make_phantom(seed, protocol)
        return cls(seed, Volume(phantom.hu, phantom.geometry), phantom.labels, phantom.truth)

    @property
    def name(self) -> str:
        """What records call it."""
        return str(self.seed)

    def organ(self, name: str) -> NDArray[np.bool_]:
        """Return the voxels of an organ, with those of the lesions inside it, bool [D, R, C]."""
        return np.isin(self.labels, self.truth.values_of(name))

    def findings(self, indices: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return the voxels of findings of the truth by index, bool [D, R, C]."""
        values = (self.truth.findings[i].value for i in indices)
        return np.isin(self.labels, [value for value in values if value is not None])


def held_out(first: int, count: int) -> range:
    """Return the seeds of an evaluation.

    Raises
    ------
    InvalidRequest
        When there are none, or one is a seed of training.
    """
    if first < 0 or count < 1:
        raise InvalidRequest("An evaluation needs a case: give a seed that is not negative and at least one case.")
    if first + count > FIRST_SEED:
        raise InvalidRequest(
            f"The seeds {first} to {first + count - 1} reach into those of training, which begin at {FIRST_SEED}: "
            "a figure on them would say nothing."
        )
    return range(first, first + count)


def partner(seed: int) -> int:
    """Return the seed of the case whose voxels stand in for those of ``seed``; held out as well."""
    return seed + 1 if seed + 1 < FIRST_SEED else seed - 1


def shown(own: Volume, condition: Condition, other: Volume | None = None) -> Volume:
    """Return what a subject sees; always on the case's own grid, so that prompts and masks mean the same places.

    Parameters
    ----------
    other
        Whose voxels are shown when the condition is to shuffle. They are laid on the case's grid from edge to edge,
        nearest neighbour: only the image is exchanged, neither extent nor prompt.
    """
    if condition is Condition.OWN:
        return own
    if condition is Condition.EMPTY:
        return Volume(_water(own.geometry.shape), own.geometry)
    assert other is not None
    return Volume(_stretched(other.hu, own.geometry.shape), own.geometry)


def _water(shape: tuple[int, int, int]) -> NDArray[np.int16]:
    _, rows, columns = shape
    row, column = np.ogrid[:rows, :columns]
    radii = zip((row, column), (rows, columns), _WATER_RADII, strict=True)
    squares = [((at + 0.5 - n / 2) / (radius * n)) ** 2 for at, n, radius in radii]
    plane = np.where(squares[0] + squares[1] < 1.0, WATER_HU, AIR_HU).astype(np.int16)
    return np.repeat(plane[None], shape[0], axis=0)


def _stretched(hu: NDArray[np.int16], shape: tuple[int, int, int]) -> NDArray[np.int16]:
    at = [((np.arange(n) + 0.5) * (m / n)).astype(int) for n, m in zip(shape, hu.shape, strict=True)]
    return np.ascontiguousarray(hu[np.ix_(*at)])
