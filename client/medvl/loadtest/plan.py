"""What a load test sends and when, from a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from medvl.client.aio import AsyncClient
from medvl.client.prompts import ObjectPrompt, Point
from medvl.client.stream import EventStream
from medvl.imaging.volume import Volume

POINTS = 8
"""Different points of one test; few, so that each request comes again and its answer can be checked."""


class Task(StrEnum):
    """What every request of a test asks for."""

    REPORT = "report"
    ASK = "ask"
    SEGMENT_LABEL = "segment-label"
    SEGMENT_POINT = "segment-point"


@dataclass(frozen=True, slots=True)
class Load:
    """How hard, how long, how often; exactly one of ``request_rate`` and ``concurrency`` is set.

    Attributes
    ----------
    request_rate
        Mean arrivals per second of an open loop; arrivals are a Poisson process and do not wait for answers.
    concurrency
        Clients of a closed loop; each sends its next request when the last one is answered.
    duration_s
        No request is sent later; those under way are waited for.
    deadline_s
        Deadline of each request.
    max_requests
        No more are sent.
    warmup
        Requests sent one after another before the test and left out of every figure.
    seed
        Of arrivals, points and the order of requests.
    """

    request_rate: float | None
    concurrency: int | None
    duration_s: float
    deadline_s: float
    max_requests: int
    warmup: int
    seed: int


Request = Callable[[AsyncClient, float], EventStream]
"""Starts one request; the number is its deadline in seconds."""


def arrivals_s(load: Load, rate: float) -> NDArray[np.float64]:
    """Return the times of a Poisson process in seconds from the start, ascending, within duration and count."""
    gaps = np.random.default_rng(load.seed).exponential(1.0 / rate, load.max_requests)
    times = np.cumsum(gaps)
    return times[times < load.duration_s]


def choices(load: Load, variants: int) -> NDArray[np.intp]:
    """Return which of the different requests each request of the test is."""
    return np.random.default_rng([load.seed, 1]).integers(variants, size=load.max_requests)


def requests(task: Task, volume: Volume, questions: Sequence[str], labels: Sequence[str], seed: int) -> list[Request]:
    """Return the different requests of a test.

    Parameters
    ----------
    task
        What they ask for.
    volume
        The series they are about.
    questions, labels
        One request for each, for the tasks ``ask`` and ``segment-label``.
    seed
        Chooses the points of the task ``segment-point``.
    """
    match task:
        case Task.REPORT:
            return [lambda client, deadline_s: client.report(volume, deadline_s=deadline_s)]
        case Task.ASK:
            return [_ask(volume, question) for question in questions]
        case Task.SEGMENT_LABEL:
            return [_segment(volume, ObjectPrompt(label=label)) for label in labels]
        case Task.SEGMENT_POINT:
            return [_segment(volume, ObjectPrompt(points=(point,))) for point in points(volume, seed)]


def points(volume: Volume, seed: int) -> list[Point]:
    """Return points from the inner half of the volume along each axis, in LPS millimetres."""
    last = np.array(volume.geometry.shape) - 1
    indices = np.random.default_rng([seed, 2]).uniform(0.25, 0.75, (POINTS, 3)) * last
    return [Point((x, y, z)) for x, y, z in volume.geometry.index_to_lps(indices).tolist()]


def _ask(volume: Volume, question: str) -> Request:
    return lambda client, deadline_s: client.ask(volume, question, deadline_s=deadline_s)


def _segment(volume: Volume, prompt: ObjectPrompt) -> Request:
    return lambda client, deadline_s: client.segment(volume, [prompt], deadline_s=deadline_s)
