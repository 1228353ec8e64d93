"""What the segmenter refuses before a network runs, each with one sentence."""

from __future__ import annotations

from collections import Counter

import numpy as np

from medvl.contracts.checkpoint import Checkpoint
from medvl.contracts.errors import InvalidRequest, PromptOutsideVolume
from medvl.contracts.messages import (
    BoxPrompt,
    ObjectPrompts,
    PointPrompt,
    SegmenterRequest,
    check_box_per_slice,
    check_points_per_slice,
)
from medvl.network.region_choice import region_numbers


def check_request(
    request: SegmenterRequest,
    checkpoint: Checkpoint,
    slices: np.ndarray | None,
    seg_hidden: np.ndarray | None,
    masks: np.ndarray | None,
    *,
    regions: np.ndarray | None = None,
) -> None:
    """Check a request of ``volume_segmenter`` whose tensors have the right dtype and rank.

    Raises
    ------
    InvalidRequest
        On no objects, an object twice, without prompts or with too many points on a slice, a box of zero size, or
        tensors that do not fit the request.
    PromptOutsideVolume
        On a point or box that does not touch the volume.
    """
    if min(request.shape) < 1 or not request.objects:
        raise InvalidRequest("The request has an empty volume or no objects.")
    _check_slices(request, checkpoint.segmentation.side, slices)
    _check_states(request, checkpoint.language.hidden_size, seg_hidden)
    _check_regions(checkpoint, regions)
    for object_id, times in Counter(o.object_id for o in request.objects).items():
        if times > 1:
            raise InvalidRequest(f"Object {object_id} is described {times} times: give all its prompts at once.")
    for prompts in request.objects:
        _check_object(prompts, request.shape)
        given, known = prompts.mask, 0 if masks is None else len(masks)
        if given is not None and given.start + given.length > known:
            raise InvalidRequest(f"Object {prompts.object_id} names bytes beyond the {known} of tensor masks.")


def _check_slices(request: SegmenterRequest, side: int, slices: np.ndarray | None) -> None:
    wanted = (request.shape[0], side, side)
    if slices is not None and slices.shape != wanted:
        raise InvalidRequest(f"Tensor slices should be {list(wanted)} but is {list(slices.shape)}.")


def _check_states(request: SegmenterRequest, width: int, states: np.ndarray | None) -> None:
    count = 0 if states is None else len(states)
    if states is not None and (states.shape[1] != width or not np.isfinite(states).all()):
        raise InvalidRequest(f"Tensor seg_hidden should hold finite rows of {width} values.")
    for row in (o.seg_row for o in request.objects if o.seg_row is not None):
        if not 0 <= row < count:
            raise InvalidRequest(f"An object names row {row} of seg_hidden, which has {count}.")


def _check_regions(checkpoint: Checkpoint, regions: np.ndarray | None) -> None:
    width = region_numbers(checkpoint.vision)
    if regions is not None and (regions.shape[1] != width or not np.isfinite(regions).all()):
        raise InvalidRequest(f"Tensor regions should hold finite rows of {width} values.")


def _check_object(prompts: ObjectPrompts, shape: tuple[int, int, int]) -> None:
    first = prompts.before(1)
    if not first.points and not first.boxes and first.mask is None and first.seg_row is None:
        raise InvalidRequest(f"Object {prompts.object_id} has no prompt: give a point, a box, a mask or a text.")
    for point in prompts.points:
        _check_point(point, shape)
    for box in prompts.boxes:
        _check_box(box, shape)
    check_box_per_slice(prompts.object_id, prompts.boxes)
    check_points_per_slice(prompts.object_id, prompts.points, prompts.boxes)


def _check_point(point: PointPrompt, shape: tuple[int, int, int]) -> None:
    depth, rows, columns = shape
    if not (0 <= point.slice < depth and -0.5 <= point.row <= rows - 0.5 and -0.5 <= point.column <= columns - 0.5):
        raise PromptOutsideVolume(f"A point lies outside the volume of {depth} slices of {rows} x {columns} voxels.")


def _check_box(box: BoxPrompt, shape: tuple[int, int, int]) -> None:
    depth, rows, columns = shape
    if not (box.row_min < box.row_max and box.column_min < box.column_max):
        raise InvalidRequest("A box has zero size: give two different corners.")
    if not box.first_slice <= box.slice <= box.last_slice:
        raise InvalidRequest("The prompted slice of a box lies outside its first and last slice.")
    inside = (
        box.row_max > -0.5 and box.row_min < rows - 0.5 and box.column_max > -0.5 and box.column_min < columns - 0.5
    )
    if not (0 <= box.slice < depth and inside):
        raise PromptOutsideVolume(f"A box lies outside the volume of {depth} slices of {rows} x {columns} voxels.")
