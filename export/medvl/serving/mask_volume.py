"""Masks of one object, packed slice by slice while they are found, as they travel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medvl.imaging.masks import pack_bits, pack_mask, unpack_bits


class MaskVolume:
    """A mask [D, R, C] of which most slices are empty.

    Parameters
    ----------
    depth, rows, cols
        Lengths of its axes.
    """

    def __init__(self, depth: int, rows: int, cols: int) -> None:
        self._depth = depth
        self._rows = rows
        self._cols = cols
        self._slices: dict[int, bytes] = {}

    def put(self, number: int, mask: NDArray[np.bool_]) -> None:
        """Set a slice, bool [R, C]."""
        if mask.any():
            self._slices[number] = pack_mask(mask[None])
        else:
            self._slices.pop(number, None)

    @property
    def empty(self) -> bool:
        """Whether no slice holds a voxel."""
        return not self._slices

    def pack(self) -> bytes:
        """Return the whole mask as it travels; as bits, since as voxels it would take eight times the memory."""
        voxels = self._rows * self._cols
        bits = np.zeros(-(-self._depth * voxels // 8), np.uint8)
        for number, own in self._slices.items():
            first, shift = divmod(number * voxels, 8)
            plane = unpack_bits(own, (1, self._rows, self._cols))
            # A slice may begin within a byte, which then holds voxels of the one before.
            moved = np.packbits(np.pad(np.unpackbits(plane, count=voxels), (shift, 0))) if shift else plane
            bits[first : first + len(moved)] |= moved
        return pack_bits(bits)
