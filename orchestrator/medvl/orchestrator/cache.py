"""Two small helpers around caches: a bound in bytes, and one computation at a time for each key."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

K = TypeVar("K", bound=Hashable)


class ArrayCache(Generic[K]):
    """The most recently used arrays, bounded in bytes; an array above the bound is not kept."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._arrays: OrderedDict[K, NDArray[Any]] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._bytes

    def get(self, key: K) -> NDArray[Any] | None:
        """Return the array of a key, or None."""
        array = self._arrays.get(key)
        if array is not None:
            self._arrays.move_to_end(key)
        return array

    def put(self, key: K, array: NDArray[Any]) -> None:
        """Keep an array; the least recently used make room."""
        self._drop(key)
        while self._arrays and self._bytes + array.nbytes > self._max_bytes:
            self._drop(next(iter(self._arrays)))
        if array.nbytes <= self._max_bytes:
            self._arrays[key] = array
            self._bytes += array.nbytes

    def _drop(self, key: K) -> None:
        array = self._arrays.pop(key, np.empty(0))
        self._bytes -= array.nbytes


class KeyedLocks(Generic[K]):
    """A lock for each key that anybody holds or waits for.

    Whoever gets the lock looks first whether the one before has done the work: when that one failed or was cancelled,
    the next does it itself, so nobody inherits another's cancellation.
    """

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[K, asyncio.Lock] = WeakValueDictionary()

    def of(self, key: K) -> asyncio.Lock:
        """Return the lock of a key, for ``async with``."""
        return self._locks.setdefault(key, asyncio.Lock())
