"""SAM2 features of slices, kept between requests and bounded in bytes.

A series' slices are stored when they arrive; a slice's features are computed when propagation first reaches it.
Features are about fifty times as large as their slice, so they go first, least recently used, and can always be
computed again; when the slices themselves do not fit, the series used least recently is forgotten, and whoever wants
it again has to send it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import numpy as np

from medvl.contracts.errors import Overloaded
from medvl.serving.pages import apart

RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class SeriesKey:
    """What the features of a series depend on."""

    series: str
    """Digest of the canonical volume."""
    window_hu: tuple[float, float]
    checkpoint: str
    """Digest of the checkpoint."""


@dataclass(frozen=True, slots=True)
class SliceFeatures:
    """What SAM2's image encoder says about one slice, FP32, each with a leading axis of length 1."""

    f0: np.ndarray
    f1: np.ndarray
    f2: np.ndarray

    @classmethod
    def apart(cls, f0: np.ndarray, f1: np.ndarray, f2: np.ndarray) -> Self:
        """Return copies, see :func:`medvl.serving.pages.apart`."""
        return cls(*apart(f0, f1, f2))

    @property
    def nbytes(self) -> int:
        """Bytes of the three maps."""
        return self.f0.nbytes + self.f1.nbytes + self.f2.nbytes


Encode = Callable[[np.ndarray], Awaitable[Sequence[SliceFeatures]]]
"""Computes the features of slices UINT8 [B, S, S], one entry per slice."""

_Slot = tuple[SeriesKey, int]


@dataclass(frozen=True, slots=True)
class Fetched:
    """Features of slices, in the order in which they were asked for."""

    features: list[SliceFeatures]
    computed: int
    """How many of them had to be computed for this call."""


class FeatureStore:
    """Features by series and slice; to be used from one event loop.

    Parameters
    ----------
    budget_bytes
        Slices and features together stay below it.
    batch
        Slices that one call of the encoder takes.
    """

    def __init__(self, encode: Encode, *, budget_bytes: int, batch: int) -> None:
        self._encode = encode
        self._budget_bytes = budget_bytes
        self._batch = batch
        self._series: OrderedDict[SeriesKey, np.ndarray] = OrderedDict()
        self._features: OrderedDict[_Slot, SliceFeatures] = OrderedDict()
        self._in_flight: dict[_Slot, asyncio.Future[dict[_Slot, SliceFeatures]]] = {}
        self._users: Counter[SeriesKey] = Counter()
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all slices and features."""
        return self._bytes

    def __contains__(self, key: SeriesKey) -> bool:
        """Whether the slices of a series are here."""
        return key in self._series

    def put(self, key: SeriesKey, slices: np.ndarray) -> None:
        """Keep a copy of the slices of a series, UINT8 [D, S, S], unless it is here already.

        Raises
        ------
        Overloaded
            When the series in use leave no room.
        """
        if key not in self._series:
            self._make_room(slices.nbytes)
            if self._bytes + slices.nbytes > self._budget_bytes:
                raise Overloaded(
                    "The segmenter has no room for another series: try again later.", retry_after_s=RETRY_S
                )
            (self._series[key],) = apart(slices)
            self._bytes += slices.nbytes

    @contextmanager
    def using(self, key: SeriesKey) -> Iterator[int]:
        """Keep a series that is here from being forgotten; gives its number of slices."""
        self._users[key] += 1
        self._series.move_to_end(key)
        try:
            yield len(self._series[key])
        finally:
            self._users[key] -= 1

    async def get(self, key: SeriesKey, indices: Sequence[int]) -> Fetched:
        """Return the features of slices of a series in use, computing those that are not here.

        Slices that another request is computing are waited for, not computed twice.
        """
        begun = self._begin_missing(key, indices)
        wanted = [(key, i) for i in dict.fromkeys(indices)]
        found = {slot: self._features[slot] for slot in wanted if slot in self._features}
        for slot in found:
            self._features.move_to_end(slot)
        flights = [self._in_flight[slot] for slot in wanted if slot not in found]
        for flight in dict.fromkeys(flights):
            found |= await asyncio.shield(flight)
        return Fetched([found[key, i] for i in indices], begun)

    def expect(self, key: SeriesKey, indices: Sequence[int]) -> int:
        """Begin to compute slices of a series in use that are not here; return how many they are.

        Where no features are kept at all, for want of room, nothing is begun: it would have to be done again.
        """
        return self._begin_missing(key, indices) if self._features else 0

    def _begin_missing(self, key: SeriesKey, indices: Sequence[int]) -> int:
        slots = [(key, i) for i in dict.fromkeys(indices)]
        missing = [slot for slot in slots if slot not in self._features and slot not in self._in_flight]
        for start in range(0, len(missing), self._batch):
            self._begin(missing[start : start + self._batch])
        return len(missing)

    def _begin(self, slots: Sequence[_Slot]) -> None:
        slices = np.stack([self._series[key][i] for key, i in slots])
        flight = asyncio.ensure_future(self._compute(slots, slices))
        # Nobody may ever wait for a slice that was begun ahead: whoever asks for one that failed begins it anew.
        flight.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._in_flight |= dict.fromkeys(slots, flight)

    async def _compute(self, slots: Sequence[_Slot], slices: np.ndarray) -> dict[_Slot, SliceFeatures]:
        try:
            computed = dict(zip(slots, await self._encode(slices), strict=True))
        finally:
            for slot in slots:
                del self._in_flight[slot]
        for slot, features in computed.items():
            self._make_room(features.nbytes)
            if self._bytes + features.nbytes <= self._budget_bytes:
                self._features[slot] = features
                self._bytes += features.nbytes
        return computed

    def _make_room(self, nbytes: int) -> None:
        """Forget features, then series that nobody uses, until so many bytes are free or nothing is left to forget."""
        limit = self._budget_bytes - nbytes
        while self._bytes > limit and self._features:
            _, features = self._features.popitem(last=False)
            self._bytes -= features.nbytes
        idle = [key for key in self._series if not self._users[key]]
        for key in idle:
            if self._bytes <= limit:
                break
            self._bytes -= self._series.pop(key).nbytes
