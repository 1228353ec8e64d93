"""Events of the segmenter as events of the wire: previews, progress, and masks with their measurements."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medvl.contracts.errors import InternalError
from medvl.contracts.messages import ObjectMask, Progress, SliceMask
from medvl.imaging.cleanup import NO_CLEANUP, Cleanup
from medvl.imaging.geometry import Geometry
from medvl.imaging.masks import MaskStats, measure, pack_mask, unpack_mask
from medvl.orchestrator.segmentation import PromptedObjects, SegmenterReply, segment
from medvl.orchestrator.transcript import Span
from medvl.orchestrator.work import Work
from medvl.wire.v1 import medvl_pb2 as pb


@dataclass(frozen=True, slots=True)
class Caption:
    """What a mask is called on the wire; ``span`` is the [SEG] of the text that it belongs to."""

    label: str = ""
    words: str = ""
    span: Span | None = None


async def emit_masks(
    work: Work,
    prompted: PromptedObjects,
    captions: Mapping[int, Caption],
    *,
    previews: bool,
    cleanup: Cleanup = NO_CLEANUP,
) -> None:
    """Segment objects of one window and emit what comes of it: one mask for each object.

    Parameters
    ----------
    captions
        What to call the mask of each object id.
    previews
        Whether to emit the 2D mask of each prompted slice, too.
    cleanup
        What to clean the masks of; they come back whole then.
    """
    with work.call.stages.measure("segment"):
        async with work.parts, aclosing(segment(work, prompted)) as replies:
            async for reply in replies:
                if not isinstance(reply.event, SliceMask) or previews:
                    await _emit(work, reply, prompted, captions, cleanup)


async def _emit(
    work: Work, reply: SegmenterReply, prompted: PromptedObjects, captions: Mapping[int, Caption], cleanup: Cleanup
) -> None:
    match reply.event:
        case Progress() as progress:
            await work.emitter.progress(pb.STAGE_SEGMENT, prompted, progress.slices_done, progress.slices_total)
        case SliceMask() as found:
            await work.emitter.emit(pb.Event(preview=_preview(found, reply.packed)))
        case ObjectMask() as found:
            if found.object_id not in captions:
                raise InternalError("The segmenter answered with an object that it was not asked for.")
            geometry = work.series.volume.geometry
            caption = captions[found.object_id]
            mask = await asyncio.to_thread(_mask, found, reply.packed, caption, geometry, cleanup)
            await work.emitter.emit(pb.Event(mask=mask))


def _preview(found: SliceMask, packed: bytes) -> pb.SlicePreview:
    return pb.SlicePreview(object=found.object_id, slice=found.slice, score=found.score, packed=packed)


def _mask(found: ObjectMask, packed: bytes, caption: Caption, geometry: Geometry, cleanup: Cleanup) -> pb.Mask:
    """Return the message of a mask; one without a voxel on the native grid counts as not found."""
    mask = pb.Mask(
        object=found.object_id,
        label=caption.label,
        prompt=caption.words,
        score=found.score,
        key_slices=found.key_slices,
        slice_scores=found.slice_scores,
        local=found.local,
    )
    if caption.span is not None:
        mask.span.CopyFrom(pb.TextSpan(start=caption.span.start, end=caption.span.end))
    if found.found:
        voxels = unpack_mask(packed, geometry.shape)
        cleaned = cleanup(voxels)
        measured = measure(cleaned, geometry)
        mask.found = measured.voxels > 0
        if cleanup:
            mask.cleaned.CopyFrom(_cleaned(voxels, cleaned, cleanup))
        if mask.found:
            mask.measurement.CopyFrom(_measurement(measured))
            mask.packed = pack_mask(cleaned) if cleanup else packed
        if found.changed is not None and not cleanup:
            low, high = found.changed.min, found.changed.max
            mask.changed.CopyFrom(pb.VoxelBox(min=low, max=high))
            mask.packed = pack_mask(voxels[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))])
    return mask


def _cleaned(before: NDArray[np.bool_], after: NDArray[np.bool_], cleanup: Cleanup) -> pb.Cleaned:
    return pb.Cleaned(
        cleanup=pb.Cleanup(largest_component=cleanup.largest_component, fill_holes=cleanup.fill_holes),
        removed_voxels=int(np.count_nonzero(before & ~after)),
        filled_voxels=int(np.count_nonzero(after & ~before)),
    )


def _measurement(measured: MaskStats) -> pb.Measurement:
    return pb.Measurement(
        voxels=measured.voxels,
        volume_mm3=measured.volume_mm3,
        diameter_mm=measured.diameter_mm,
        diameter_3d_mm=measured.diameter_3d_mm,
        centroid_lps_mm=measured.centroid_lps_mm,
        box_min=measured.box_min,
        box_max=measured.box_max,
    )
