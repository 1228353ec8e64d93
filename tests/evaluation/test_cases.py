"""Cases are held out, and what a subject is shown instead of them lies on the same grid."""

from __future__ import annotations

import numpy as np
import pytest

from medvl.contracts.errors import InvalidRequest
from medvl.evaluation.cases import AIR_HU, WATER_HU, Condition, held_out, partner, shown
from medvl.imaging.geometry import Geometry
from medvl.imaging.volume import Volume
from medvl.training.cases import FIRST_SEED


def plain_volume(hu: np.ndarray) -> Volume:
    axes = ((0, 0, 1), (0, 1, 0), (1, 0, 0))
    return Volume(hu.astype(np.int16), Geometry(hu.shape, (5.0, 1.0, 2.0), (0.0, 0.0, 0.0), axes))


@pytest.mark.parametrize(("first", "count"), [(FIRST_SEED - 1, 2), (FIRST_SEED, 1), (FIRST_SEED + 5, 3)])
def test_seeds_of_training_are_refused(first: int, count: int):
    """A range that only reaches into them as well; the sentence names where they begin."""
    with pytest.raises(InvalidRequest, match=str(FIRST_SEED)):
        held_out(first, count)


def test_every_seed_below_is_held_out():
    """The last one included; its partner in the shuffled control is held out too."""
    assert list(held_out(FIRST_SEED - 2, 2)) == [FIRST_SEED - 2, FIRST_SEED - 1]
    assert all(partner(seed) < FIRST_SEED and partner(seed) != seed for seed in (0, 7, FIRST_SEED - 1))


@pytest.mark.parametrize(("first", "count"), [(-1, 3), (0, 0)])
def test_an_evaluation_has_cases(first: int, count: int):
    """No cases and negative seeds are refused."""
    with pytest.raises(InvalidRequest):
        held_out(first, count)


def test_controls_keep_the_grid_and_show_something_else(case):
    """Nothing but water and air, or another patient, at the places of the case's own voxels."""
    own, other = case(2), case(4)
    for condition in Condition:
        volume = shown(own.volume, condition, other.volume)
        assert volume.geometry == own.volume.geometry
        assert np.array_equal(volume.hu, own.volume.hu) == (condition is Condition.OWN)
    assert set(np.unique(shown(own.volume, Condition.EMPTY).hu)) == {AIR_HU, WATER_HU}
    assert np.isin(shown(own.volume, Condition.SHUFFLED, other.volume).hu, other.volume.hu).all()


def test_another_patient_is_stretched_from_edge_to_edge():
    """Every voxel of the grid shows the other volume's at the same share of the way along each axis."""
    own, other = (plain_volume(np.arange(np.prod(shape)).reshape(shape)) for shape in ((2, 5, 6), (4, 5, 3)))
    seen = shown(own, Condition.SHUFFLED, other)
    assert np.array_equal(seen.hu, other.hu[[1, 3]][:, :, [0, 0, 1, 1, 2, 2]])
    assert seen.geometry == own.geometry


def test_the_empty_volume_is_a_cylinder_of_water():
    """In the middle, 0.64 of the rows high and 0.84 of the columns wide, the same on every slice."""
    hu = shown(plain_volume(np.ones((2, 100, 50))), Condition.EMPTY).hu
    water = hu[0] == WATER_HU
    assert np.array_equal(hu[0], hu[1])
    assert np.flatnonzero(water[50]).tolist() == list(range(4, 46))
    assert np.flatnonzero(water[:, 25]).tolist() == list(range(18, 82))
    assert water.mean() == pytest.approx(np.pi * 0.32 * 0.42, rel=0.01)


def test_an_organ_holds_its_lesions(case):
    """As the phantom itself says, for every organ and finding."""
    two = case(2)
    liver = two.organ("liver")
    cysts = [i for i, f in enumerate(two.truth.findings) if f.organ == "liver"]
    assert cysts
    assert (liver & two.findings(tuple(cysts))).sum() == two.findings(tuple(cysts)).sum() > 0
    effusion = next(i for i, f in enumerate(two.truth.findings) if f.kind == "pleural_effusion")
    assert not (two.organ("lung_right") & two.findings((effusion,))).any()
    assert two.organ("body").sum() == (two.labels > 0).sum()
