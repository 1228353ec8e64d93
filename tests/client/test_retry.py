"""How long and how often a call is repeated: what the server tells is kept, and nothing is overrun."""

from __future__ import annotations

import pytest

from medvl.client import RetryPolicy
from medvl.client.retry import Attempts, Deadline, RetryBudget
from medvl.contracts.errors import (
    BackendUnavailable,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    MedvlError,
    Overloaded,
)

from .conftest import Clock

LONGEST_JITTER = 1.2


def attempts(policy: RetryPolicy, deadline_s: float = 1e6) -> Attempts:
    return Attempts(policy, RetryBudget(policy), Deadline.after(deadline_s))


@pytest.mark.parametrize("kind", [Overloaded, BackendUnavailable])
async def test_the_servers_delay_is_waited_for(clock: Clock, kind: type[MedvlError]):
    """Never less, and up to a fifth longer: clients that were refused together come back apart."""
    call = attempts(RetryPolicy(max_attempts=100, max_tokens=100.0))
    for _ in range(50):
        await call.pause(kind("full", retry_after_s=1.5))
    assert all(1.5 <= wait_s <= 1.5 * LONGEST_JITTER for wait_s in clock.waits_s)
    assert len({*clock.waits_s}) == len(clock.waits_s) == 50


async def test_a_delay_that_the_policy_allows_is_the_longest_that_is_waited_for(clock: Clock):
    """A longer one is raised at once, whatever time there is."""
    call = attempts(RetryPolicy(max_delay_s=10.0))
    await call.pause(Overloaded("full", retry_after_s=10.0))
    with pytest.raises(Overloaded, match="fuller"):
        await call.pause(Overloaded("fuller", retry_after_s=10.1))
    assert len(clock.waits_s) == 1


async def test_a_wait_that_would_outlast_the_deadline_is_not_begun(clock: Clock):
    """The refusal says more than that the time was over; what was waited before counts."""
    call = attempts(RetryPolicy(), deadline_s=5.0)
    await call.pause(Overloaded("full", retry_after_s=3.0))
    with pytest.raises(Overloaded, match="fuller"):
        await call.pause(Overloaded("fuller", retry_after_s=2.0))
    assert len(clock.waits_s) == 1


def test_a_deadline_is_over_when_its_time_is(clock: Clock):
    """To the second, and with the error of the tree."""
    deadline = Deadline.after(5.0)
    clock.now_s += 4.5
    assert deadline.remaining_s() == 0.5
    clock.now_s += 0.5
    with pytest.raises(DeadlineExceeded):
        deadline.remaining_s()


@pytest.mark.parametrize(
    "error", [Overloaded("of an old server"), InvalidRequest("x", retry_after_s=0.0), InternalError("x")]
)
async def test_what_names_no_delay_or_does_not_pass_is_raised(clock: Clock, error: MedvlError):
    """At once: nobody knows when it would be worth asking again."""
    with pytest.raises(type(error)):
        await attempts(RetryPolicy()).pause(error)
    assert clock.waits_s == []


def test_a_success_earns_the_part_of_a_retry_that_the_policy_says():
    """A service that is in trouble half of the time is not asked nearly twice as often for long."""
    budget = RetryBudget(RetryPolicy(max_tokens=2.0, tokens_per_success=0.25))
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    for _ in range(3):
        budget.succeeded()
        assert not budget.spend()
    budget.succeeded()
    assert [budget.spend(), budget.spend()] == [True, False]


def test_successes_fill_the_budget_up_to_its_size():
    """A long quiet time is no licence for more."""
    budget = RetryBudget(RetryPolicy(max_tokens=2.0, tokens_per_success=0.5))
    for _ in range(100):
        budget.succeeded()
    assert [budget.spend() for _ in range(3)] == [True, True, False]
