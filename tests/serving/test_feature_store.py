"""The feature store computes a slice once, stays within its budget and forgets what can be had again first."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvl.contracts.errors import Overloaded, SeriesTooLarge
from medvl.serving.feature_store import FeatureStore, SeriesKey, SliceFeatures

SIDE = 4
SLICE_BYTES = SIDE * SIDE
FEATURE_BYTES = 3 * 4 * 10


def key(name: str) -> SeriesKey:
    return SeriesKey(name, (-160.0, 240.0), "checkpoint")


def series(depth: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (depth, SIDE, SIDE), dtype=np.uint8)


class Encoder:
    """Counts its slices; a slice's features are ten times its first pixel. Waits while ``gate`` is closed."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failing = False

    async def __call__(self, slices: np.ndarray) -> list[SliceFeatures]:
        self.batches.append(len(slices))
        await self.gate.wait()
        if self.failing:
            raise RuntimeError("no encoder")
        return [SliceFeatures(*[np.full(10, s[0, 0], np.float32)] * 3) for s in slices]


def store(encoder: Encoder, budget_bytes: int = 10**6, batch: int = 4) -> FeatureStore:
    return FeatureStore(encoder, budget_bytes=budget_bytes, batch=batch)


async def test_a_slice_is_computed_once():
    """A second request finds what the first computed, in its own order and with repetitions."""
    encoder, a, slices = Encoder(), key("a"), series(8)
    s = store(encoder)
    s.put(a, slices)
    with s.using(a) as depth:
        first = await s.get(a, [0, 1, 2, 3, 4])
        second = await s.get(a, [4, 2, 4, 5])
    assert depth == 8
    assert (first.computed, second.computed) == (5, 1)
    assert encoder.batches == [4, 1, 1]
    assert [f.f1[0] for f in second.features] == [slices[i, 0, 0] for i in (4, 2, 4, 5)]


async def test_requests_at_the_same_time_share_the_work():
    """A slice in flight is waited for; the caller who came second computes nothing."""
    encoder, a = Encoder(), key("a")
    s = store(encoder)
    s.put(a, series(8))
    encoder.gate.clear()
    with s.using(a):
        both = asyncio.gather(s.get(a, [0, 1, 2]), s.get(a, [1, 2, 3]))
        await asyncio.sleep(0)
        encoder.gate.set()
        first, second = await both
    assert (first.computed, second.computed) == (3, 1)
    assert sum(encoder.batches) == 4


async def test_expected_slices_are_computed_before_they_are_asked_for():
    """Whoever asks for them then computes nothing; one that failed unseen is computed again."""
    encoder, a = Encoder(), key("a")
    s = store(encoder, batch=1)
    s.put(a, series(8))
    with s.using(a):
        assert s.expect(a, [1]) == 0
        await s.get(a, [0])
        assert s.expect(a, [0, 1, 2]) == 2
        assert (await s.get(a, [1, 2])).computed == 0
        encoder.failing = True
        assert s.expect(a, [3]) == 1
        await asyncio.sleep(0.01)
        encoder.failing = False
        assert (await s.get(a, [3])).computed == 1


async def test_a_caller_who_leaves_takes_nothing_away():
    """Cancelling one request does not cancel the work that another waits for."""
    encoder, a = Encoder(), key("a")
    s = store(encoder)
    s.put(a, series(4))
    encoder.gate.clear()
    with s.using(a):
        leaving = asyncio.ensure_future(s.get(a, [0]))
        staying = asyncio.ensure_future(s.get(a, [0]))
        await asyncio.sleep(0)
        leaving.cancel()
        encoder.gate.set()
        assert len((await staying).features) == 1


async def test_a_failure_is_not_remembered():
    """After the encoder failed, the next request computes the slice."""
    encoder, a = Encoder(), key("a")
    s = store(encoder)
    s.put(a, series(4))
    encoder.failing = True
    with s.using(a):
        with pytest.raises(RuntimeError):
            await s.get(a, [0])
        encoder.failing = False
        assert (await s.get(a, [0])).computed == 1


async def test_features_go_before_slices():
    """Over its budget the store drops features, least recently used first, and the series stay."""
    encoder, a, b = Encoder(), key("a"), key("b")
    s = store(encoder, budget_bytes=2 * 4 * SLICE_BYTES + 3 * FEATURE_BYTES)
    s.put(a, series(4))
    s.put(b, series(4, seed=1))
    with s.using(a), s.using(b):
        await s.get(a, [0, 1])
        await s.get(b, [0])
        await s.get(a, [0])
        await s.get(b, [1])
        assert (await s.get(a, [0])).computed == 0
        assert (await s.get(a, [1])).computed == 1
    assert a in s
    assert b in s


async def test_series_of_the_past_leave_no_one_without_features():
    """The series used last keeps its features, whatever has been sent before it."""
    encoder, last = Encoder(), key("9")
    s = store(encoder, budget_bytes=4 * (4 * SLICE_BYTES) + 4 * FEATURE_BYTES)
    for number in range(10):
        s.put(key(str(number)), series(4, seed=number))
        with s.using(key(str(number))):
            await s.get(key(str(number)), range(4))
    with s.using(last):
        assert (await s.get(last, range(4))).computed == 0
    assert key("0") not in s
    assert key("8") in s


async def test_what_was_begun_ahead_of_a_forgotten_series_is_not_kept():
    encoder, a = Encoder(), key("a")
    s = store(encoder, budget_bytes=4 * SLICE_BYTES + FEATURE_BYTES)
    s.put(a, series(4))
    with s.using(a):
        await s.get(a, [0])
        encoder.gate.clear()
        s.expect(a, [1])
        await asyncio.sleep(0)
    s.put(key("b"), series(10))
    assert a not in s
    encoder.gate.set()
    await asyncio.sleep(0.01)
    assert s.nbytes == 10 * SLICE_BYTES


async def test_a_series_in_use_is_not_forgotten():
    """A series that is being worked on stays; when only such series are left, a new one is refused with a delay."""
    encoder = Encoder()
    s = store(encoder, budget_bytes=2 * 4 * SLICE_BYTES)
    s.put(key("a"), series(4))
    s.put(key("b"), series(4))
    with s.using(key("a")):
        s.put(key("c"), series(4))
        assert key("a") in s
        assert key("b") not in s
        with s.using(key("c")), pytest.raises(Overloaded) as refused:
            s.put(key("d"), series(4))
    assert refused.value.retry_after_s
    s.put(key("d"), series(4))
    assert key("d") in s


async def test_a_series_larger_than_the_store_is_refused_for_good():
    """Trying again does not help, and nobody else's slices make room for it."""
    s = store(Encoder(), budget_bytes=5 * SLICE_BYTES)
    s.put(key("a"), series(4))
    with pytest.raises(SeriesTooLarge, match="MEDVL_SEGMENTER_STORE_BYTES"):
        s.put(key("b"), series(6))
    assert key("a") in s


async def test_windows_and_checkpoints_do_not_mix():
    """The same series under another window or checkpoint is another series."""
    s = store(Encoder())
    s.put(key("a"), series(4))
    assert SeriesKey("a", (-1350.0, 150.0), "checkpoint") not in s
    assert SeriesKey("a", (-160.0, 240.0), "other") not in s


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 4), max_size=6)), max_size=20), st.integers(1, 6))
def test_the_budget_holds_whatever_is_asked(requests, room):
    """Slices and features never exceed the budget, and every answer is right."""

    async def play() -> None:
        s = store(Encoder(), budget_bytes=room * (5 * SLICE_BYTES) + 2 * FEATURE_BYTES, batch=2)
        for number, indices in requests:
            slices = series(5, seed=number)
            s.put(key(str(number)), slices)
            with s.using(key(str(number))):
                fetched = await s.get(key(str(number)), indices)
            assert [f.f0[0] for f in fetched.features] == [slices[i, 0, 0] for i in indices]
            assert s.nbytes <= room * (5 * SLICE_BYTES) + 2 * FEATURE_BYTES

    asyncio.run(play())
