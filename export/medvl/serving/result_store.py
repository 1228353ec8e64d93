"""What earlier requests found, so that what has not changed costs nothing in the next one.

An answer follows from the series, the checkpoint, the prompts of its object and, for words, the regions that came with
them; other objects of a request only share its calls. So it may be given again whoever asks, whatever else the request
holds; and an object with one more correction may go on from what is known of it without that one.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Protocol, TypeVar

import numpy as np

from medvl.contracts.messages import ObjectMask, ObjectPrompts, SliceMask
from medvl.serving.feature_store import SeriesKey

Key = tuple[SeriesKey, str]

EVENT_BYTES, SCORE_BYTES = 2048, 96
"""About what an event takes in memory beside its mask, and each of its slice scores."""


@dataclass(frozen=True)
class Result:
    """The events of one object, each with its packed mask."""

    previews: tuple[tuple[SliceMask, bytes], ...]
    mask: tuple[ObjectMask, bytes]

    @cached_property
    def sha256(self) -> str:
        """Of its packed mask, in hexadecimal."""
        return hashlib.sha256(self.mask[1]).hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes that it takes, roughly: also what was not found takes some."""
        said, packed = self.mask
        masks = len(packed) + sum(len(preview) for _, preview in self.previews)
        return masks + EVENT_BYTES * (1 + len(self.previews)) + SCORE_BYTES * len(said.slice_scores)

    def events(self, object_id: int) -> tuple[tuple[SliceMask | ObjectMask, bytes], ...]:
        """Return its events under the number that a request gives its object."""
        events: tuple[tuple[SliceMask | ObjectMask, bytes], ...] = (*self.previews, self.mask)
        return tuple((said.model_copy(update={"object_id": object_id}), packed) for said, packed in events)


class Sized(Protocol):
    """Something that knows how large it is."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""


V = TypeVar("V", bound=Sized)


class BoundedStore(Generic[V]):
    """Values by series and prompts; those used least recently make room.

    Parameters
    ----------
    budget_bytes
        What is kept stays below it.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._values: OrderedDict[Key, V] = OrderedDict()
        self._bytes = 0

    def get(self, key: Key) -> V | None:
        """Return what was found for prompts on a series, None where that is not known any more."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: Key, value: V) -> None:
        """Keep a value in the place of an earlier one; one that is larger than the bound is not kept."""
        self._drop(key)
        if value.nbytes > self.budget_bytes:
            return
        self._values[key] = value
        self._bytes += value.nbytes
        while self._bytes > self.budget_bytes:
            self._drop(next(iter(self._values)))

    def of(self, series: SeriesKey) -> Iterator[V]:
        """Yield what is known of a series."""
        return (value for (own, _), value in self._values.items() if own == series)

    def _drop(self, key: Key) -> None:
        if key in self._values:
            self._bytes -= self._values.pop(key).nbytes


def result_key(
    series: SeriesKey,
    prompts: ObjectPrompts,
    states: np.ndarray | None,
    masks: np.ndarray,
    regions: np.ndarray | None = None,
    *,
    local: bool = False,
) -> Key:
    """Return what a result depends on: everything that prompts its object, whatever it is called.

    Parameters
    ----------
    local
        Whether it was tracked around its last correction only, which no exact answer may come from.
    states
        FP32 [n, H], the rows that ``prompts.seg_row`` counts.
    masks
        UINT8, the bytes that ``prompts.mask`` names.
    regions
        FP32 [G, n_region], which a state may mean.
    """
    told = prompts.model_copy(update={"object_id": 0, "seg_row": None, "mask": None, "earlier_sha256": None})
    digest = hashlib.sha256(told.to_bytes())
    for part in (
        b"" if prompts.seg_row is None or states is None else states[prompts.seg_row].tobytes(),
        b"" if prompts.mask is None else masks[prompts.mask.start :][: prompts.mask.length].tobytes(),
        b"" if prompts.seg_row is None or regions is None else regions.tobytes(),
    ):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return series, digest.hexdigest() + (" local" if local else "")
