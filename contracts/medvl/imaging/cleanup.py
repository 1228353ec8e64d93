"""What a mask can be cleaned of in 3D: parts beside its largest one, and holes.

Parts are joined by faces. Slices are labelled one at a time, so that a large volume costs no memory of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Cleanup:
    """What to do, in this order.

    Attributes
    ----------
    largest_component
        Keep the largest part only.
    fill_holes
        Fill what is enclosed on all sides; a cavity that reaches the edge of the volume is none.
    """

    largest_component: bool = False
    fill_holes: bool = False

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return self.largest_component or self.fill_holes

    def __call__(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return a mask bool [D, R, C] cleaned."""
        cleaned = largest_component(mask) if self.largest_component else mask
        return filled(cleaned) if self.fill_holes else cleaned


NO_CLEANUP = Cleanup()


def largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the largest part of a mask [D, R, C] whose voxels share faces; the first of equals."""
    roots, sizes = _parts(mask)
    if not sizes.any():
        return np.zeros_like(mask)
    return _where(mask, roots == sizes.argmax())


def filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask [D, R, C] with everything that it encloses on all sides."""
    outside = np.pad(~mask, 1, constant_values=True)
    roots, _ = _parts(outside)
    return ~_where(outside, roots == roots[1])[1:-1, 1:-1, 1:-1]


def _planes(mask: NDArray[np.bool_]) -> Iterator[NDArray[np.int32]]:
    """Yield the slices with the connected parts of each numbered, from 1 on through all slices; 0 outside."""
    count = 0
    for plane in mask:
        found, own = cv2.connectedComponents(np.ascontiguousarray(plane).view(np.uint8), connectivity=4)
        yield np.where(own > 0, own + count, 0).astype(np.int32)
        count += found - 1


def _parts(mask: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return for each number of a slice's part the least one that it is joined with, and the voxels of those."""
    parents, sizes = [0], [0]
    below = np.zeros(mask.shape[1:], np.int32)
    for labels in _planes(mask):
        counts = np.bincount(labels.ravel())[len(parents) :]
        parents.extend(range(len(parents), len(parents) + len(counts)))
        sizes.extend(counts.tolist())
        touching = (below > 0) & (labels > 0)
        for pair in np.unique(below[touching].astype(np.int64) << 32 | labels[touching]).tolist():
            first, second = sorted((_root(parents, pair >> 32), _root(parents, pair & 0xFFFFFFFF)))
            parents[second] = first
        below = labels
    roots = np.array([_root(parents, number) for number in range(len(parents))])
    return roots, np.bincount(roots, sizes, len(parents)).astype(np.intp)


def _root(parents: list[int], number: int) -> int:
    while parents[number] != number:
        parents[number] = number = parents[parents[number]]
    return number


def _where(mask: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the voxels of a mask whose part is among the chosen ones."""
    chosen[0] = False
    return np.stack([chosen[labels] for labels in _planes(mask)])
