"""Masks of one object, bit-packed slice by slice while they are found: a sixty-fourth of their logits' memory."""

from __future__ import annotations

import numpy as np

from medvl.imaging.masks import pack_mask
from medvl.imaging.resample import FitTransform


class MaskVolume:
    """A mask [D, R, C] of which most slices are empty.

    Parameters
    ----------
    depth
        Slices of the canonical volume.
    transform
        How its slices lie in SAM2's square.
    """

    def __init__(self, depth: int, transform: FitTransform) -> None:
        self._depth = depth
        self._transform = transform
        self._slices: dict[int, np.ndarray] = {}

    def put(self, number: int, mask_logits: np.ndarray) -> None:
        """Set a slice from its low-resolution logits FP32 [f_4, f_4]."""
        mask = slice_mask(mask_logits, self._transform)
        if mask.any():
            self._slices[number] = np.packbits(mask)
        else:
            self._slices.pop(number, None)

    @property
    def empty(self) -> bool:
        """Whether no slice holds a voxel."""
        return not self._slices

    def pack(self) -> bytes:
        """Return the whole mask as it travels."""
        rows, cols = self._transform.rows, self._transform.cols
        mask = np.zeros((self._depth, rows, cols), bool)
        for number, bits in self._slices.items():
            mask[number] = np.unpackbits(bits, count=rows * cols).view(bool).reshape(rows, cols)
        return pack_mask(mask)


def slice_mask(mask_logits: np.ndarray, transform: FitTransform) -> np.ndarray:
    """Return the mask bool [R, C] of low-resolution logits FP32 [f_4, f_4], interpolated as logits, then cut at 0."""
    inside: np.ndarray = transform.to_source(mask_logits) > 0
    return inside
