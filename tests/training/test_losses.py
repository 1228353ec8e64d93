"""The losses of SAM2's training correct what they should."""

from __future__ import annotations

import pytest
import torch

from medvl.network.sam2_heads import AllMasks
from medvl.training.losses import mask_loss

SIDE, LOW = 32, 8


@pytest.fixture
def target() -> torch.Tensor:
    """A square on the first object's slice; the second object is not there."""
    masks = torch.zeros(2, SIDE, SIDE)
    masks[0, 8:24, 8:16] = 1
    return masks


def found(target: torch.Tensor, *, good: int, score: tuple[float, float] = (8.0, -8.0)) -> AllMasks:
    """Masks of which only the one numbered ``good`` is right, and says so."""
    logits = torch.full((2, 4, LOW, LOW), -10.0)
    logits[:, good] = torch.nn.functional.avg_pool2d(target[:, None], 4)[:, 0] * 20 - 10
    iou = torch.zeros(2, 4)
    iou[:, good] = 1.0
    return AllMasks(
        logits.requires_grad_(),
        iou.requires_grad_(),
        torch.zeros(2, 4, 4),
        torch.tensor(score)[:, None].requires_grad_(),
    )


def test_a_right_answer_costs_little(target: torch.Tensor):
    """Mask, IoU and absence right: next to nothing but the single mask's share."""
    right = mask_loss(found(target, good=2), target, torch.tensor([True, True]))
    wrong = mask_loss(found(target, good=2, score=(-8.0, 8.0)), target, torch.tensor([True, True]))
    assert right.dice > 0.95
    assert (right.score_accuracy.item(), wrong.score_accuracy.item()) == (1.0, 0.0)
    assert right.total < wrong.total - 7


def test_only_the_best_of_three_is_corrected(target: torch.Tensor):
    """The other two keep their own meaning."""
    masks = found(target, good=3)
    mask_loss(masks, target, torch.tensor([True, True])).total.backward()
    gradient = masks.logits.grad.abs().sum((2, 3))[0]
    assert gradient[3] > 0
    assert gradient[1] == gradient[2] == 0


def test_a_box_corrects_the_single_mask(target: torch.Tensor):
    """Prompts without ambiguity have one answer."""
    masks = found(target, good=1)
    mask_loss(masks, target, torch.tensor([False, False])).total.backward()
    gradient = masks.logits.grad.abs().sum((2, 3))[0]
    assert gradient[0] > 0
    assert (gradient[1:] == 0).all()


def test_an_absent_object_has_no_mask_to_correct(target: torch.Tensor):
    """Only its score."""
    masks = found(target, good=1, score=(8.0, 1.0))
    mask_loss(masks, target, torch.tensor([True, True])).total.backward()
    assert (masks.logits.grad[1] == 0).all()
    assert masks.object_score.grad[1] > 0
