"""The volumetric segmenter behind Triton: prompts on a series to masks, its slices sent only when it lacks them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from medvl.contracts.checkpoint import HuRange, SegmentationSpec
from medvl.contracts.errors import BackendUnavailable, InternalError, SeriesTooLarge
from medvl.contracts.messages import (
    NotResident,
    ObjectMask,
    ObjectPrompts,
    Progress,
    SegmenterDone,
    SegmenterEvent,
    SegmenterRequest,
    SliceMask,
    parse_event,
)
from medvl.imaging.resample import fit_slices
from medvl.imaging.windows import Window, to_uint8
from medvl.orchestrator.calls import Call
from medvl.orchestrator.encoding import MAX_REQUEST_BYTES, Late, Tensors
from medvl.orchestrator.store import StoredSeries
from medvl.orchestrator.work import Work

MODEL = "volume_segmenter"
MAX_SLICES_BYTES = MAX_REQUEST_BYTES - 2**24
"""16 MiB of a request are left for its other inputs."""


@dataclass(frozen=True, slots=True)
class SegmenterReply:
    """One event of the segmenter; ``packed`` is its mask as :mod:`medvl.imaging.masks` packs it, or empty."""

    event: SliceMask | Progress | ObjectMask
    packed: bytes


@dataclass(frozen=True, slots=True, eq=False)
class PromptedObjects:
    """Objects that are segmented together because they look through one window; equal only to itself.

    Attributes
    ----------
    window
        Name of the window of the slices.
    objects
        Their prompts; ``seg_row`` counts rows of ``seg_hidden``.
    seg_hidden
        float32 [n_seg, H], or None when language prompts no object.
    regions
        float32 [G, n_region] of the series, which language may mean.
    masks
        Packed masks that ``objects`` name by their bytes.
    local
        Whether tracking may stay around the last correction.
    """

    window: str
    objects: tuple[ObjectPrompts, ...]
    seg_hidden: NDArray[Any] | None = None
    regions: NDArray[Any] | None = None
    masks: bytes = b""
    local: bool = False


class _SlicesWanted(Exception):
    """The segmenter does not hold the slices of the series."""


async def segment(work: Work, prompted: PromptedObjects) -> AsyncGenerator[SegmenterReply, None]:
    """Segment objects that share a window; close the iterator to stop it on the server.

    One request at a time sends the slices of a series and window; the others wait for the segmenter's first event to
    it, and ask again.

    Raises
    ------
    SeriesTooLarge
        When its slices do not fit into a request.
    MedvlError
        As :meth:`medvl.orchestrator.triton.Triton.stream`; BackendUnavailable when the answer stops before its end, or
        is of other weights than those that are served.
    """
    _check_size(work.series, work.checkpoint.segmentation)
    window_hu = work.checkpoint.windows[prompted.window]
    inputs = _inputs(work.series, prompted, window_hu)
    key = (work.series.digest, window_hu, work.checkpoint.digest)
    while True:
        try:
            async with aclosing(_attempt(work, inputs)) as replies:
                async for reply in replies:
                    yield reply
            return
        except _SlicesWanted:
            if not await work.sending_slices.ended(key):
                break
    with work.sending_slices.at(key) as arrived:
        slices = partial(_slices, work.series, window_hu, work.checkpoint.segmentation)
        async with aclosing(_attempt(work, inputs, slices)) as replies:
            async for reply in replies:
                arrived()
                yield reply


async def _attempt(work: Work, inputs: Tensors, slices: Late | None = None) -> AsyncGenerator[SegmenterReply, None]:
    done = wanted = False
    async with aclosing(work.triton.stream(MODEL, inputs, work.call, slices)) as responses:
        async for response in responses:
            event = _event(response)
            match event:
                case NotResident():
                    wanted = True
                case SegmenterDone():
                    work.confirm(MODEL, event.weights)
                    _record(work.call, event)
                    done = True
                case _:
                    packed = response.get("mask")
                    yield SegmenterReply(event, b"" if packed is None else packed.tobytes())
    if wanted and slices is None:
        raise _SlicesWanted
    if not done:
        raise BackendUnavailable("The segmenter ended its answer early: try again.")


def _check_size(series: StoredSeries, spec: SegmentationSpec) -> None:
    slices, _, _ = series.volume.geometry.shape
    most = MAX_SLICES_BYTES // spec.side**2
    if slices > most:
        raise SeriesTooLarge(f"The series has {slices} slices: of this checkpoint the segmenter takes {most} at most.")


def _inputs(series: StoredSeries, prompted: PromptedObjects, window_hu: HuRange) -> dict[str, NDArray[Any]]:
    request = SegmenterRequest(
        series=series.digest,
        window_hu=window_hu,
        shape=series.volume.geometry.shape,
        objects=prompted.objects,
        local=prompted.local,
    )
    inputs: dict[str, NDArray[Any]] = {"request": np.frombuffer(request.to_bytes(), np.uint8)}
    if prompted.seg_hidden is not None:
        inputs["seg_hidden"] = prompted.seg_hidden
    if prompted.regions is not None:
        inputs["regions"] = prompted.regions
    if prompted.masks:
        inputs["masks"] = np.frombuffer(prompted.masks, np.uint8)
    return inputs


def _slices(series: StoredSeries, window_hu: HuRange, spec: SegmentationSpec) -> Tensors:
    """Return the windowed slices as the segmenter takes them: uint8 [D, S, S]."""
    return {"slices": fit_slices(to_uint8(series.volume.hu, Window(*window_hu)), spec.side, spec.fit)}


def _event(response: Mapping[str, NDArray[Any]]) -> SegmenterEvent:
    try:
        return parse_event(response["event"].tobytes())
    except (KeyError, ValidationError):
        raise InternalError("An event of the segmenter breaks its contract.") from None


def _record(call: Call, done: SegmenterDone) -> None:
    """Add what the segmenter says of its own time to the stages."""
    call.stages.add("segmenter_encode", done.encode_ms)
    call.stages.add("segmenter_decode", done.decode_ms)
    call.stages.add("segmenter_track", done.track_ms)
    call.stages.add("segmenter_total", done.total_ms)
