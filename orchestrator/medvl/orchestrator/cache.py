"""Small helpers around caches: a bound in bytes, and one computation, or one sending, at a time for each key."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar
from weakref import WeakValueDictionary


class Sized(Protocol):
    """What knows how large it is, as arrays do."""

    @property
    def nbytes(self) -> int:
        """Bytes."""


K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Sized)


class BoundedCache(Generic[K, V]):
    """The most recently used values, bounded in bytes; one above the bound is not kept."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._values: OrderedDict[K, V] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._bytes

    def get(self, key: K) -> V | None:
        """Return the value of a key, or None."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Keep a value, the least recently used make room; one that is larger than the bound is not kept."""
        self._drop(key)
        if value.nbytes > self._max_bytes:
            return
        self._values[key] = value
        self._bytes += value.nbytes
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._values)))

    def _drop(self, key: K) -> None:
        if (value := self._values.pop(key, None)) is not None:
            self._bytes -= value.nbytes


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


class UnderWay(Generic[K]):
    """What is being sent to somebody else who keeps it, by key: one sends for all, the rest wait and ask again.

    They ask side by side, as nobody holds a lock then. They learn only that a sending has ended: when it failed or was
    cancelled, the first of them to hear that nothing has arrived sends itself, so nobody inherits another's error.
    """

    def __init__(self) -> None:
        self._ends: dict[K, asyncio.Event] = {}

    async def ended(self, key: K) -> bool:
        """Wait for the end of a sending; return False at once where none is under way."""
        if (end := self._ends.get(key)) is None:
            return False
        await end.wait()
        return True

    @contextmanager
    def at(self, key: K) -> Iterator[Callable[[], None]]:
        """Send what nobody else is sending; gives what to call once it has arrived, or again later."""
        end = self._ends[key] = asyncio.Event()

        def arrived() -> None:
            if not end.is_set():
                del self._ends[key]
                end.set()

        try:
            yield arrived
        finally:
            arrived()
