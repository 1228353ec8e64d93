"""What is written down of a mask is what it is beside the truth."""

from __future__ import annotations

import numpy as np
import pytest

from medvl.evaluation.items import Segmented, segmented

SPACING_MM = (5.0, 1.0, 2.0)
NOTHING = np.zeros((6, 8, 8), bool)


def voxel(d: int, r: int, c: int) -> np.ndarray:
    mask = NOTHING.copy()
    mask[d, r, c] = True
    return mask


def item(found: np.ndarray, wanted: np.ndarray | None) -> Segmented:
    return segmented(found, wanted, SPACING_MM, prompt="name", asked="liver", name="liver", kind="organ")


@pytest.mark.parametrize(
    ("found", "wanted", "said"),
    [
        (voxel(0, 1, 1), voxel(0, 1, 1), (True, True, 1.0, 0.0)),
        (voxel(3, 1, 1), voxel(0, 1, 1), (True, True, 0.0, 15.0)),
        (voxel(0, 4, 1), voxel(0, 1, 1), (True, True, 0.0, 3.0)),
        (voxel(0, 1, 4), voxel(0, 1, 1), (True, True, 0.0, 6.0)),
        (NOTHING, voxel(0, 1, 1), (True, False, 0.0, None)),
        (voxel(0, 1, 1), None, (False, True, None, None)),
        (NOTHING, None, (False, False, None, None)),
    ],
)
def test_a_mask_beside_the_truth(
    found: np.ndarray, wanted: np.ndarray | None, said: tuple[bool, bool, float | None, float | None]
):
    """Whether it is there and found, overlap and distance: three voxels are three of the spacings along their axis."""
    one = item(found, wanted)
    assert (one.present, one.found, one.dice, one.hd95_mm) == said
    assert np.array_equal(one.voxels(), found)


def test_without_its_voxels_it_says_the_same():
    whole = item(voxel(3, 1, 1), voxel(0, 1, 1))
    light = whole.without_voxels()
    assert light.mask is None
    assert light.model_copy(update={"mask": whole.mask}) == whole
