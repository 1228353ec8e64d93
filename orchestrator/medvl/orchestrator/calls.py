"""One call to the service: its id, its deadline, and what each stage of it took."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from medvl.contracts.errors import DeadlineExceeded
from medvl.contracts.messages import LanguageUsage


class Stages:
    """Milliseconds by stage: measured ones are wall time, what is added is the sum over parts that run side by side."""

    def __init__(self) -> None:
        self._ms: dict[str, float] = {}
        self._running: dict[str, int] = {}
        self._start_s: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Time a block, also when it fails; blocks of one stage that overlap count once."""
        if not self._running.setdefault(stage, 0):
            self._start_s[stage] = time.monotonic()
        self._running[stage] += 1
        try:
            yield
        finally:
            self._running[stage] -= 1
            if not self._running[stage]:
                self.add(stage, (time.monotonic() - self._start_s[stage]) * 1e3)

    def add(self, stage: str, ms: float) -> None:
        """Add to a stage, in milliseconds."""
        self._ms[stage] = self._ms.get(stage, 0.0) + ms

    def as_dict(self) -> dict[str, float]:
        """Return milliseconds by stage; a stage that still runs counts up to now."""
        now_s = time.monotonic()
        running = {s: (now_s - self._start_s[s]) * 1e3 for s, count in self._running.items() if count}
        return self._ms | {s: self._ms.get(s, 0.0) + ms for s, ms in running.items()}


@dataclass(frozen=True, slots=True)
class Call:
    """What travels with a request through every hop.

    Attributes
    ----------
    request_id
        Random hex digits; they name the request in logs and in Triton, and come back to the caller.
    deadline_s
        Time of the running event loop at which the answer is worth nothing any more.
    stages, usages
        Filled while the call runs: what took how long, and what each generation of text cost.
    """

    request_id: str
    deadline_s: float
    stages: Stages = field(default_factory=Stages)
    usages: list[LanguageUsage] = field(default_factory=list)

    def spent(self, usage: LanguageUsage) -> None:
        """Note what a generation of text cost."""
        self.usages.append(usage)
        self.stages.add("llm_queue", usage.queue_ms)
        self.stages.add("llm_prefill", usage.prefill_ms)
        self.stages.add("llm_decode", usage.decode_ms)

    def remaining_s(self) -> float:
        """Return the time left for the next hop, in seconds, above zero.

        Raises
        ------
        DeadlineExceeded
            When none is left.
        """
        remaining_s = self.deadline_s - asyncio.get_running_loop().time()
        if remaining_s <= 0:
            raise DeadlineExceeded("The deadline passed before the answer was complete: allow more time.")
        return remaining_s
