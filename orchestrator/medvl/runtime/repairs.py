"""How often something is repaired, how long to wait before, and when to give up."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass

from medvl.contracts.errors import BackendUnavailable


@dataclass(frozen=True, slots=True)
class SupervisionPolicy:
    """When a process counts as ill and what is done then; times in seconds."""

    probe_interval_s: float = 2.0
    """Pause between two rounds of canaries."""
    probe_timeout_s: float = 10.0
    """How long one canary may take."""
    stall_s: float = 60.0
    """How long a model may go without an answer and without progress."""
    first_delay_s: float = 0.5
    """Wait before the first repair; it doubles with each further one."""
    max_delay_s: float = 30.0
    max_repairs: int = 5
    """Repairs of one thing within the window; the next failure is given up."""
    repair_window_s: float = 600.0


class RepairBudget:
    """Counts repairs by what was repaired.

    Parameters
    ----------
    policy
        How many, how fast.
    clock
        Seconds, monotonic.
    """

    def __init__(self, policy: SupervisionPolicy, clock: Callable[[], float]) -> None:
        self._policy = policy
        self._clock = clock
        self._repairs_s: defaultdict[str, deque[float]] = defaultdict(deque)

    def spend(self, what: str) -> float:
        """Count one repair and return how long to wait before it, in seconds.

        Raises
        ------
        BackendUnavailable
            When the thing has used up its repairs.
        """
        policy, times_s, now_s = self._policy, self._repairs_s[what], self._clock()
        while times_s and now_s - times_s[0] > policy.repair_window_s:
            times_s.popleft()
        if len(times_s) >= policy.max_repairs:
            raise BackendUnavailable(
                f"{what} failed {len(times_s) + 1} times within {policy.repair_window_s / 60:g} minutes and is given "
                "up: read the logs, then start again."
            )
        times_s.append(now_s)
        return float(min(policy.first_delay_s * 2 ** (len(times_s) - 1), policy.max_delay_s))
