"""What every step of answering one request needs."""

from __future__ import annotations

from dataclasses import dataclass

from medvl.contracts.checkpoint import Checkpoint
from medvl.orchestrator.calls import Call
from medvl.orchestrator.emitter import Emitter
from medvl.orchestrator.store import StoredSeries
from medvl.orchestrator.triton import Triton


@dataclass(frozen=True, slots=True)
class Work:
    """One admitted request.

    Attributes
    ----------
    triton
        The inference server.
    checkpoint
        What it serves.
    series
        The series that the request is about, leased for its length.
    call
        Id, deadline and cost.
    emitter
        Where events go.
    """

    triton: Triton
    checkpoint: Checkpoint
    series: StoredSeries
    call: Call
    emitter: Emitter
