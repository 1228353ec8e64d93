"""The phantom is the same for its seed and has its organs on the right sides."""

from __future__ import annotations

import numpy as np

from medvl.embedded.phantom import make_phantom, write_phantom_series


def test_a_seed_is_a_patient():
    """The same seed gives the same voxels, another one another patient."""
    first, again, other = (make_phantom(seed, slices=12, side=32) for seed in (1, 1, 2))
    assert np.array_equal(first.hu, again.hu)
    assert not np.array_equal(first.labels, other.labels)


def test_sides():
    """Liver and right kidney have negative x (LPS), spleen and left kidney positive; kidneys lie below the lungs."""
    truth = make_phantom(5, slices=32, side=64)
    places = {
        name: truth.geometry.index_to_lps(np.argwhere(truth.mask(name))).mean(axis=0) for name in truth.names.values()
    }
    assert places["liver"][0] < 0 < places["spleen"][0]
    assert places["kidney_right"][0] < 0 < places["kidney_left"][0]
    assert places["kidney_left"][2] < places["lung_left"][2]
    assert all(truth.mask(name).any() for name in truth.names.values())


def test_files_are_the_same_byte_for_byte(tmp_path):
    """So that a digest names a phantom."""
    for name in ("a", "b"):
        write_phantom_series(tmp_path / name, seed=1, slices=3, side=16)
    first, second = ([p.read_bytes() for p in sorted((tmp_path / n).iterdir())] for n in ("a", "b"))
    assert first == second
