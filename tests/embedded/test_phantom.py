"""A phantom is the same for its seed, looks like a trunk, and its truth is that of its voxels."""

from __future__ import annotations

import numpy as np

from medvl.embedded.files import write_phantom_series
from medvl.embedded.phantom import make_phantom, sized


def test_a_seed_is_a_patient():
    """The same seed gives the same voxels, another one another patient."""
    first, again, other = (make_phantom(seed, sized(12, 32)) for seed in (1, 1, 2))
    assert np.array_equal(first.hu, again.hu)
    assert not np.array_equal(first.labels, other.labels)


def test_sides():
    """Liver and right kidney have negative x (LPS), spleen and left kidney positive; kidneys lie below the lungs."""
    phantom = make_phantom(3, sized(32, 64))
    places = {
        name: phantom.geometry.index_to_lps(np.argwhere(phantom.mask(name))).mean(axis=0)
        for name in phantom.truth.organs
        if phantom.truth.seen(name)
    }
    assert places["liver"][0] < 0 < places["spleen"][0]
    assert places["kidney_right"][0] < 0 < places["kidney_left"][0]
    assert places["kidney_left"][2] < places["lung_left"][2]


def test_files_are_the_same_byte_for_byte(tmp_path):
    """So that a digest names a phantom."""
    for name in ("a", "b"):
        write_phantom_series(tmp_path / name, seed=1, slices=3, side=16)
    first, second = ([p.read_bytes() for p in sorted((tmp_path / n).iterdir())] for n in ("a", "b"))
    assert first == second
