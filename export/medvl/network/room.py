"""How much may be kept of what is being tracked, all that goes on at a time together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Room:
    """Bytes that are free for what is kept for corrections while objects are tracked.

    It is one for all requests that run side by side, so that they take no more together than one alone.
    """

    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes

    @contextmanager
    def share(self) -> Iterator[Share]:
        """Return a share that is given back at the end, however that comes."""
        share = Share(self)
        try:
            yield share
        finally:
            share.give_back(share.taken_bytes)


class Share:
    """What one group of objects has taken of a room."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.taken_bytes = 0

    def take(self, size_bytes: int) -> bool:
        """Take so many bytes; False where they are not free."""
        free = size_bytes <= self._room.free_bytes
        if free:
            self._room.free_bytes -= size_bytes
            self.taken_bytes += size_bytes
        return free

    def give_back(self, size_bytes: int) -> None:
        """Free so many of the bytes that were taken."""
        self._room.free_bytes += size_bytes
        self.taken_bytes -= size_bytes
