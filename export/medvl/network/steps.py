"""What propagation asks of its surroundings: networks that run somewhere, and features that live somewhere.

Propagation decides which array goes where and computes on none, so the same code drives torch modules in this process
and models behind a server. Arrays (type ``A``) are numpy arrays or torch tensors; features (type ``F``) are whatever
a :class:`FeatureSource` hands out and a :class:`Steps` takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from medvl.network.prompts import PromptPoint, SlicePrompt


class ArrayLike(Protocol):
    """What numpy arrays and torch tensors have in common, as far as propagation goes."""

    @property
    def shape(self) -> Any:  # noqa: ANN401 - a tuple of int, or torch.Size
        """Lengths of the axes."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, key: Any, /) -> Any:  # noqa: ANN401
        """Return rows; a list of int copies."""

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""

    def tolist(self) -> Any:  # noqa: ANN401
        """Return nested lists of numbers."""


A = TypeVar("A", bound=ArrayLike)
F = TypeVar("F")
F_contra = TypeVar("F_contra", contravariant=True)
F_co = TypeVar("F_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Decoded(Generic[A]):
    """What the mask heads say about N objects on a slice, FP32; the outputs of the contract, in its order."""

    mask_logits: A
    """[N, 1, f_4, f_4]; -1024 everywhere where the object is absent."""
    iou: A
    """[N, 1], predicted IoU."""
    object_pointer: A
    """[N, C]; ``no_obj_ptr`` where absent."""
    object_score: A
    """[N, 1], logit that the object is on the slice."""

    @property
    def masks(self) -> NDArray[np.bool_]:
        """Where the objects are, bool [N, f_4, f_4]."""
        return np.asarray(np.asarray(self.mask_logits)[:, 0] > 0)

    def astuple(self) -> tuple[A, A, A, A]:
        """Return the arrays in the order of the contract."""
        return self.mask_logits, self.iou, self.object_pointer, self.object_score

    def rows(self, indices: Sequence[int]) -> Decoded[A]:
        """Return some of the objects."""
        own = list(indices)
        return Decoded(*(array[own] for array in self.astuple()))


@dataclass(frozen=True, slots=True)
class Remembered(Generic[A]):
    """A slice on which N objects have been decoded, and its memory FP32 [N, HW, Cm]."""

    decoded: Decoded[A]
    memory: A

    def rows(self, indices: Sequence[int]) -> Self:
        """Return some of the objects."""
        return type(self)(self.decoded.rows(indices), self.memory[list(indices)])

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(array.nbytes for array in (*self.decoded.astuple(), self.memory))


@dataclass(frozen=True, slots=True)
class Bank(Generic[A]):
    """What a slice attends to: R memories and Q object pointers, in any order, the same for N objects."""

    memories: Sequence[A]
    """R arrays FP32 [N, HW, Cm]."""
    rows: Sequence[int]
    """R rows of the temporal table: 6 for a conditioning slice, distance - 1 for a tracked one."""
    pointers: Sequence[A]
    """Q arrays FP32 [N, C]."""
    distances: Sequence[float]
    """Q signed slice distances / (min(slices, 16) - 1)."""


class Steps(Protocol[F_contra, A]):
    """The networks of SAM2, wherever they run."""

    async def decode(self, features: Sequence[F_contra], prompts: Sequence[SlicePrompt]) -> Decoded[A]:
        """Decode prompts without memory, each on the slice whose features stand at its place; N prompts."""

    async def given(self, features: F_contra, masks: Sequence[NDArray[np.bool_]]) -> Remembered[A]:
        """Take masks bool [S, S] of N objects for what is on one slice."""

    async def remember(self, features: F_contra, mask_logits: A, object_score: A) -> A:
        """Return the memory [N, HW, Cm] of N objects on one slice."""

    async def track(self, features: F_contra, bank: Bank[A]) -> Remembered[A]:
        """Track N objects onto one slice."""

    async def correct(
        self, features: F_contra, bank: Bank[A], points: Sequence[tuple[PromptPoint, ...]], mask_logits: A
    ) -> Remembered[A]:
        """Track N objects onto one slice with points that correct their last masks there, [N, 1, f_4, f_4]."""


class FeatureSource(Protocol[F_co]):
    """The slices of one volume as SAM2 sees them; computes features when they are first asked for."""

    async def get(self, slices: Sequence[int]) -> Sequence[F_co]:
        """Return the features of slices, in that order."""

    def expect(self, slices: Sequence[int]) -> None:
        """Learn which slices will be asked for next, so that they may be computed meanwhile."""
