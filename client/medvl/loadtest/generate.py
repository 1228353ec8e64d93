"""Send the requests of a test and write down what became of each."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from medvl.client.aio import AsyncClient
from medvl.client.events import Event, Progress, TextDelta
from medvl.client.results import Answer
from medvl.client.stream import collected
from medvl.contracts.errors import BackendUnavailable, DeadlineExceeded, MedvlError, Overloaded
from medvl.loadtest.plan import Load, Request, arrivals_s, choices


class Outcome(StrEnum):
    """What became of a request."""

    OK = "ok"
    SHED = "shed"
    DEADLINE = "deadline"
    UNAVAILABLE = "unavailable"
    WRONG_ANSWER = "wrong_answer"
    """Answered, but not as the same request was answered first."""
    FAILED = "failed"
    """Refused or failed in any other way."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request; times are seconds of one monotonic clock.

    ``first_s`` is when the first part of the answer came (progress does not count), ``last_text_s`` when the last text.
    """

    outcome: Outcome
    scheduled_s: float
    sent_s: float
    ended_s: float
    first_s: float | None
    last_text_s: float | None
    tokens: int


_OUTCOMES: dict[type[MedvlError], Outcome] = {
    Overloaded: Outcome.SHED,
    DeadlineExceeded: Outcome.DEADLINE,
    BackendUnavailable: Outcome.UNAVAILABLE,
}


class Generator:
    """Sends requests through one client and collects samples.

    Parameters
    ----------
    client
        A client that does not retry: what is shed must count as shed.
    load
        How hard and how long.
    variants
        The different requests.
    """

    def __init__(self, client: AsyncClient, load: Load, variants: Sequence[Request]) -> None:
        self._client = client
        self._load = load
        self._variants = variants
        self._choices = choices(load, len(variants))
        self._first_answers: dict[int, bytes] = {}
        self._samples: list[Sample] = []

    async def run(self) -> list[Sample]:
        """Warm up, send, wait for what is under way, and return the samples in order of completion.

        Raises
        ------
        MedvlError
            When a request of the warm-up fails: such a service cannot be measured.
        """
        for i in range(self._load.warmup):
            variant = i % len(self._variants)
            answer = await self._variants[variant](self._client, self._load.deadline_s).collect()
            self._check(variant, answer)
        if self._load.request_rate is not None:
            await self._open_loop(self._load.request_rate)
        else:
            await self._closed_loop(self._load.concurrency or 1)
        return self._samples

    async def _open_loop(self, rate: float) -> None:
        start_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for i, at_s in enumerate(arrivals_s(self._load, rate).tolist()):
                await asyncio.sleep(max(0.0, start_s + at_s - time.monotonic()))
                group.create_task(self._send(i, start_s + at_s))

    async def _closed_loop(self, concurrency: int) -> None:
        end_s = time.monotonic() + self._load.duration_s
        numbers = iter(range(self._load.max_requests))

        async def one_client() -> None:
            while time.monotonic() < end_s and (i := next(numbers, None)) is not None:
                await self._send(i, time.monotonic())

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(one_client())

    async def _send(self, i: int, scheduled_s: float) -> None:
        variant = int(self._choices[i])
        sent_s = time.monotonic()
        first_s = last_text_s = None
        events: list[Event] = []
        try:
            async with self._variants[variant](self._client, self._load.deadline_s) as stream:
                async for event in stream:
                    events.append(event)
                    if not isinstance(event, Progress):
                        first_s = first_s or time.monotonic()
                    if isinstance(event, TextDelta):
                        last_text_s = time.monotonic()
            answer = collected(events)
            outcome, tokens = self._check(variant, answer), answer.done.completion_tokens
        except MedvlError as error:
            outcome, tokens = _OUTCOMES.get(type(error), Outcome.FAILED), 0
        self._samples.append(Sample(outcome, scheduled_s, sent_s, time.monotonic(), first_s, last_text_s, tokens))

    def _check(self, variant: int, answer: Answer) -> Outcome:
        """Compare an answer with the first one to the same request."""
        found = fingerprint(answer)
        return Outcome.OK if self._first_answers.setdefault(variant, found) == found else Outcome.WRONG_ANSWER


def fingerprint(answer: Answer) -> bytes:
    """Return a digest of what an answer says: its text and its masks."""
    digest = hashlib.sha256(answer.text.encode())
    for mask in sorted(answer.masks, key=lambda m: m.object_index):
        digest.update(f"\0{mask.object_index} {mask.label} {mask.found}\0".encode())
        digest.update(mask.packed)
    return digest.digest()
