"""A server that dies while it segments costs its callers time, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import psutil
import pytest

from medvl.client import AsyncClient, Mask, ObjectPrompt, Point, Progress, RetryPolicy
from medvl.imaging.series import LoadedSeries
from medvl.imaging.volume import Volume
from medvl.runtime.system import EmbeddedSystem

PATIENT = RetryPolicy(max_attempts=40, max_tokens=50.0)
"""Waits as long as a server takes to start."""


@pytest.fixture
async def mortal(embedded_system: EmbeddedSystem) -> AsyncIterator[EmbeddedSystem]:
    """The system that all tests share, handed on when every model answers again: the language model is the last."""
    yield embedded_system
    async with AsyncClient(embedded_system.endpoint) as client, asyncio.timeout(240):
        while True:
            if await client.health():
                break
            await asyncio.sleep(0.2)


async def test_a_server_killed_while_it_tracks_costs_a_retry(mortal: EmbeddedSystem, series: LoadedSeries):
    """The caller reads one stream to its end; its mask is that of an undisturbed call."""
    # A server that stayed would know the answer.
    hu = series.volume.hu.copy()
    hu[0, 0, 0] += 1
    volume = Volume(hu, series.volume.geometry)
    x, y, z = volume.geometry.index_to_lps(np.array([12, 58, 38])).tolist()
    prompt = ObjectPrompt(points=(Point((x, y, z)),))
    server = psutil.Process(mortal.triton.process.pid)
    async with AsyncClient(mortal.endpoint, retry=PATIENT) as client:
        found = []
        async for event in client.segment(volume, [prompt]):
            if isinstance(event, Progress) and server.is_running():
                server.kill()
            if isinstance(event, Mask):
                found.append(event)
        again = await client.segment(series.volume, [prompt]).collect()
    assert not server.is_running()
    assert [m.packed for m in found] == [m.packed for m in again.masks]
