"""A text means one of the regions that the encoder has found, or none, and SAM2 is asked where it lies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medvl.contracts.checkpoint import RegionRule
from medvl.contracts.models import ABSENT
from medvl.network.groups import Placed, Sought
from medvl.network.modules import ProposalMap
from medvl.network.prompts import BOX_FIRST, BOX_SECOND, POSITIVE, ObjectPrompt, SlicePrompt
from medvl.network.region_choice import OUTLINE, Outline, RegionScorer, feature_count, features_of_regions

KINDS = 2
RULE = RegionRule(min_score=0.3, reach=1.5)
DEPTH, SIDE, SIZE = 10, 64, 32
SHAPE = DEPTH, 43, SIDE


def regions(*found: tuple[float, float, float]) -> np.ndarray:
    """Regions by their half extent and the logits of both kinds, one above the other."""
    rows = [[0.1 + 0.2 * i, 0.5, 0.5, half, half, half, *logits] for i, (half, *logits) in enumerate(found)]
    return np.array(rows, np.float32).reshape(-1, OUTLINE + KINDS)


def choosing(**weights: float) -> RegionScorer:
    """What chooses by some numbers alone, whatever the state."""
    names = {"first": 0, "second": 1, "larger": 2, "smaller": 4, "logit": 6, "volume": 7, "none": 8}
    bias = np.zeros(feature_count(KINDS), np.float32)
    for name, weight in weights.items():
        bias[names[name]] = weight
    return RegionScorer(np.zeros((len(bias), 4), np.float32), bias, RULE)


def chosen(scorer: RegionScorer, found: np.ndarray) -> float | None:
    """How high up what is chosen lies."""
    region = scorer.meant(found, np.zeros(4, np.float32))
    return None if region is None else round(float(region[0]), 1)


def test_regions_are_told_by_kind_size_and_how_many_are_larger():
    """Each other one counts as far as it is likely to be of the kind."""
    found = regions((0.1, 9.0, -9.0), (0.2, 9.0, -9.0), (0.05, -9.0, 0.0))
    features = features_of_regions(found)
    assert features.shape == (4, feature_count(KINDS))
    assert np.allclose(features[:3, :2], [[1, 0], [1, 0], [0, 0.5]], atol=1e-3)
    assert np.allclose(features[:3, 2:4], [[1, 0], [0, 0], [2, 0]], atol=1e-3)
    assert np.allclose(features[:3, 4:6], [[0, 0.5], [1, 0.5], [0, 0]], atol=1e-3)
    assert features[:3, 6].tolist() == [9.0, 9.0, 0.0]
    assert np.allclose(features[:3, 7], 3 * np.log([0.1, 0.2, 0.05]))
    assert features[:, 8].tolist() == [0, 0, 0, 1]
    assert features[3, :8].tolist() == [0] * 8


def test_a_state_chooses_a_region_or_none():
    """By kind, by how many are larger, and none where all are less worth than none of them."""
    found = regions((0.1, 3.0, -3.0), (0.2, 3.0, -3.0), (0.3, -3.0, 3.0))
    assert chosen(choosing(second=1.0), found) == 0.5
    assert chosen(choosing(first=1.0, larger=-1.0), found) == 0.3
    assert chosen(choosing(first=1.0, larger=1.0), found) == 0.1
    assert chosen(choosing(first=1.0, none=2.0), found) is None


def test_unlikely_regions_are_not_chosen_from():
    """Nor do they count as larger; without a likely one none is chosen, whatever the state says."""
    found = regions((0.1, 3.0, -3.0), (0.2, -1.0, -1.0))
    assert chosen(choosing(volume=1.0, none=-99.0), found) == 0.1
    assert chosen(choosing(larger=1.0, none=0.5), found) is None
    nothing = regions((0.0, -30.0, -30.0))
    assert chosen(choosing(none=-99.0), nothing) is None
    assert chosen(choosing(none=-99.0), regions()) is None


def test_a_map_begins_with_no_region():
    """And draws no random numbers for it."""
    before = torch.get_rng_state()
    untrained = ProposalMap(4, KINDS)
    assert torch.equal(torch.get_rng_state(), before)
    assert untrained.regions is not None
    weight, bias = (p.detach().numpy() for p in (untrained.regions.weight, untrained.regions.bias))
    assert RegionScorer(weight, bias, RULE).meant(regions((0.1, 9.0, -9.0)), np.ones(4, np.float32)) is None


@pytest.fixture
def outline() -> Outline:
    """On slices that lie padded in the square: rows end at two thirds of it."""
    region = np.array([0.46, 0.5, 0.25, 0.2, 0.1, 0.125, 3.0, -3.0], np.float32)
    return Outline.of(region, SHAPE, RULE.reach)


def test_an_outline_lies_on_the_fitted_slices(outline: Outline):
    """In the pixels in which SAM2 is prompted."""
    _, height, _ = SHAPE
    assert outline.middle.tolist() == pytest.approx([4.6, height / 2, 16.0])
    assert outline.half.tolist() == pytest.approx([2.0, height / 10, 8.0])
    assert list(outline.slices(DEPTH)) == [3, 4, 5]
    assert outline.ends(DEPTH) == (1, 8)
    box, point = outline.prompts()
    (first, second), (middle,) = box.points, point.points
    assert (first.label, second.label, middle.label) == (BOX_FIRST, BOX_SECOND, POSITIVE)
    assert (first.x, second.x, middle.x) == pytest.approx((8.0, 24.0, 16.0))
    assert (first.y, second.y) == pytest.approx((0.4 * height, 0.6 * height))


def test_an_outline_is_an_ellipsoid(outline: Outline):
    """What shows it on a slice, and what its mask stays within."""
    cell = SIDE / SIZE
    discs = [outline.disc(number, SIZE, SIDE) for number in range(DEPTH)]
    areas = [int(disc.sum()) for disc in discs]
    assert areas[4] == max(areas)
    assert areas[4] > areas[2] > 0
    assert areas[1] == areas[8] == 0
    rows, columns = np.nonzero(discs[4])
    assert np.abs((columns + 0.5) * cell - 16.0).max() <= 8.0
    assert np.abs((rows + 0.5) * cell - outline.middle[1]).max() <= outline.half[1]
    first, last = outline.ends(DEPTH)
    kept = [outline.within(number, SIZE, SIDE) for number in range(DEPTH)]
    assert [bool(k.any()) for k in kept] == [first <= number <= last for number in range(DEPTH)]
    assert all((within >= disc).all() for within, disc in zip(kept, discs, strict=True))


def test_a_mask_stays_within_its_outline(outline: Outline):
    """What lies further is absent, as SAM2 says it; an object without an outline is as SAM2 has it."""
    logits = np.full((SIZE, SIZE), 7.0, np.float32)
    sought = Sought(outline, SlicePrompt())
    bounded = Placed(ObjectPrompt(1, {}), (4,), 0.5, sought=sought).bounded(4, logits, SIDE)
    assert np.array_equal(bounded > 0, outline.within(4, SIZE, SIDE))
    assert set(np.unique(bounded)) == {7.0, ABSENT}
    assert Placed(ObjectPrompt(1, {}), (4,), 0.5).bounded(4, logits, SIDE) is logits


@pytest.mark.parametrize("middle", [(64.0, 64.0), (65.9, 62.1), (63.99, 66.0)])
def test_a_small_outline_has_a_disc(middle: tuple[float, float]):
    """However it lies among the cells."""
    assert Outline(np.array([5.5, *middle]), np.array([1.0, 0.5, 0.5]), RULE.reach).disc(5, 64, 256).any()


@pytest.mark.parametrize(("middle", "slices"), [(-0.2, [0, 1]), (0.98, [8, 9]), (1.3, [8, 9])])
def test_an_outline_beyond_the_volume_is_looked_for_at_its_end(middle: float, slices: list[int]):
    """A middle is read, not measured: it may lie a little outside."""
    region = np.array([middle, 0.5, 0.5, 0.1, 0.1, 0.1], np.float32)
    outline = Outline.of(region, SHAPE, RULE.reach)
    assert list(outline.slices(DEPTH)) == slices
