"""SAM2 itself, unmodified, driven slice by slice as its video predictor drives it: one fresh state per direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from medvl.network.prompts import PromptPoint

Prompt = tuple[PromptPoint, ...] | np.ndarray
"""Points of one object on one slice, or the mask that somebody gave."""


def dice(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    """Return the Dice of two masks, logits FP32 [f_4, f_4] slice by slice."""
    a, b = np.stack(one) > 0, np.stack(other) > 0
    return 2.0 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


class Sam2Tracker:
    """SAM2's own ``track_step`` over a volume; the objects are the rows of one batch."""

    def __init__(self, sam: SAM2Base, slices: np.ndarray, objects: int) -> None:
        self.sam = sam
        mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        images = (torch.from_numpy(slices)[:, None].float() / 255 - mean) / std
        self.frames = [sam._prepare_backbone_features(sam.forward_image(image[None])) for image in images]
        self.objects = objects

    def step(
        self,
        number: int,
        state: dict[str, dict[int, Any]],
        *,
        reverse: bool,
        rows: Sequence[Prompt] | None = None,
        last: Tensor | None = None,
    ) -> dict[str, Any]:
        """Track or, with the prompts of its ``rows``, know a slice; SAM2 adds half a pixel to a point itself.

        With the logits that were ``last`` found there the prompts correct them, as the video predictor has it.
        """
        _, features, positions, sizes = self.frames[number]
        points = masks = None
        if rows is not None and isinstance(rows[0], np.ndarray):
            masks = torch.from_numpy(np.stack(rows))[:, None].float()
        elif rows is not None:
            points = {
                "point_coords": torch.tensor([[(p.x - 0.5, p.y - 0.5) for p in row] for row in rows]),
                "point_labels": torch.tensor([[p.label for p in row] for row in rows], dtype=torch.int32),
            }
        out: dict[str, Any] = self.sam.track_step(
            frame_idx=number,
            is_init_cond_frame=rows is not None and last is None,
            current_vision_feats=[f.expand(-1, self.objects, -1) for f in features],
            current_vision_pos_embeds=[p.expand(-1, self.objects, -1) for p in positions],
            feat_sizes=sizes,
            point_inputs=points,
            mask_inputs=masks,
            output_dict=state,
            num_frames=len(self.frames),
            track_in_reverse=reverse,
            run_mem_encoder=True,
            prev_sam_mask_logits=None if last is None else last.clamp(-32.0, 32.0),
        )
        return out

    def run(
        self, prompts: Mapping[int, Sequence[Prompt]], corrections: Sequence[Mapping[int, Sequence[Prompt]]] = ()
    ) -> dict[int, np.ndarray]:
        """Return the logits [N, f_4, f_4] of every slice after prompts and all corrections, each propagated.

        A correction names all points that its slice has by then.
        """
        prompted = {}
        for number, rows in sorted(prompts.items()):
            empty: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
            prompted[number] = self.step(number, empty, reverse=False, rows=rows)
        states = self.propagate(prompted)
        for correction in corrections:
            first = min(prompted)
            corrected = {}
            for number, rows in correction.items():
                state = states[number < first]
                last = {**prompted, **state["non_cond_frame_outputs"]}[number]["pred_masks"]
                corrected[number] = self.step(number, state, reverse=number < first, rows=rows, last=last)
            prompted = {**prompted, **corrected}
            states = self.propagate(prompted)
        found = {**prompted, **states[False]["non_cond_frame_outputs"], **states[True]["non_cond_frame_outputs"]}
        return {number: out["pred_masks"][:, 0].numpy() for number, out in found.items()}

    def propagate(self, prompted: Mapping[int, Any]) -> dict[bool, dict[str, dict[int, Any]]]:
        """Return the states of both directions, by whether they are reversed, each begun afresh."""
        first = min(prompted)
        states = {}
        for reverse, numbers in ((False, range(first + 1, len(self.frames))), (True, range(first - 1, -1, -1))):
            states[reverse] = {"cond_frame_outputs": dict(prompted), "non_cond_frame_outputs": {}}
            for number in numbers:
                if number not in prompted:
                    out = self.step(number, states[reverse], reverse=reverse)
                    states[reverse]["non_cond_frame_outputs"][number] = out
        return states
