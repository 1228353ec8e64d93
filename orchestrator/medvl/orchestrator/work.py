"""What every step of answering one request needs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from medvl.contracts.checkpoint import Checkpoint, HuRange
from medvl.orchestrator.cache import UnderWay
from medvl.orchestrator.calls import Call
from medvl.orchestrator.emitter import Emitter
from medvl.orchestrator.store import StoredSeries
from medvl.orchestrator.triton import Served, Triton

SlicesKey = tuple[str, HuRange, str]
"""What windowed slices depend on: digest of the series, window, digest of the checkpoint."""


@dataclass(frozen=True, slots=True)
class Work:
    """One admitted request.

    Attributes
    ----------
    triton
        The inference server.
    served
        What it serves, as it told before.
    series
        The series that the request is about, leased for its length.
    call
        Id, deadline and cost.
    emitter
        Where events go.
    parts
        Held by each text or group of objects that is at work beside the rest of the request; a report's or an answer's
        own text, which they wait for, holds none.
    sending_slices
        Slices that any request is sending to the segmenter.
    """

    triton: Triton
    served: Served
    series: StoredSeries
    call: Call
    emitter: Emitter
    parts: asyncio.Semaphore
    sending_slices: UnderWay[SlicesKey]

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint that is served."""
        return self.served.checkpoint

    def confirm(self, model: str, weights: str) -> None:
        """Check that an answer is of :attr:`served`, by the weights that the model names at its end.

        Raises
        ------
        BackendUnavailable
            As :meth:`medvl.orchestrator.triton.Triton.confirm`.
        """
        self.triton.confirm(self.served, model, weights)
