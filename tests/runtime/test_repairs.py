"""Repairs: ever slower, and not for ever."""

from __future__ import annotations

import pytest

from medvl.contracts.errors import BackendUnavailable
from medvl.runtime.repairs import RepairBudget, SupervisionPolicy

POLICY = SupervisionPolicy(first_delay_s=1.0, max_delay_s=4.0, max_repairs=4, repair_window_s=120.0)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_waits_double_up_to_a_limit() -> None:
    """Something that keeps failing is not started again at full speed."""
    budget = RepairBudget(POLICY, Clock())
    assert [budget.spend("llm") for _ in range(4)] == [1.0, 2.0, 4.0, 4.0]


def test_what_fails_too_often_is_given_up() -> None:
    """The sentence says what failed, how often, and what to do."""
    budget = RepairBudget(POLICY, Clock())
    for _ in range(4):
        budget.spend("The model llm")
    with pytest.raises(BackendUnavailable, match=r"The model llm failed 5 times within 2 minutes .* read the logs"):
        budget.spend("The model llm")


def test_old_failures_are_forgiven() -> None:
    """A failure a day never ends a system."""
    clock = Clock()
    budget = RepairBudget(POLICY, clock)
    for _ in range(20):
        clock.now_s += 121.0
        assert budget.spend("llm") == 1.0


def test_each_thing_has_its_own_count() -> None:
    """A failing model does not use up the orchestrator's repairs."""
    budget = RepairBudget(POLICY, Clock())
    for _ in range(4):
        budget.spend("llm")
    assert budget.spend("The orchestrator") == 1.0
