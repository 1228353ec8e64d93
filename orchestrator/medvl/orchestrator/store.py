"""The series store: canonical volumes by digest, bounded in bytes.

A series that a request works on is leased and cannot be evicted, so the bound holds for all the voxels that the
process keeps, not only for those the store can still see. Windowed slices are not kept beside the voxels: the segmenter
asks for them only when it has lost its features, which is once in the life of a series as a rule, and they would take
the room of series that are in use.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

from medvl.contracts.errors import Overloaded, SeriesNotResident
from medvl.imaging.volume import Volume
from medvl.orchestrator.admission import Admission
from medvl.orchestrator.cache import KeyedLocks

_FULL_RETRY_S = 5.0
"""Delay told when every resident series is in use, in seconds: about one answer."""


@dataclass(frozen=True, slots=True)
class StoredSeries:
    """A resident series; ``upload_ms`` is what receiving it took, once."""

    digest: str
    volume: Volume
    upload_ms: float


@dataclass(slots=True)
class _Entry:
    series: StoredSeries
    size_bytes: int
    leases: int = 0


class Upload:
    """A reservation of the store for one series that is being received."""

    def __init__(self, digest: str, size_bytes: int) -> None:
        self.digest = digest
        self.size_bytes = size_bytes
        self._start_s = time.monotonic()
        self._series: StoredSeries | None = None

    def complete(self, volume: Volume) -> None:
        """Give the store the volume whose digest has been found to be right."""
        upload_ms = (time.monotonic() - self._start_s) * 1e3
        self._series = StoredSeries(self.digest, volume, upload_ms)

    @property
    def series(self) -> StoredSeries | None:
        """The series, once complete."""
        return self._series


class SeriesStore:
    """Series by digest, the least recently used evicted first. For use on one event loop.

    Parameters
    ----------
    max_bytes
        Voxels that are resident or being received, together.
    max_waiting
        Senders that may wait for others who send the same series, whichever that is.
    """

    def __init__(self, max_bytes: int, max_waiting: int) -> None:
        self._max_bytes = max_bytes
        self._waiting = Admission(max_waiting, 0)
        self._used_bytes = 0
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._uploading: KeyedLocks[str] = KeyedLocks()

    @property
    def used_bytes(self) -> int:
        """Voxels resident or being received, in bytes."""
        return self._used_bytes

    def __len__(self) -> int:
        return len(self._entries)

    def touch(self, digest: str) -> bool:
        """Return whether a series is resident; if so, it now counts as used."""
        if digest not in self._entries:
            return False
        self._entries.move_to_end(digest)
        return True

    @contextmanager
    def lease(self, digest: str) -> Iterator[StoredSeries]:
        """Hold a series for the length of a ``with`` block.

        Raises
        ------
        SeriesNotResident
            When it was never sent, or evicted since.
        """
        entry = self._entries.get(digest)
        if entry is None:
            raise SeriesNotResident(
                "The server does not hold this series: send it with PutSeries and repeat the request."
            )
        self._entries.move_to_end(digest)
        entry.leases += 1
        try:
            yield entry.series
        finally:
            entry.leases -= 1

    @asynccontextmanager
    async def turn(self, digest: str) -> AsyncIterator[bool]:
        """Be the only one to send a series for the length of a ``with`` block; gives whether it is resident already.

        Whoever is next learns that it is when the one before succeeded, and takes its place when that one failed.

        Raises
        ------
        Overloaded
            At once, when as many wait for others' uploads as may.
        """
        lock = self._uploading.of(digest)
        async with AsyncExitStack() as waiting:
            if lock.locked():
                await waiting.enter_async_context(self._waiting.admit())
            await lock.acquire()
        try:
            yield self.touch(digest)
        finally:
            lock.release()

    @contextmanager
    def upload(self, digest: str, size_bytes: int) -> Iterator[Upload]:
        """Reserve room for a series while it is received, in its :meth:`turn`.

        Leaving the block without :meth:`Upload.complete` gives the room back.

        Raises
        ------
        Overloaded
            When the series in use leave no room.
        """
        self._reserve(size_bytes)
        upload = Upload(digest, size_bytes)
        try:
            yield upload
        finally:
            self._settle(upload)

    def _settle(self, upload: Upload) -> None:
        if upload.series is None:
            self._used_bytes -= upload.size_bytes
        else:
            self._entries[upload.digest] = _Entry(upload.series, upload.size_bytes)

    def _reserve(self, size_bytes: int) -> None:
        free_bytes = self._max_bytes - self._used_bytes
        evictable = [d for d, e in self._entries.items() if not e.leases]
        if free_bytes + sum(self._entries[d].size_bytes for d in evictable) < size_bytes:
            raise Overloaded(
                "The series in use leave no room for another: try again later.", retry_after_s=_FULL_RETRY_S
            )
        for digest in evictable:
            if self._max_bytes - self._used_bytes >= size_bytes:
                break
            self._used_bytes -= self._entries.pop(digest).size_bytes
        self._used_bytes += size_bytes
