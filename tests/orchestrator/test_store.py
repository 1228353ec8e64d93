"""Memory stays within its bounds, and waiting within its queue."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvl.contracts.errors import Overloaded, SeriesNotResident
from medvl.imaging.volume import Volume
from medvl.orchestrator.admission import Admission
from medvl.orchestrator.cache import BoundedCache, UnderWay
from medvl.orchestrator.store import SeriesStore

from .conftest import Series

VOLUME = Volume(Series.make().hu, Series.make().geometry)


async def put(store: SeriesStore, digest: str, size_bytes: int) -> None:
    async with store.turn(digest) as resident:
        if not resident:
            with store.upload(digest, size_bytes) as upload:
                upload.complete(VOLUME)


@given(sizes=st.lists(st.integers(1, 100), max_size=20))
def test_the_store_never_holds_more_than_it_may(sizes):
    """Whatever comes, the newest is there and the bytes are counted."""

    async def fill() -> None:
        store = SeriesStore(100, max_waiting=1)
        for number, size in enumerate(sizes):
            await put(store, str(number), size)
            assert store.used_bytes <= 100
            assert store.touch(str(number))

    asyncio.run(fill())


async def test_an_upload_that_fails_is_not_counted():
    """Its reservation ends with it."""
    store = SeriesStore(100, max_waiting=1)
    with store.upload("a", 60):
        assert store.used_bytes == 60
    assert store.used_bytes == 0
    with pytest.raises(SeriesNotResident), store.lease("a"):
        pass


async def test_few_wait_for_another_who_sends_the_same():
    """Of three senders of one series the last is refused, with a delay; senders of other series are not."""
    store, gate = SeriesStore(100, max_waiting=1), asyncio.Event()

    async def send(digest: str) -> bool:
        async with store.turn(digest) as resident:
            await gate.wait()
            return resident

    first, second = asyncio.create_task(send("a")), asyncio.create_task(send("a"))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as caught:
        await send("a")
    assert caught.value.retry_after_s is not None
    await put(store, "b", 10)
    second.cancel()
    third = asyncio.create_task(send("a"))
    gate.set()
    assert [await first, await third] == [False, False]


async def test_what_cannot_fit_evicts_nothing():
    """A refusal costs nobody a series."""
    store = SeriesStore(100, max_waiting=1)
    await put(store, "leased", 60)
    await put(store, "idle", 30)
    with store.lease("leased"):
        with pytest.raises(Overloaded):
            await put(store, "big", 50)
        assert store.touch("idle")
        await put(store, "fits", 40)
    assert not store.touch("idle")


async def test_a_request_keeps_its_series_longer():
    """The one that nobody has asked about for the longest makes room."""
    store = SeriesStore(100, max_waiting=1)
    for digest in ("asked", "unasked", "third"):
        await put(store, digest, 33)
    with store.lease("asked"):
        pass
    await put(store, "fourth", 33)
    assert store.touch("asked")
    assert not store.touch("unasked")


@given(sizes=st.lists(st.integers(1, 60), max_size=20))
def test_the_cache_is_bounded_in_bytes(sizes):
    """The newest value is kept unless it alone is above the bound."""
    cache: BoundedCache[int, np.ndarray] = BoundedCache(40)
    for number, size in enumerate(sizes):
        cache.put(number % 5, np.zeros(size, np.uint8))
        assert cache.nbytes <= 40
        assert (cache.get(number % 5) is not None) == (size <= 40)


@pytest.mark.parametrize(
    ("how", "outcome"), [("arrives", type(None)), ("fails", ValueError), ("is cancelled", asyncio.CancelledError)]
)
async def test_what_has_been_sent_is_forgotten(how, outcome):
    """Whoever waited goes on, however it ended, and nothing is left of it."""
    sendings, release = UnderWay[str](), asyncio.Event()

    async def send() -> None:
        with sendings.at("a") as arrived:
            await release.wait()
            if how == "fails":
                raise ValueError("x")
            arrived()
            assert not await sendings.ended("a"), "it has ended, though its sender goes on"

    assert not await sendings.ended("a")
    sender = asyncio.create_task(send())
    await asyncio.sleep(0)
    waiting = asyncio.create_task(sendings.ended("a"))
    assert not await sendings.ended("b")
    if how == "is cancelled":
        sender.cancel()
    release.set()
    (ended,) = await asyncio.gather(sender, return_exceptions=True)
    assert isinstance(ended, outcome)
    assert await waiting
    assert not await sendings.ended("a")
    assert sendings._ends == {}


async def test_admission_refuses_what_is_over_the_queue():
    """Two at work, one waiting; the fourth is told a delay; a place that is left is taken by the one that waits."""
    gate, admission, order = asyncio.Event(), Admission(2, 1), []

    async def work(number: int) -> None:
        async with admission.admit():
            order.append(number)
            await gate.wait()

    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(work(number))
        await asyncio.sleep(0)
        assert (order, admission.admitted) == ([0, 1], 3)
        with pytest.raises(Overloaded) as caught:
            await work(3)
        assert caught.value.retry_after_s is not None
        gate.set()
    assert (order, admission.admitted) == ([0, 1, 2], 0)


async def test_whoever_is_refused_is_told_what_requests_take(monkeypatch):
    """Half of the mean of two at work; the mean of many of 4 s is 4 s, wherever it began."""
    clock_s = 1000.0
    monkeypatch.setattr("medvl.orchestrator.admission._now_s", lambda: clock_s)
    admission = Admission(2, 0)
    for _ in range(40):
        async with admission.admit():
            clock_s += 4.0
    async with admission.admit(), admission.admit():
        with pytest.raises(Overloaded) as caught:
            async with admission.admit():
                pass
    assert caught.value.retry_after_s == pytest.approx(2.0, rel=0.01)


async def test_a_failure_leaves_its_place():
    """An error inside frees the slot, and so does giving up while waiting."""
    admission = Admission(1, 1)
    for _ in range(3):
        with pytest.raises(ValueError, match="x"):
            async with admission.admit():
                raise ValueError("x")
    async with admission.admit():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01), admission.admit():
                pass
    assert admission.admitted == 0
