"""From samples to figures: percentiles, throughput, goodput, and the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medvl.loadtest.generate import Outcome, Sample

SATURATED_LAG_MS = 10.0
"""Above this p99 between the scheduled and the actual start, the generator itself was late."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """Nearest-rank percentiles of a duration, in milliseconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Goodput:
    """Service-level objective of one request: milliseconds from the scheduled time, None where there is none."""

    ttft_ms: float | None = None
    e2e_ms: float | None = None

    def met(self, sample: Sample) -> bool:
        """Return whether a request was answered rightly and in time."""
        ttft_ms = _ms(sample.scheduled_s, sample.first_s)
        return (
            sample.outcome is Outcome.OK
            and (self.e2e_ms is None or (sample.ended_s - sample.scheduled_s) * 1e3 <= self.e2e_ms)
            and (self.ttft_ms is None or (ttft_ms is not None and ttft_ms <= self.ttft_ms))
        )


@dataclass(frozen=True, slots=True)
class Figures:
    """The result of a test.

    Attributes
    ----------
    sent, outcomes
        Requests, in all and by outcome.
    wall_s
        From the first scheduled start to the last end.
    e2e, ttft
        From the scheduled start to the end, and to the first part of the answer; answered requests only.
    service
        From the actual start to the end; without the delay of an overloaded generator.
    tpot
        Time per output token after the first.
    refusal
        From the actual start to the refusal of shed requests.
    requests_per_s, tokens_per_s
        Right answers, and their tokens, over ``wall_s``.
    good_share, good_per_s
        Requests that met the goodput objective: their share of all sent, and over ``wall_s``.
    lag_p99_ms
        Delay of the generator itself.
    """

    sent: int
    outcomes: Mapping[str, int]
    wall_s: float
    e2e: Distribution | None
    ttft: Distribution | None
    service: Distribution | None
    tpot: Distribution | None
    refusal: Distribution | None
    requests_per_s: float
    tokens_per_s: float
    good_share: float
    good_per_s: float
    lag_p99_ms: float

    @property
    def saturated(self) -> bool:
        """Whether the generator was too slow for the load it was asked to make."""
        return self.lag_p99_ms > SATURATED_LAG_MS

    def passed(self, min_good_share: float) -> bool:
        """Return whether every answer was right, nothing failed, and enough requests met the objective.

        What a busy service sheds, or answers too late, costs its share only; one that is away has failed.
        """
        bad = sum(self.outcomes[outcome] for outcome in (Outcome.WRONG_ANSWER, Outcome.FAILED, Outcome.UNAVAILABLE))
        return self.outcomes[Outcome.OK] > 0 and not bad and self.good_share >= min_good_share


def figures(samples: Sequence[Sample], goodput: Goodput) -> Figures:
    """Return the figures of a test.

    Parameters
    ----------
    samples
        At least one.
    goodput
        The objective; without any limit it is a right answer.
    """
    answered = [s for s in samples if s.outcome is Outcome.OK]
    shed = [s for s in samples if s.outcome is Outcome.SHED]
    counts = Counter(s.outcome for s in samples)
    wall_s = max(s.ended_s for s in samples) - min(s.scheduled_s for s in samples)
    good = sum(goodput.met(s) for s in samples)
    return Figures(
        sent=len(samples),
        outcomes={outcome.value: counts[outcome] for outcome in Outcome},
        wall_s=wall_s,
        e2e=distribution([(s.ended_s - s.scheduled_s) * 1e3 for s in answered]),
        ttft=distribution([_ms(s.scheduled_s, s.first_s) for s in answered]),
        service=distribution([(s.ended_s - s.sent_s) * 1e3 for s in answered]),
        tpot=distribution([_tpot_ms(s) for s in answered]),
        refusal=distribution([(s.ended_s - s.sent_s) * 1e3 for s in shed]),
        requests_per_s=len(answered) / wall_s,
        tokens_per_s=sum(s.tokens for s in answered) / wall_s,
        good_share=good / len(samples),
        good_per_s=good / wall_s,
        lag_p99_ms=float(_percentile([(s.sent_s - s.scheduled_s) * 1e3 for s in samples], 99)),
    )


def distribution(values_ms: Sequence[float | None]) -> Distribution | None:
    """Return the percentiles of the values that exist, or None without any."""
    known = [v for v in values_ms if v is not None]
    if not known:
        return None
    p50, p90, p95, p99 = (_percentile(known, q) for q in (50, 90, 95, 99))
    return Distribution(len(known), float(np.mean(known)), p50, p90, p95, p99, max(known))


def _percentile(values: Sequence[float], q: float) -> float:
    return float(np.percentile(values, q, method="inverted_cdf"))


def _ms(start_s: float, end_s: float | None) -> float | None:
    return None if end_s is None else (end_s - start_s) * 1e3


def _tpot_ms(sample: Sample) -> float | None:
    if sample.first_s is None or sample.last_text_s is None or sample.tokens < 2:
        return None
    return (sample.last_text_s - sample.first_s) * 1e3 / (sample.tokens - 1)
