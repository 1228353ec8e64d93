"""What propagation finds, as the events that the segmenter sends."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medvl.contracts.messages import Message, ObjectMask, Progress, SliceMask
from medvl.imaging.masks import pack_mask
from medvl.network.slice_mask import SliceMasks
from medvl.serving.mask_volume import MaskVolume
from medvl.serving.result_store import Result

PROGRESS_INTERVAL_S = 0.1
"""Least time between two progress events."""

Send = Callable[[Message, bytes], None]
"""Sends one event with its packed mask, or with none."""


class Findings:
    """Collects the masks of one request and tells the caller as they come.

    Parameters
    ----------
    send
        Where events go.
    keep
        Gets everything that was said of an object when it has ended, under its number.
    given
        For each object of the request the masks bool [R, C] by slice that somebody gave and nothing corrects: they
        come back as they are, not as the network's resolution would have them.
    local
        Objects that are tracked around their last correction only.
    depth
        Slices of the canonical volume.
    masks
        Makes them of what the network says of slices.
    """

    def __init__(  # noqa: PLR0917 - whom it tells, and what it has to know
        self,
        send: Send,
        keep: Callable[[int, Result], None],
        given: Mapping[int, Mapping[int, NDArray[np.bool_]]],
        local: Collection[int],
        depth: int,
        masks: SliceMasks,
    ) -> None:
        self._send = send
        self._keep = keep
        self._given = given
        self._local = local
        self._slice_mask = masks
        lengths = depth, masks.transform.rows, masks.transform.cols
        self._masks = {object_id: MaskVolume(*lengths) for object_id in given}
        self._presence: dict[int, dict[int, float]] = {object_id: {} for object_id in self._masks}
        self._previews: dict[int, list[tuple[SliceMask, bytes]]] = {object_id: [] for object_id in self._masks}
        self._told_s = time.monotonic()

    def prompted(self, object_id: int, number: int, mask_logits: np.ndarray, score: float) -> None:
        """Send the mask of a prompted slice, low-resolution logits FP32 [f_4, f_4], at once."""
        packed = pack_mask(self._slice_mask(number, mask_logits)[None])
        event = SliceMask(object_id=object_id, slice=number, score=score)
        self._previews[object_id].append((event, packed))
        self._send(event, packed)

    def worked_on(self, object_id: int, number: int, mask_logits: np.ndarray, presence: float) -> None:
        """Keep the mask of a slice and how sure the network is that the object is on it, 0 to 1."""
        own = self._given[object_id].get(number)
        self._masks[object_id].put(number, self._slice_mask(number, mask_logits) if own is None else own)
        self._presence[object_id][number] = presence

    def progress(self, done: int, total: int) -> None:
        """Tell how many slices have been worked on, now and then."""
        now_s = time.monotonic()
        if now_s - self._told_s >= PROGRESS_INTERVAL_S or done == total:
            self._told_s = now_s
            self._send(Progress(slices_done=done, slices_total=total), b"")

    def ended(self, object_id: int, score: float, key_slices: Sequence[int], *, found: bool) -> None:
        """Send the whole mask of an object, or that it was not found, and forget it.

        A mask without a voxel is never called a result.
        """
        mask, presence = self._masks.pop(object_id), self._presence.pop(object_id)
        found = found and not mask.empty
        event = ObjectMask(
            object_id=object_id,
            found=found,
            score=score,
            key_slices=tuple(key_slices),
            slice_scores=dict(sorted(presence.items())),
            local=object_id in self._local,
        )
        packed = mask.pack() if found else b""
        self._keep(object_id, Result(tuple(self._previews.pop(object_id)), (event, packed)))
        self._send(event, packed)
