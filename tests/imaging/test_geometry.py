"""Places and lengths of a grid, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from medvl.imaging.geometry import AxisMap, Geometry

CANONICAL = ((0, 0, 1), (0, 1, 0), (1, 0, 0))
GRID = Geometry((4, 6, 8), (5.0, 1.0, 2.0), (10.0, 20.0, 30.0), CANONICAL)
SAGITTAL = Geometry((4, 6, 8), (5.0, 1.0, 2.0), (10.0, 20.0, 30.0), ((-1, 0, 0), (0, 0, -1), (0, 1, 0)))
"""Slices run to the right, rows downwards, columns to the back."""


def test_a_grid_is_as_long_as_its_voxels_together():
    """From the edge of the first to the edge of the last, a voxel more than between their centres."""
    assert GRID.extent_mm == (4 * 5.0, 6 * 1.0, 8 * 2.0)
    assert Geometry((1, 1, 1), (5.0, 0.7, 0.8), (0.0, 0.0, 0.0), CANONICAL).extent_mm == (5.0, 0.7, 0.8)
    edges = GRID.index_to_lps(np.array([(-0.5, -0.5, -0.5), (3.5, 5.5, 7.5)]))
    assert np.ptp(edges, axis=0)[::-1].tolist() == list(GRID.extent_mm)
    assert GRID.voxel_volume_mm3 == 10.0


@pytest.mark.parametrize(
    ("geometry", "index", "place_mm"),
    [
        (GRID, (0, 0, 0), (10.0, 20.0, 30.0)),
        (GRID, (1, 2, 3), (10.0 + 3 * 2.0, 20.0 + 2 * 1.0, 30.0 + 1 * 5.0)),
        (GRID, (0.5, -0.5, 7), (10.0 + 7 * 2.0, 20.0 - 0.5, 30.0 + 2.5)),
        (SAGITTAL, (1, 2, 3), (10.0 - 1 * 5.0, 20.0 + 3 * 2.0, 30.0 - 2 * 1.0)),
    ],
)
def test_voxels_lie_where_their_axes_lead(geometry: Geometry, index: Sequence[float], place_mm: Sequence[float]):
    """Whole numbers are centres; there and back."""
    assert geometry.index_to_lps(np.array(index)).tolist() == list(place_mm)
    assert geometry.lps_to_index(np.array(place_mm)) == pytest.approx(np.array(index))


def test_a_sagittal_grid_becomes_canonical():
    """Every voxel keeps its place: rows become slices, columns rows, slices columns, two of them the other way."""
    geometry, axis_map = SAGITTAL.canonical()
    assert axis_map == AxisMap(permutation=(1, 2, 0), flips=(True, False, True))
    assert (geometry.shape, geometry.spacing_mm) == ((6, 8, 4), (1.0, 2.0, 5.0))
    assert geometry.direction == CANONICAL
    assert geometry.origin_mm == (10.0 - 3 * 5.0, 20.0, 30.0 - 5 * 1.0)
    assert (GRID.is_canonical, geometry.is_canonical, SAGITTAL.is_canonical) == (True, True, False)
    assert not replace(GRID, direction=((0, 0, -1), (0, 1, 0), (1, 0, 0))).is_canonical, "slices run downwards"
    voxels = np.arange(4 * 6 * 8).reshape(4, 6, 8)
    canonical = axis_map.apply(voxels)
    places_mm = geometry.index_to_lps(np.argwhere(canonical >= 0))
    source = np.rint(SAGITTAL.lps_to_index(places_mm)).astype(int)
    assert np.array_equal(canonical.ravel(), voxels[tuple(source.T)])
    assert np.array_equal(axis_map.invert(canonical), voxels)
