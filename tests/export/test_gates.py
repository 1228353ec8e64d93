"""The gate lets rounding through and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from medvl.contracts.models import ABSENT
from medvl.export.gates import FP16_GATE, FP32_GATE, MASK_LOGITS, REGIONS, broken, compare
from medvl.network.region_choice import NO_REGION_LOGIT, OUTLINE

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


@pytest.fixture
def regions():
    """Of two volumes eight each, the most likely first; what is no region of the one kind may be one of the other."""
    rng = np.random.default_rng(1)
    logits = np.sort(rng.normal(-3.0, 2.0, (2, 8, 1)), axis=1)[:, ::-1] - [0.0, 1.0, 2.0]
    logits[:, ::2, 1] = NO_REGION_LOGIT
    return np.concatenate([rng.uniform(0.0, 1.0, (2, 8, OUTLINE)), logits], -1).astype(np.float32)


def test_regions_that_are_nearly_as_likely_may_change_places(regions):
    """Another runtime rounds their scores elsewhere: two in the middle, and another one that is the last."""
    found = regions.copy()
    found[0, [2, 3]], found[1, 7] = regions[0, [3, 2]], 0.5
    for gate in (FP32_GATE, FP16_GATE):
        assert broken(compare(REGIONS, regions, found), gate) is None
        assert broken(compare("features_low", regions, found), gate) is not None


@pytest.mark.parametrize("gate", [FP32_GATE, FP16_GATE])
@pytest.mark.parametrize("side", ["found", "reference"])
def test_another_region_breaks_the_gate(regions, gate, side):
    """One place of one likely region of one volume, one of its logits, one more or one less of them, one NaN."""
    for column, value in ((1, 0.99 - regions[1, 0, 1]), (OUTLINE, -9.0), (OUTLINE + 1, 2.0), (0, np.nan)):
        other = regions.copy()
        other[1, 0, column] = value
        pair = (regions, other) if side == "found" else (other, regions)
        assert broken(compare(REGIONS, *pair), gate) is not None, (column, value)


def test_an_encoder_without_regions_agrees_with_itself():
    """Its one row tells of nothing."""
    nothing = np.array([[[0.0] * OUTLINE + [NO_REGION_LOGIT]]], np.float32)
    assert broken(compare(REGIONS, nothing, nothing), FP32_GATE) is None
    assert broken(compare(REGIONS, nothing, nothing + np.float32(1.0)), FP32_GATE) is not None
