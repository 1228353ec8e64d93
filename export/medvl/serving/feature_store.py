"""SAM2 features of slices, kept between requests and bounded in bytes.

A series' slices are stored when they arrive; a slice's features are computed when propagation first reaches it.
Where room is needed, the series that was used least recently is forgotten, its features first: they can be computed
again, while its slices have to be sent again by whoever wants them. Only then do features of series in use go.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import numpy as np

from medvl.contracts.errors import Overloaded, SeriesTooLarge
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
        self._features: dict[SeriesKey, OrderedDict[int, SliceFeatures]] = {}
        self._in_flight: dict[tuple[SeriesKey, int], asyncio.Future[dict[int, SliceFeatures]]] = {}
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
        SeriesTooLarge
            When the store is smaller than the slices.
        Overloaded
            When the series in use leave no room.
        """
        if key not in self._series:
            if slices.nbytes > self._budget_bytes:
                raise SeriesTooLarge(
                    f"The slices of this series take {slices.nbytes} bytes, more than the {self._budget_bytes} of the "
                    "segmenter's store: raise MEDVL_SEGMENTER_STORE_BYTES."
                )
            self._make_room(slices.nbytes)
            if self._bytes + slices.nbytes > self._budget_bytes:
                raise Overloaded(
                    "The segmenter has no room for another series: try again later.", retry_after_s=RETRY_S
                )
            (self._series[key],) = apart(slices)
            self._features[key] = OrderedDict()
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
            if not self._users[key]:
                del self._users[key]

    def slice_of(self, key: SeriesKey, index: int) -> np.ndarray:
        """Return a slice UINT8 [S, S] of a series in use."""
        own: np.ndarray = self._series[key][index]
        return own

    async def get(self, key: SeriesKey, indices: Sequence[int]) -> Fetched:
        """Return the features of slices of a series in use, computing those that are not here.

        Slices that another request is computing are waited for, not computed twice.
        """
        begun, kept = self._begin_missing(key, indices), self._features[key]
        wanted = dict.fromkeys(indices)
        found = {i: kept[i] for i in wanted if i in kept}
        for i in found:
            kept.move_to_end(i)
        flights = [self._in_flight[key, i] for i in wanted if i not in found]
        for flight in dict.fromkeys(flights):
            found |= await asyncio.shield(flight)
        return Fetched([found[i] for i in indices], begun)

    def expect(self, key: SeriesKey, indices: Sequence[int]) -> int:
        """Begin to compute slices of a series in use that are not here; return how many they are.

        Where none of its features are kept, for want of room, nothing is begun: it would have to be done again.
        """
        return self._begin_missing(key, indices) if self._features[key] else 0

    def _begin_missing(self, key: SeriesKey, indices: Sequence[int]) -> int:
        kept = self._features[key]
        missing = [i for i in dict.fromkeys(indices) if i not in kept and (key, i) not in self._in_flight]
        for start in range(0, len(missing), self._batch):
            self._begin(key, missing[start : start + self._batch])
        return len(missing)

    def _begin(self, key: SeriesKey, indices: Sequence[int]) -> None:
        flight = asyncio.ensure_future(self._compute(key, indices, self._series[key][list(indices)]))
        # Nobody may ever wait for a slice that was begun ahead: whoever asks for one that failed begins it anew.
        flight.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._in_flight |= {(key, i): flight for i in indices}

    async def _compute(self, key: SeriesKey, indices: Sequence[int], slices: np.ndarray) -> dict[int, SliceFeatures]:
        try:
            computed = dict(zip(indices, await self._encode(slices), strict=True))
        finally:
            for i in indices:
                del self._in_flight[key, i]
        for i, features in computed.items():
            # What was begun ahead may end when its series has been forgotten.
            if key in self._series:
                self._keep(key, i, features)
        return computed

    def _keep(self, key: SeriesKey, index: int, features: SliceFeatures) -> None:
        self._make_room(features.nbytes)
        if key in self._series and self._bytes + features.nbytes <= self._budget_bytes:
            self._features[key][index] = features
            self._bytes += features.nbytes

    def _make_room(self, nbytes: int) -> None:
        """Forget until so many bytes are free, or nothing is left to forget."""
        limit = self._budget_bytes - nbytes
        for key in [key for key in self._series if not self._users[key]]:
            self._forget_features(key, limit)
            if self._bytes <= limit:
                return
            self._bytes -= self._series.pop(key).nbytes
            del self._features[key]
        # Series in use share what is left: the one that has most gives way.
        while self._bytes > limit and any(self._features.values()):
            self._forget_features(max(self._features, key=lambda key: len(self._features[key])), limit, most=1)

    def _forget_features(self, key: SeriesKey, limit: int, most: int | None = None) -> None:
        """Forget features of a series, used least recently first, down to a limit of all bytes."""
        kept = self._features[key]
        for i in list(kept)[:most]:
            if self._bytes <= limit:
                return
            self._bytes -= kept.pop(i).nbytes
