"""Prompts in voxels of the canonical grid as prompts in the pixels of SAM2's slices."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from medvl.contracts.errors import InvalidRequest
from medvl.contracts.messages import BoxPrompt, ObjectPrompts, PointPrompt
from medvl.imaging.masks import unpack_mask
from medvl.imaging.resample import FitTransform
from medvl.network.prompts import BOX_FIRST, BOX_SECOND, NEGATIVE, POSITIVE, ObjectPrompt, PromptPoint


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
        bool [R, C] by slice: what ``prompts.mask`` holds.
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
    fitted = {number: transform.mask_to_model(mask) for number, mask in masks.items()}
    return ObjectPrompt(prompts.object_id, points, state, first, last, fitted, tuple(corrections))


def given_slices(
    prompts: ObjectPrompts, shape: tuple[int, int, int], masks: np.ndarray
) -> dict[int, NDArray[np.bool_]]:
    """Return the slices bool [R, C] on which a mask that somebody gave has a voxel.

    Raises
    ------
    InvalidRequest
        When its bytes are no mask of that shape, or it has no voxel at all.
    """
    given = prompts.mask
    if given is None:
        return {}
    mask = unpack_mask(masks[given.start : given.start + given.length].tobytes(), shape)
    found = {int(number): mask[number].copy() for number in np.flatnonzero(mask.any(axis=(1, 2)))}
    if not found:
        raise InvalidRequest(f"The mask of object {prompts.object_id} has no voxel: leave it out or mark the object.")
    return found


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
