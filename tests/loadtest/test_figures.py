"""What the figures of a load test mean."""

from __future__ import annotations

import pytest

from medvl.loadtest.figures import Goodput, distribution, figures
from medvl.loadtest.generate import Outcome, Sample


def sample(scheduled_s=0.0, *, lag_s=0.0, first_s=0.2, end_s=1.0, outcome=Outcome.OK, tokens=0):
    """A request whose first part and end come so long after it was scheduled."""
    return Sample(
        outcome,
        scheduled_s,
        scheduled_s + lag_s,
        scheduled_s + end_s,
        scheduled_s + first_s,
        scheduled_s + end_s,
        tokens,
    )


def test_percentiles_are_values_that_occurred():
    """Nearest rank: no figure is invented between two measurements."""
    d = distribution([float(v) for v in range(1, 101)])
    assert (d.p50, d.p90, d.p95, d.p99, d.max) == (50, 90, 95, 99, 100)


def test_latency_counts_from_the_scheduled_time():
    """A late generator cannot hide what users would have waited; service time stands beside it."""
    result = figures([sample(lag_s=0.75, end_s=1.0)], Goodput())
    assert result.e2e.p50 == pytest.approx(1000)
    assert result.service.p50 == pytest.approx(250)
    assert result.ttft.p50 == pytest.approx(200)


def test_a_late_generator_is_reported():
    """Above 10 ms at p99 the figures are those of the generator."""
    assert figures([sample(lag_s=0.011)], Goodput()).saturated
    assert not figures([sample(lag_s=0.009)], Goodput()).saturated


def test_only_right_answers_have_latencies_and_throughput():
    """Refusals are fast; counted among the answers they would flatter the service."""
    shed = sample(end_s=0.001, outcome=Outcome.SHED)
    result = figures([sample(end_s=2.0, tokens=10), shed], Goodput())
    assert result.e2e.count == 1
    assert result.requests_per_s == pytest.approx(0.5)
    assert result.tokens_per_s == pytest.approx(5.0)
    assert result.refusal.p50 == pytest.approx(1.0)
    assert result.outcomes == {"ok": 1, "shed": 1, "deadline": 0, "unavailable": 0, "wrong_answer": 0, "failed": 0}


def test_time_per_token_leaves_the_first_out():
    """The first token is time to first token; the others share the rest."""
    assert figures([sample(first_s=0.2, end_s=1.0, tokens=5)], Goodput()).tpot.p50 == pytest.approx(200)


def test_goodput_counts_right_answers_within_every_limit():
    """A wrong answer in time is not good, nor is a right one that misses one of the limits."""
    samples = [
        sample(first_s=0.1, end_s=0.5),
        sample(first_s=0.1, end_s=1.5),
        sample(first_s=0.4, end_s=0.5),
        sample(first_s=0.1, end_s=0.5, outcome=Outcome.WRONG_ANSWER),
    ]
    assert figures(samples, Goodput(ttft_ms=300, e2e_ms=1000)).good_share == 0.25
    assert figures(samples, Goodput()).good_share == 0.75


@pytest.mark.parametrize("outcome", [Outcome.WRONG_ANSWER, Outcome.FAILED, Outcome.UNAVAILABLE])
def test_one_wrong_or_failed_request_fails_the_test(outcome):
    """However fast the others were; a service that was away failed."""
    assert not figures([sample()] * 99 + [sample(outcome=outcome)], Goodput()).passed(0.0)


@pytest.mark.parametrize("outcome", [Outcome.SHED, Outcome.DEADLINE])
def test_an_overload_fails_by_its_share_alone(outcome):
    """To shed load, and to be late under it, is what a test of overload asks for."""
    assert figures([sample(), sample(outcome=outcome)], Goodput()).passed(0.5)


def test_a_test_without_a_single_answer_fails():
    """A service that sheds everything is not fast."""
    assert not figures([sample(outcome=Outcome.SHED)], Goodput()).passed(0.0)


def test_the_share_of_good_requests_decides():
    """--min-goodput is the share of all that was sent."""
    result = figures([sample(), sample(), sample(), sample(outcome=Outcome.SHED)], Goodput())
    assert result.passed(0.75)
    assert not result.passed(0.76)
