"""What a text's masks show is told apart in 3D, and a state chooses by what proposals are compared by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medvl.contracts.checkpoint import ProposalRule
from medvl.network.modules import ProposalMap
from medvl.network.proposal_finder import ProposalFinder
from medvl.network.proposals import FEATURES, Proposal, ProposalScorer, features_of, reach

DEPTH, SIDE = 12, 16
RULE = ProposalRule(min_score=0.1, min_share=0.1)


def square(row: int, column: int, size: int) -> NDArray[np.bool_]:
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[row : row + size, column : column + size] = True
    return mask


def seen(shown: dict[int, NDArray[np.bool_]], scores: dict[int, float] | None = None) -> list[Proposal]:
    finder = ProposalFinder(DEPTH, RULE)
    for number in range(DEPTH):
        mask = shown.get(number, np.zeros((SIDE, SIDE), np.bool_))
        finder.see(number, mask, (scores or {}).get(number, 0.8 if number in shown else 0.0))
    return finder.found()


def told(proposals: list[Proposal], name: str) -> list[float]:
    return features_of(proposals)[:, FEATURES.index(name)].tolist()


def test_what_touches_through_the_slices_is_one():
    """With its volume, its middle and its size as shares of everything, and the scores of its slices."""
    (one,) = seen({4: square(2, 4, 4), 5: square(3, 4, 4), 6: square(2, 4, 4)}, {4: 0.5, 5: 0.9, 6: 0.6})
    assert one.scores.tolist() == pytest.approx([0.0] * 4 + [0.5, 0.9, 0.6] + [0.0] * 5)
    assert one.volume == pytest.approx(48 / (DEPTH * SIDE * SIDE))
    assert one.centre.tolist() == pytest.approx([5.5 / DEPTH, 13 / 3 / SIDE, 6 / SIDE])
    assert one.extent.tolist() == pytest.approx([3 / DEPTH, 5 / SIDE, 4 / SIDE])


def test_two_on_the_same_slices_share_their_score():
    """A mask is scored as a whole: what has less of it is what the score says less about."""
    large, small = seen({4: square(0, 0, 6) | square(10, 10, 3)}, {4: 0.9})
    assert large.scores[4] == pytest.approx(0.9 * 36 / 45)
    assert small.scores[4] == pytest.approx(0.9 * 9 / 45)


@pytest.mark.parametrize(
    ("shown", "scores"),
    [
        ({2: square(2, 2, 3), 4: square(2, 2, 3)}, None),
        ({2: square(2, 2, 3), 3: square(2, 2, 3), 4: square(2, 2, 3)}, {2: 0.8, 3: 0.05, 4: 0.8}),
        ({2: square(2, 2, 3), 3: square(5, 5, 3)}, None),
    ],
    ids=["a slice without anything between them", "a slice that is not believed", "corners alone"],
)
def test_what_does_not_touch_is_two(shown: dict[int, NDArray[np.bool_]], scores: dict[int, float] | None):
    """Slices are joined by the faces of cells."""
    assert len(seen(shown, scores)) == 2


def test_two_that_meet_further_up_are_one():
    """However late it is seen that they are."""
    arms = square(2, 2, 3) | square(2, 10, 3)
    bridge = arms.copy()
    bridge[2:5, 2:13] = True
    (one,) = seen({2: arms, 3: arms, 4: bridge})
    assert one.scores[2:5].tolist() == pytest.approx([0.8] * 3)


def test_crumbs_are_nobody():
    """A mask of nothing but crumbs, as an untrained network makes, proposes nothing."""
    scattered = np.zeros((SIDE, SIDE), np.bool_)
    scattered[::2, ::2] = True
    assert seen({3: scattered}) == []
    (one,) = seen({3: square(2, 2, 8) | square(0, 14, 2)})
    assert one.volume == pytest.approx(64 / (DEPTH * SIDE * SIDE))


def test_others_count_by_how_credible_they_are():
    """One that is surely there counts as larger or smaller; a doubtful one hardly does."""
    sizes = {1: square(2, 2, 6), 5: square(2, 2, 4), 9: square(2, 2, 2)}
    assert told(seen(sizes, {1: 0.9, 5: 0.9, 9: 0.9}), "some_larger") == pytest.approx(
        [0.0, np.tanh(1.8), np.tanh(3.6)], abs=1e-6
    )
    assert told(seen(sizes, {1: 0.9, 5: 0.9, 9: 0.11}), "some_smaller") == pytest.approx(
        [np.tanh(2.02), np.tanh(0.22), 0.0], abs=1e-6
    )


def test_a_state_says_which_one_it_means():
    """Its weights make the larger or the smaller one the best."""
    larger, smaller = seen({1: square(2, 2, 6), 5: square(2, 2, 3)})
    weight = np.zeros((len(FEATURES), 2), np.float32)
    weight[FEATURES.index("log_volume")] = 1.0, -1.0
    scorer = ProposalScorer(weight, np.zeros(len(FEATURES), np.float32), RULE)
    assert scorer.meant([larger, smaller], np.array([1.0, 0.0], np.float32)) is larger
    assert scorer.meant([larger, smaller], np.array([0.0, 1.0], np.float32)) is smaller
    assert scorer.meant([smaller, larger], np.zeros(2, np.float32)) is smaller


def test_a_proposal_reaches_to_where_another_one_is_in_its_place():
    """Not to where neither is, nor to where both are; what is hardly seen stops nobody."""
    upper, lower, both = square(2, 2, 4), square(10, 10, 3), square(2, 2, 4) | square(10, 10, 3)
    shown = {0: lower, 2: both, 3: upper, 4: upper, 7: lower, 8: lower, 11: lower}
    found = seen(shown, {n: 0.2 if n == 7 else 0.8 for n in shown})
    meant = next(p for p in found if p.scores[3] > 0)
    assert reach(meant, found, (3,), min_score=0.3) == (1, 7)
    assert reach(meant, found, (3,), min_score=0.9) == (0, DEPTH - 1)
    assert reach(meant, [meant], (3,), min_score=0.3) == (0, DEPTH - 1)
    assert reach(meant, found, (2,), min_score=0.3) == (0, DEPTH - 1), "with parts beside it it may be one with them"


def test_every_feature_is_a_number():
    """Also of one cell on one slice, and of everything."""
    for shown in ({0: square(0, 0, 1)}, {n: np.ones((SIDE, SIDE), np.bool_) for n in range(DEPTH)}):
        features = features_of(seen(shown))
        assert features.shape == (1, len(FEATURES))
        assert np.isfinite(features).all()


def test_a_map_begins_with_the_score_alone_and_draws_no_random_numbers():
    """What is built behind it keeps its weights: an untrained checkpoint is the same with and without proposals."""
    before = torch.get_rng_state()
    untrained = ProposalMap(8)
    assert torch.equal(torch.get_rng_state(), before)
    scorer = ProposalScorer(untrained.weight.detach().numpy(), untrained.bias.detach().numpy(), RULE)
    larger, better = seen({2: square(8, 8, 5), 8: square(1, 1, 2)}, {2: 0.4, 8: 0.9})
    assert scorer.meant([larger, better], np.ones(8, np.float32)) is better
