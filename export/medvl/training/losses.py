"""The losses of SAM2's training (arXiv 2408.00714, appendix).

Focal and dice on masks, L1 on the predicted IoU, cross entropy on the object score; of the three masks of an ambiguous
prompt only the best one is corrected.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, interpolate

from medvl.network.sam2_heads import AllMasks

FOCAL, DICE, IOU, SCORE = 20.0, 1.0, 1.0, 1.0
"""Weights, as in SAM2."""
_SINGLE = 0.5
"""Weight of the single mask, which is corrected at low resolution whatever the prompt."""


@dataclass(frozen=True, slots=True)
class MaskLoss:
    """The loss of N objects on a slice, and what is shown of it."""

    total: Tensor
    """Scalar."""
    dice: Tensor
    """Mean Dice overlap of the masks that inference would choose, of objects that are there; NaN where none is."""
    score_accuracy: Tensor


def mask_loss(found: AllMasks, target: Tensor, multimask: Tensor) -> MaskLoss:
    """Return the loss of N masks.

    Parameters
    ----------
    found
        What the heads say.
    target
        FP32 [N, S, S], 0 or 1; empty where the object is not on the slice.
    multimask
        BOOL [N]: whether the three masks count, else the single one.
    """
    present = target.flatten(1).any(1)
    low = avg_pool2d(target[:, None], target.shape[-1] // found.logits.shape[-1])
    overlap = _dice(found.logits, low)
    score = binary_cross_entropy_with_logits(found.object_score[:, 0], present.float())
    total = SCORE * score
    if present.any():
        rough = FOCAL * _focal(found.logits, low) + DICE * (1.0 - overlap)
        best = torch.where(multimask, rough[:, 1:].argmin(1) + 1, 0)
        total = total + _masks(found, target, best, rough, present)
    with torch.no_grad():
        chosen = torch.where(multimask, found.iou[:, 1:].argmax(1) + 1, 0)
        hard = _dice((found.logits > 0).float() * 40 - 20, low)
        dice = hard.gather(1, chosen[:, None])[present].mean()
        accuracy = ((found.object_score[:, 0] > 0) == present).float().mean()
    return MaskLoss(total, dice, accuracy)


def _masks(found: AllMasks, target: Tensor, best: Tensor, rough: Tensor, present: Tensor) -> Tensor:
    logits = found.logits.gather(1, best[:, None, None, None].expand(-1, 1, *found.logits.shape[2:]))[present]
    full = interpolate(logits, size=target.shape[-2:], mode="bilinear", align_corners=False)
    wanted = target[present][:, None]
    fine = FOCAL * _focal(full, wanted) + DICE * (1.0 - _dice(full, wanted))
    with torch.no_grad():
        low = avg_pool2d(target[:, None], target.shape[-1] // found.logits.shape[-1]) >= 0.5
        actual = _iou(found.logits > 0, low)
    iou = (found.iou - actual).abs()[present].mean()
    return fine.mean() + _SINGLE * rough[present, 0].mean() + IOU * iou


def _focal(logits: Tensor, target: Tensor) -> Tensor:
    """Return the focal loss [N, K] (alpha 0.25, gamma 2) of logits [N, K, h, w] against a share [N, 1, h, w]."""
    wanted = target.expand_as(logits)
    p = logits.sigmoid()
    plain = binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    wrong = p + wanted - 2 * p * wanted
    weight = 0.25 * wanted + 0.75 * (1 - wanted)
    return (weight * wrong.square() * plain).mean((2, 3))


def _dice(logits: Tensor, target: Tensor) -> Tensor:
    """Return the soft Dice overlap [N, K] of logits [N, K, h, w] with a share [N, 1, h, w]."""
    p = logits.sigmoid()
    both = (p * target).sum((2, 3))
    return (2 * both + 1) / (p.sum((2, 3)) + target.sum((2, 3)) + 1)


def _iou(masks: Tensor, target: Tensor) -> Tensor:
    """Return the intersection over union [N, K] of masks BOOL [N, K, h, w] with BOOL [N, 1, h, w]."""
    both = (masks & target).sum((2, 3)).float()
    return both / (masks | target).sum((2, 3)).clamp(min=1)
