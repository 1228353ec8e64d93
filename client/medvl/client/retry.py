"""Deadlines and retries of one call: the server's delay is kept, the budget and the deadline are never overrun."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass

from medvl.client.policies import RetryPolicy
from medvl.contracts.errors import BackendUnavailable, DeadlineExceeded, MedvlError, Overloaded

_JITTER = 0.2
"""Share of the delay by which clients that were refused together come back apart."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point of time.monotonic(), in seconds."""

    at_s: float

    @classmethod
    def after(cls, duration_s: float) -> Deadline:
        """Return the deadline that lies ``duration_s`` seconds ahead."""
        return cls(time.monotonic() + duration_s)

    def remaining_s(self) -> float:
        """Return the seconds that are left.

        Raises
        ------
        DeadlineExceeded
            When none are.
        """
        remaining_s = self.at_s - time.monotonic()
        if remaining_s <= 0:
            raise DeadlineExceeded("The deadline passed before the answer was complete: allow more time.")
        return remaining_s


class RetryBudget:
    """Token bucket shared by all calls of a client; see :class:`medvl.client.policies.RetryPolicy`."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._tokens = policy.max_tokens

    def spend(self) -> bool:
        """Take one token; False when there is none."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def succeeded(self) -> None:
        """Give back what a success earns."""
        self._tokens = min(self._policy.max_tokens, self._tokens + self._policy.tokens_per_success)


class Attempts:
    """Decides for one call whether a failed attempt is followed by another, and waits for it."""

    def __init__(self, policy: RetryPolicy, budget: RetryBudget, deadline: Deadline) -> None:
        self._policy = policy
        self._budget = budget
        self._deadline = deadline
        self._made = 0

    async def pause(self, error: MedvlError) -> None:
        """Wait until the call may be repeated.

        Raises
        ------
        MedvlError
            ``error`` itself, when it cannot pass by itself, the policy or the budget allows no further attempt, or the
            wait would outlast the deadline.
        """
        self._made += 1
        delay_s = self._delay_s(error)
        if delay_s is None or self._made >= self._policy.max_attempts or delay_s >= self._deadline.remaining_s():
            raise error
        if not self._budget.spend():
            raise error
        await asyncio.sleep(delay_s)

    def _delay_s(self, error: MedvlError) -> float | None:
        told_s = error.retry_after_s
        if (
            not isinstance(error, Overloaded | BackendUnavailable)
            or told_s is None
            or told_s > self._policy.max_delay_s
        ):
            return None
        return told_s * random.uniform(1.0, 1.0 + _JITTER)  # noqa: S311 - spreads load, guards nothing
