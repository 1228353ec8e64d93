"""Figures carry intervals that are seeded, that treat cases as what was drawn, and that agree with published values."""

from __future__ import annotations

import numpy as np
import pytest

from medvl.evaluation.statistics import Observation, median, ratio, wilson


def observed(values: np.ndarray, per_case: int = 1) -> list[Observation]:
    return [Observation(str(i // per_case), float(v)) for i, v in enumerate(values)]


def test_wilson_agrees_with_published_values():
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, trials), interval in published.items():
        assert wilson(successes, trials) == pytest.approx(interval, abs=5e-5)


def test_the_bootstrap_is_seeded():
    """The same observations give the same interval, whatever was drawn before; it holds the value."""
    values = observed(np.random.default_rng(1).normal(0.8, 0.1, 40))
    first = ratio(values)
    np.random.default_rng().random(7)
    assert ratio(values) == first
    assert first.interval == "bootstrap"
    assert first.low < first.value < first.high


def test_the_bootstrap_has_the_width_of_the_normal_approximation():
    """For the mean of many independent values."""
    values = np.random.default_rng(2).normal(0.0, 1.0, 400)
    found = ratio(observed(values))
    assert found.high - found.low == pytest.approx(2 * 1.96 / np.sqrt(400), rel=0.12)


def test_cases_are_drawn_and_not_items():
    """Ten equal items of a case say no more than one: the interval stays as wide, and n tells the items."""
    values = np.random.default_rng(3).normal(0.0, 1.0, 30)
    single, repeated = ratio(observed(values)), ratio(observed(np.repeat(values, 10), per_case=10))
    assert (repeated.low, repeated.high) == pytest.approx((single.low, single.high))
    assert (repeated.n, repeated.cases) == (300, 30)


def test_a_proportion_of_cases_has_wilsons_interval():
    """With one item a case; with several the bootstrap's."""
    wins = np.array([1.0] * 7 + [0.0] * 3)
    assert ratio(observed(wins), proportion=True).interval == "wilson"
    assert (ratio(observed(wins), proportion=True).low, ratio(observed(wins), proportion=True).high) == wilson(7, 10)
    assert ratio(observed(wins, per_case=2), proportion=True).interval == "bootstrap"


def test_a_ratio_is_one_of_sums():
    """Precision counts findings, not reports: 1 of 1 and 1 of 3 are 2 of 4."""
    found = ratio([Observation("a", 1, 1, 1), Observation("b", 1, 3, 3)])
    assert (found.value, found.n, found.cases) == (0.5, 4, 2)


def test_nothing_has_no_value():
    """No observation, or none that can be divided by: no value and no interval, never a zero."""
    assert ratio([]).value is None
    assert ratio([Observation("a", 0, 0, 0)]).value is None
    assert median([]).value is None
    assert ratio([Observation("a", 0.9)]).low is None


def test_a_median_is_that_of_all_values():
    """Of the pooled values, with an interval between their ends."""
    found = median([("a", 1.0), ("a", 2.0), ("b", 10.0)])
    assert (found.value, found.n, found.cases) == (2.0, 3, 2)
    assert 1.0 <= found.low <= found.high <= 10.0


def test_the_interval_of_a_median_is_that_of_its_cases():
    """As wide as the normal approximation, pi/2 times a mean's variance, however often a case says the same."""
    values = np.random.default_rng(4).normal(0.0, 1.0, 401)
    single, repeated = (median((str(i), v) for i, v in enumerate(values) for _ in range(n)) for n in (1, 5))
    assert single.high - single.low == pytest.approx(2 * 1.96 * np.sqrt(np.pi / 2 / 401), rel=0.2)
    assert (repeated.value, repeated.low, repeated.high) == (single.value, single.low, single.high)
    assert (repeated.n, repeated.cases) == (2005, 401)


def test_cases_with_nothing_to_divide_by_do_not_count():
    """One case alone has no interval, however many others have nothing to say."""
    silent = [Observation(name, 0, 0, 0) for name in "bcd"]
    found = ratio([Observation("a", 1, 2, 1), *silent])
    assert (found.value, found.low, found.high, found.cases) == (0.5, None, None, 1)
    assert ratio([Observation("a", 1, 2), Observation("e", 2, 2), *silent]).cases == 2
