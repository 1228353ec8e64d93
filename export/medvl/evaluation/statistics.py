"""Figures with their uncertainty: ratios and medians over cases, with 95 % confidence intervals.

Cases, not items, are what is drawn: masks and answers of one case depend on one another. A figure is a ratio of sums
over cases, of which a mean (sum over count), a precision and an F1 are examples, or a median of pooled values.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

DRAWS, SEED = 2000, 2601
"""Of the bootstrap."""
_Z = 1.959963984540054
"""The normal distribution's 97.5 % quantile."""

Interval = Literal["bootstrap", "wilson"]


@dataclass(frozen=True, slots=True)
class Observation:
    """What one item of a case adds to a figure.

    Attributes
    ----------
    case
        What the item belongs to.
    numerator, denominator
        Its share in the two sums.
    items
        How many items it stands for.
    """

    case: str
    numerator: float
    denominator: float = 1.0
    items: int = 1


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure.

    Attributes
    ----------
    value
        None when there is nothing to divide by.
    low, high
        95 % confidence interval; None with less than two cases.
    n
        Items.
    cases
        Cases with something to divide by.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    cases: int
    interval: Interval | None


def ratio(observations: Sequence[Observation], *, proportion: bool = False) -> Estimate:
    """Return the ratio of the sums.

    Parameters
    ----------
    proportion
        Whether each item either has or lacks something. Where every case then has one item, the interval is Wilson's;
        else it is a percentile bootstrap over cases.
    """
    sums: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(2))
    for one in observations:
        sums[one.case] += (one.numerator, one.denominator)
    n = sum(one.items for one in observations)
    pairs = np.array(list(sums.values())).reshape(-1, 2)
    cases = int(np.count_nonzero(pairs[:, 1]))
    total = pairs.sum(0)
    if total[1] == 0:
        return Estimate(None, None, None, n, 0, None)
    value = float(total[0] / total[1])
    if proportion and n == len(pairs):
        low, high = wilson(int(total[0]), n)
        return Estimate(value, low, high, n, cases, "wilson")
    if cases < 2:
        return Estimate(value, None, None, n, cases, None)
    drawn = pairs[_draws(len(pairs))].sum(1)
    drawn = drawn[drawn[:, 1] > 0]
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], (2.5, 97.5)).tolist()
    return Estimate(value, low, high, n, cases, "bootstrap")


def median(values: Iterable[tuple[str, float]]) -> Estimate:
    """Return the median of values, each given with its case; the interval is a percentile bootstrap over cases."""
    by_case: dict[str, list[float]] = defaultdict(list)
    for case, value in values:
        by_case[case].append(value)
    cases = [np.array(own) for own in by_case.values()]
    n = sum(map(len, cases))
    if not n:
        return Estimate(None, None, None, 0, 0, None)
    middle = float(np.median(np.concatenate(cases)))
    if len(cases) < 2:
        return Estimate(middle, None, None, n, len(cases), None)
    drawn = [float(np.median(np.concatenate([cases[i] for i in row]))) for row in _draws(len(cases))]
    low, high = np.percentile(drawn, (2.5, 97.5)).tolist()
    return Estimate(middle, low, high, n, len(cases), "bootstrap")


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a proportion (Wilson 1927)."""
    share, square = successes / trials, _Z**2 / trials
    centre = share + square / 2
    spread = _Z * math.sqrt(share * (1 - share) / trials + square / (4 * trials))
    return max(0.0, (centre - spread) / (1 + square)), min(1.0, (centre + spread) / (1 + square))


def _draws(cases: int) -> NDArray[np.intp]:
    """Return which cases each draw takes [DRAWS, cases]; always the same for so many cases."""
    return np.random.default_rng(SEED).integers(cases, size=(DRAWS, cases))
