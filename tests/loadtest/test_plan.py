"""What is sent, and when, follows from the seed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvl.imaging.geometry import Geometry
from medvl.imaging.volume import Volume
from medvl.loadtest.plan import Load, arrivals_s, choices, points

LOAD = Load(request_rate=50.0, concurrency=None, duration_s=20.0, deadline_s=1.0, max_requests=10_000, warmup=0, seed=7)


@given(st.integers(0, 2**32), st.floats(0.1, 1000), st.floats(0.1, 100), st.integers(1, 500))
def test_arrivals_stay_within_duration_and_count(seed, rate, duration_s, count):
    """Whatever is asked for, no more than so many requests, none after the end, in order."""
    load = dataclasses.replace(LOAD, seed=seed, duration_s=duration_s, max_requests=count)
    times = arrivals_s(load, rate)
    assert len(times) <= count
    assert (np.diff(times) >= 0).all()
    assert ((times > 0) & (times < duration_s)).all()


def test_the_same_seed_sends_the_same_requests_at_the_same_times():
    """So that two runs can be compared."""
    assert np.array_equal(arrivals_s(LOAD, 50.0), arrivals_s(LOAD, 50.0))
    assert np.array_equal(choices(LOAD, 3), choices(LOAD, 3))
    other = dataclasses.replace(LOAD, seed=8)
    assert not np.array_equal(arrivals_s(LOAD, 50.0)[:10], arrivals_s(other, 50.0)[:10])


def test_arrivals_are_a_poisson_process_of_the_rate_asked_for():
    """Gaps have the mean and the standard deviation of an exponential distribution."""
    gaps = np.diff(arrivals_s(LOAD, 50.0))
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.1)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)


def test_points_lie_inside_an_oblique_volume():
    """In the inner half along each of its own axes, in patient millimetres."""
    angle = np.deg2rad(30)
    axes = np.array([[0, -np.sin(angle), np.cos(angle)], [0, np.cos(angle), np.sin(angle)], [1, 0, 0]])
    geometry = Geometry(shape=(10, 20, 30), spacing_mm=(5.0, 2.0, 1.0), origin_mm=(-7.0, 11.0, 13.0), direction=axes)
    volume = Volume(np.zeros(geometry.shape, np.int16), geometry)
    for point in points(volume, seed=3):
        share = geometry.lps_to_index(np.array(point.lps_mm)) / (np.array(geometry.shape) - 1)
        assert ((share >= 0.25) & (share <= 0.75)).all()
