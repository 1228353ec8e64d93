"""Prompts in voxels of the canonical grid as prompts in the pixels of SAM2's slices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from medvl.contracts.messages import BoxPrompt, ObjectPrompts, PointPrompt, check_given_slices
from medvl.imaging.masks import packed_slices, unpack_mask
from medvl.imaging.resample import FitTransform
from medvl.network.prompts import BOX_FIRST, BOX_SECOND, NEGATIVE, POSITIVE, ObjectPrompt, PromptPoint

T = TypeVar("T")


class SliceMap(Mapping[int, NDArray[np.bool_]], Generic[T]):
    """Masks by slice, made anew of something smaller whenever one is asked for.

    Parameters
    ----------
    sources
        What each is made of.
    make
        Makes it.
    """

    def __init__(self, sources: Mapping[int, T], make: Callable[[T], NDArray[np.bool_]]) -> None:
        self._sources = sources
        self._make = make

    def __getitem__(self, number: int) -> NDArray[np.bool_]:
        """Return the mask of a slice."""
        return self._make(self._sources[number])

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers of the slices."""
        return iter(self._sources)

    def __len__(self) -> int:
        """Return how many slices have a mask."""
        return len(self._sources)


def to_model_prompt(
    prompts: ObjectPrompts,
    transform: FitTransform,
    seg_hidden: np.ndarray | None = None,
    masks: Mapping[int, NDArray[np.bool_]] = MappingProxyType({}),
) -> ObjectPrompt:
    """Return one object's prompts as propagation takes them.

    Parameters
    ----------
    prompts
        Points and boxes in voxel indices (slice, row, column).
    transform
        How a slice lies in SAM2's square.
    seg_hidden
        FP32 [n, H]: the states that ``prompts.seg_row`` counts, None without any.
    masks
        bool [R, C] by slice: what ``prompts.mask`` holds. Each is fitted to SAM2's square when it is reached.
    """
    rounds: dict[int, dict[int, tuple[PromptPoint, ...]]] = {number: {} for number in (0, *prompts.corrections)}
    # SAM2 sees a box before the points of its slice.
    for box in prompts.boxes:
        rounds[0][box.slice] = _corners(box, transform)
    for point in prompts.points:
        told = rounds[point.correction]
        told[point.slice] = (*told.get(point.slice, ()), _point(point, transform))
    points, *corrections = rounds.values()
    first, last = _extent(prompts)
    row = prompts.seg_row
    state = None if row is None or seg_hidden is None else seg_hidden[row]
    fitted = SliceMap(masks, transform.mask_to_model)
    return ObjectPrompt(prompts.object_id, points, state, first, last, fitted, tuple(corrections))


def given_slices(
    objects: Iterable[ObjectPrompts], shape: tuple[int, int, int], masks: np.ndarray
) -> dict[int, dict[int, bytes]]:
    """Return by object the slices on which a mask that somebody gave has a voxel, each packed as a mask [1, R, C].

    Work for a thread: masks are unpacked one after another, and the bits of one are held meanwhile.

    Parameters
    ----------
    objects
        Those without a mask have no slice.
    shape
        D, R, C of the volume.
    masks
        UINT8 [n_masks], the bytes that the objects name.

    Raises
    ------
    InvalidRequest
        When the bytes of an object are no mask of that shape, and as
        :func:`medvl.contracts.messages.check_given_slices`.
    """
    found: dict[int, dict[int, bytes]] = {}
    count = 0
    for one in objects:
        found[one.object_id] = {}
        if given := one.mask:
            packed = masks[given.start : given.start + given.length].tobytes()
            found[one.object_id] = packed_slices(packed, shape)
            count = check_given_slices(one.object_id, len(found[one.object_id]), count)
    return found


def unpacked(slices: Mapping[int, bytes], shape: tuple[int, int, int]) -> SliceMap[bytes]:
    """Return slices that :func:`given_slices` found, bool [R, C], unpacked when they are reached."""
    return SliceMap(slices, lambda packed: unpack_mask(packed, (1, *shape[1:]))[0])


def _extent(prompts: ObjectPrompts) -> tuple[int | None, int | None]:
    """Return the slices that an object's boxes confine it to."""
    if not prompts.boxes:
        return None, None
    return min(b.first_slice for b in prompts.boxes), max(b.last_slice for b in prompts.boxes)


def _corners(box: BoxPrompt, transform: FitTransform) -> tuple[PromptPoint, ...]:
    corners = ((box.column_min, box.row_min), (box.column_max, box.row_max))
    (x0, y0), (x1, y1) = transform.to_model_xy(np.array(corners)).tolist()
    return PromptPoint(x0, y0, BOX_FIRST), PromptPoint(x1, y1, BOX_SECOND)


def _point(point: PointPrompt, transform: FitTransform) -> PromptPoint:
    x, y = transform.to_model_xy(np.array((point.column, point.row))).tolist()
    return PromptPoint(x, y, POSITIVE if point.positive else NEGATIVE)
