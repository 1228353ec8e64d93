"""What a mask can be cleaned of in 3D: parts beside its largest one, and holes.

Parts are joined by faces. Slices are labelled one at a time, twice, so that beside the result only the labels of two
slices and the numbers of the parts take memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

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
    chosen = roots == sizes.argmax()
    chosen[0] = False
    kept = np.empty_like(mask)
    for plane, labels in zip(kept, _labelled(mask), strict=True):
        plane[:] = chosen[labels]
    return kept


def filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask [D, R, C] with everything that it encloses on all sides."""
    roots, _ = _parts(_outside(mask))
    enclosed = roots != roots[1]
    whole = np.empty_like(mask)
    for plane, labels in zip(whole, islice(_labelled(_outside(mask)), 1, None), strict=False):
        plane[:] = enclosed[labels[1:-1, 1:-1]]
    return whole


def _outside(mask: NDArray[np.bool_]) -> Iterator[NDArray[np.bool_]]:
    """Yield the slices of what is not the mask, with one voxel more on every side, also above and below."""
    edge = np.ones((mask.shape[1] + 2, mask.shape[2] + 2), np.bool_)
    yield edge
    for plane in mask:
        yield np.pad(~plane, 1, constant_values=True)
    yield edge


def _labelled(planes: Iterable[NDArray[np.bool_]]) -> Iterator[NDArray[np.int32]]:
    """Yield slices with the connected parts of each numbered, from 1 on through all slices; 0 outside."""
    count = 0
    for plane in planes:
        found, own = cv2.connectedComponents(np.ascontiguousarray(plane).view(np.uint8), connectivity=4)
        yield np.where(own > 0, own + count, 0).astype(np.int32)
        count += found - 1


def _parts(planes: Iterable[NDArray[np.bool_]]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return for each number of a slice's part the least one that it is joined with, and the voxels of those."""
    parents, sizes = [0], [0]
    below = None
    for labels in _labelled(planes):
        counts = np.bincount(labels[labels > 0] - len(parents))
        parents.extend(range(len(parents), len(parents) + len(counts)))
        sizes.extend(counts.tolist())
        if below is not None:
            join(parents, below, labels)
        below = labels
    roots = np.array([root(parents, number) for number in range(len(parents))])
    return roots, np.bincount(roots, sizes, len(parents)).astype(np.intp)


def join(parents: list[int], below: NDArray[np.int32], labels: NDArray[np.int32]) -> None:
    """Join the parts of two neighbouring slices whose voxels share faces; the least number of several stands for all.

    Parameters
    ----------
    parents
        For each number one that it is joined with, or itself.
    below, labels
        INT32 [R, C], numbers of parts; 0 outside.
    """
    touching = (below > 0) & (labels > 0)
    for pair in np.unique(below[touching].astype(np.int64) << 32 | labels[touching]).tolist():
        first, second = sorted((root(parents, pair >> 32), root(parents, pair & 0xFFFFFFFF)))
        parents[second] = first


def root(parents: list[int], number: int) -> int:
    """Return the number that stands for all that one is joined with."""
    while parents[number] != number:
        parents[number] = number = parents[parents[number]]
    return number
