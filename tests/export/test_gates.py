"""The gate lets rounding through and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from medvl.contracts.models import ABSENT
from medvl.export.gates import FP16_GATE, FP32_GATE, MASK_LOGITS, broken, compare

REFERENCE = np.random.default_rng(0).normal(0.0, 3.0, (2, 16, 16)).astype(np.float32)


def judge(found, name=MASK_LOGITS, reference=REFERENCE):
    return broken(compare(name, reference, found), FP32_GATE)


def test_rounding_passes():
    """A difference of a few ulp is no difference."""
    assert judge(REFERENCE * np.float32(1 + 2e-7)) is None


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (REFERENCE + np.float32(1e-3), "largest difference 0.001"),
        (REFERENCE[::-1], "largest difference"),
        (np.where(REFERENCE.max() == REFERENCE, np.nan, REFERENCE), "largest difference nan"),
    ],
)
def test_more_than_rounding_breaks_it(found, reason):
    """An offset, two swapped rows and a single NaN are told by number."""
    assert judge(found).startswith(reason)


def test_small_values_are_judged_by_direction():
    """A tensor below the absolute bound cannot hide a wrong answer."""
    small = REFERENCE * np.float32(1e-6)
    assert judge(small[::-1], name="iou", reference=small).startswith("cosine")


def test_masks_are_judged_by_overlap():
    """Logits close to zero may differ by little and still be another mask."""
    near = REFERENCE * np.float32(1e-5)
    near[0, 0, :8] = 1e-7
    flipped = near.copy()
    flipped[0, 0, :8] = -1e-7
    assert judge(flipped, reference=near).startswith("Dice")
    assert compare("iou", near, flipped).dice is None


def test_zeros_agree_with_zeros_only():
    """An output of zeros has no direction: it equals zeros and nothing else."""
    zeros = np.zeros(4, np.float32)
    assert compare("iou", zeros, zeros).cosine == 1.0
    assert compare("iou", zeros, zeros + 1).cosine == 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_fp16_may_round_and_not_overflow(value):
    """Values of eleven bits pass; one that left the range breaks the gate, whatever the others are."""
    rounded = REFERENCE.astype(np.float16).astype(np.float32)
    assert broken(compare(MASK_LOGITS, REFERENCE, rounded), FP16_GATE) is None
    rounded[0, 0, 0] = value
    with np.errstate(invalid="ignore"):
        assert broken(compare(MASK_LOGITS, REFERENCE, rounded), FP16_GATE).startswith("cosine")


def test_an_absent_object_hides_no_other():
    """Its logits are a thousand times those of a mask, and the same in both: the cosine is of the others."""
    reference, wrong = (np.stack([rows, np.full_like(rows, ABSENT)]) for rows in (REFERENCE[0], REFERENCE[1]))
    assert broken(compare(MASK_LOGITS, reference, wrong), FP16_GATE).startswith("cosine 0.0")
    assert broken(compare(MASK_LOGITS, reference, reference), FP16_GATE) is None
    seen = np.stack([REFERENCE[0], -np.abs(REFERENCE[1])])
    assert broken(compare(MASK_LOGITS, reference, seen), FP16_GATE).startswith("cosine")
