"""Which HU become which grey."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medvl.contracts.errors import InvalidRequest
from medvl.imaging.windows import Window, to_uint8


@pytest.mark.parametrize(
    ("window", "grey_of"),
    [
        # 1 HU a grey, from one side of 0 to the other.
        (Window(-100, 155), {-1000: 0, -101: 0, -100: 0, -99: 1, 0: 100, 27: 127, 154: 254, 155: 255, 156: 255}),
        # 4 HU a grey, away from 0: rounded to the nearest.
        (Window(1000, 2020), {999: 0, 1001: 0, 1003: 1, 1005: 1, 1007: 2, 1510: 128, 2018: 254, 2019: 255, 3071: 255}),
        # Below 0, and what 16 bits hold at most.
        (Window(-1020, -510), {-32768: 0, -1020: 0, -1018: 1, -816: 102, -512: 254, -510: 255, 0: 255, 32767: 255}),
        (Window(-0.5, 0.5), {-1: 0, 0: 128, 1: 255}),
    ],
)
def test_grey_values_by_hand(window: Window, grey_of: dict[int, int]):
    """The lower HU and all below are black, the upper and all above white, between them it is a straight line."""
    hu = np.array(list(grey_of), np.int16)
    assert to_uint8(hu, window).tolist() == list(grey_of.values())


def test_every_voxel_keeps_its_place():
    hu = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    grey = to_uint8(hu, Window(0, 255))
    assert grey.dtype == np.uint8
    assert np.array_equal(grey, hu)


@pytest.mark.parametrize("ends_hu", [(40, 40), (41, 40), (math.nan, 40), (-40, math.inf)])
def test_a_window_that_shows_nothing_is_refused(ends_hu: tuple[float, float]):
    with pytest.raises(InvalidRequest, match="below"):
        Window(*ends_hu)
