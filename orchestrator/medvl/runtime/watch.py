"""Which models are dead or hung, from one round of canaries to the next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Protocol

from medvl.contracts.errors import DeadlineExceeded, MedvlError


class Ailment(StrEnum):
    """What is wrong with a model."""

    DEAD = "dead"
    """It refuses every request: its process is gone, or its engine is."""
    STALLED = "stalled"
    """It neither answers nor gets anything done."""


class Asks(Protocol):
    """Who asks a model for a sign of life: :class:`medvl.orchestrator.canary.Canary`."""

    async def ask(self, model: str) -> None:
        """Return when the model has answered; raise what kept it from answering."""


class Counts(Protocol):
    """Who knows how often a model has run: :class:`medvl.runtime.triton.TritonServer`."""

    async def executions(self, model: str) -> int:
        """Return the number of runs so far."""


class ModelWatch:
    """Asks every model and tells which ones are ill.

    A model that only is busy does not answer in time either; as long as its count of runs moves, it is well.

    Parameters
    ----------
    models
        Whom to ask.
    canary, counts
        How to ask, and how to see progress.
    stall_s
        How long a model may go without an answer and without progress.
    clock
        Seconds, monotonic.
    """

    def __init__(
        self, models: tuple[str, ...], canary: Asks, counts: Counts, stall_s: float, clock: Callable[[], float]
    ) -> None:
        self._models = models
        self._canary = canary
        self._counts = counts
        self._stall_s = stall_s
        self._clock = clock
        self._runs: dict[str, int] = {}
        self._moved_s: dict[str, float] = {}
        self.forget()

    def forget(self, model: str | None = None) -> None:
        """Start afresh with a model that was loaded again, or with all of them."""
        for name in (model,) if model else self._models:
            self._moved_s[name] = self._clock()
            self._runs.pop(name, None)

    async def round(self) -> Mapping[str, Ailment]:
        """Ask every model once, all at the same time, and return those that are ill."""
        found = await asyncio.gather(*(self._examine(name) for name in self._models))
        return {name: ailment for name, ailment in zip(self._models, found, strict=True) if ailment}

    async def _examine(self, model: str) -> Ailment | None:
        try:
            await self._canary.ask(model)
        except DeadlineExceeded:
            return await self._examine_silent(model)
        except MedvlError:
            return await self._confirm_dead(model)
        self._moved_s[model] = self._clock()
        return None

    async def _confirm_dead(self, model: str) -> Ailment | None:
        """Ask again: one failure may be a connection that broke."""
        try:
            await self._canary.ask(model)
        except DeadlineExceeded:
            return None
        except MedvlError:
            return Ailment.DEAD
        return None

    async def _examine_silent(self, model: str) -> Ailment | None:
        try:
            runs = await self._counts.executions(model)
        except MedvlError:
            runs = self._runs.get(model, 0)
        if runs != self._runs.get(model):
            self._runs[model] = runs
            self._moved_s[model] = self._clock()
        return Ailment.STALLED if self._clock() - self._moved_s[model] > self._stall_s else None
