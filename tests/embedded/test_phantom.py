"""A phantom is the same for its seed, and is a trunk: organs of the right densities at the right places."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvl.embedded.anatomy import ORGANS
from medvl.embedded.parts import Phase
from medvl.embedded.phantom import Protocol, make_blank, make_phantom, sized
from medvl.embedded.preset import _LABELS
from medvl.embedded.scanner import Kernel, Region
from medvl.embedded.truth import Coverage

from .phantoms import places, small


def test_a_seed_is_a_patient():
    """The same seed gives the same voxels, labels and truth; another one another patient."""
    first, again, other = (make_phantom(seed, sized(12, 32)) for seed in (1, 1, 2))
    assert np.array_equal(first.hu, again.hu)
    assert np.array_equal(first.labels, again.labels)
    assert first.truth == again.truth
    assert not np.array_equal(first.labels, other.labels)


def test_a_blank_scan_shows_no_patient():
    """The same bytes for the same seed: air or one body, which no organ can be seen in."""
    blanks = [make_blank(seed, sized(12, 32)) for seed in range(12)]
    assert np.array_equal(blanks[3].hu, make_blank(3, sized(12, 32)).hu)
    bodies = [(blank.hu > -500).mean() for blank in blanks]
    assert min(bodies) == 0.0
    assert 0.1 < np.median(bodies) < 0.9
    for blank in blanks:
        assert not blank.labels.any()
        assert set(blank.truth.organs.values()) == {Coverage.OUTSIDE}


def test_the_default_protocol_keeps_its_ranges():
    """Without a protocol: 40 to 64 slices 3.1 to 5 mm apart, 256 x 256 pixels of 1.15 to 1.5 mm, real CT's HU."""
    phantom = make_phantom(7)
    (slices, rows, columns), (spacing, pixel, _) = phantom.hu.shape, phantom.geometry.spacing_mm
    assert 40 <= slices <= 64
    assert (rows, columns) == (256, 256)
    assert 3.1 <= spacing <= 5.0
    assert 1.15 <= pixel <= 1.5
    assert phantom.hu.dtype == np.int16
    assert phantom.hu.min() < -900
    assert -1010 < np.median(phantom.hu[:, :3]) < -940, "air beside the patient"


@pytest.mark.parametrize("noise_hu", [5.0, 20.0])
def test_kernels_shape_noise_and_leave_its_size(noise_hu):
    """The smoother, the more alike are neighbours, in the air beside a patient who is the same in all."""
    alike = []
    for kernel in (Kernel.SHARP, Kernel.STANDARD, Kernel.SMOOTH):
        protocol = replace(sized(4, 128), kernels=(kernel,), noise_hu=(noise_hu, noise_hu))
        phantom = make_phantom(11, protocol)
        air = phantom.hu[1:3, :12, :].astype(float)
        assert air.std() == pytest.approx(noise_hu, rel=0.1)
        alike.append(np.corrcoef(air[..., 1:].ravel(), air[..., :-1].ravel())[0, 1])
    assert alike[0] < 0.1 < alike[1] < alike[2]


def test_patients_lie_on_a_table():
    """A shell with foam in it behind the back, and nothing like it before the chest."""
    phantom = small(2)
    beside = ~phantom.mask("body")
    rows = np.flatnonzero(phantom.mask("body").any((0, 2)))
    shell = beside & (phantom.hu > -450)
    assert shell[:, rows[-1] + 1 :].any((1, 2)).all()
    assert not shell[:, : rows[0]].any()


def test_patients_differ_in_width():
    """By a seventh and more, as far as the field of view shows them."""
    phantoms = [small(seed) for seed in range(20)]
    widths = [p.mask("body").any((0, 1)).sum() * p.geometry.spacing_mm[2] for p in phantoms]
    assert max(widths) > 1.15 * min(widths)


def test_organs_are_those_that_the_checkpoint_names():
    """Labels of the checkpoint, and the body; their values are 1 to 15 in every phantom."""
    assert set(ORGANS) == {"body", *(name for name, *_ in _LABELS)}
    for seed in (0, 1):
        names = small(seed).truth.names
        assert tuple(names[value] for value in range(1, 16)) == ORGANS


@pytest.mark.parametrize("seed", range(6))
def test_sides_and_order(seed):
    """Liver on the right (x < 0), spleen, stomach and heart on the left, lungs above kidneys above bladder."""
    protocol = Protocol(slices=(90, 90), spacing_mm=(9.0, 9.0), side=80, pixel_mm=(5.5, 5.5), extent_mm=(810.0, 810.0))
    phantom = make_phantom(seed, replace(protocol, regions=(Region.CHEST_ABDOMEN,)))
    centre = {organ: places(phantom, phantom.mask(organ)).mean(axis=0) for organ in ORGANS if phantom.truth.seen(organ)}
    middle = centre["vertebral_column"][0]
    x = {organ: at[0] - middle for organ, at in centre.items()}
    z = {organ: at[2] for organ, at in centre.items()}
    assert x["liver"] < 0 < x["stomach"]
    assert x["lung_right"] < 0 < x["lung_left"]
    assert x["heart"] > 0
    assert z["urinary_bladder"] < z["liver"] < z["heart"] < z["trachea"]
    for organ, sign in (("kidney_right", -1), ("kidney_left", 1), ("spleen", 1), ("gallbladder", -1)):
        if organ in centre:
            assert sign * x[organ] > 0
            assert z["urinary_bladder"] < z[organ] < z["lung_left"]
    for organ in ("kidney_right", "kidney_left"):
        assert organ not in centre or centre[organ][1] > centre["stomach"][1], "kidneys lie behind"
    assert centre["aorta"][1] < centre["vertebral_column"][1], "the aorta lies before the spine"


@pytest.mark.parametrize("phase", Phase)
def test_contrast_follows_the_phase(phase):
    """Blood of the aorta is as bright as the phase makes it; fat, muscle and lung hardly change."""
    phantom = make_phantom(3, Protocol(phases=(phase,), side=128, pixel_mm=(2.6, 2.6), regions=(Region.CHEST_ABDOMEN,)))
    bounds = {Phase.NATIVE: (25, 60), Phase.ARTERIAL: (230, 400), Phase.PORTAL: (110, 200)}
    low, high = bounds[phase]
    assert low < np.median(phantom.hu[phantom.mask("aorta")]) < high
    assert -930 < np.median(phantom.hu[phantom.mask("lung_left")]) < -740


@pytest.mark.parametrize("tilt", [0.0, 8.0])
def test_a_tilted_patient_is_still_a_patient(tilt):
    """The turn moves organs, not their sizes: volumes stay within a tenth, whatever the tilt."""
    regions = (Region.ABDOMEN,)
    volumes = []
    for bound in (0.0, tilt):
        protocol = Protocol(slices=(50, 50), side=128, pixel_mm=(2.8, 2.8), regions=regions, tilt_deg=bound)
        phantom = make_phantom(4, protocol)
        volumes.append(phantom.mask("liver").sum() * phantom.geometry.voxel_volume_mm3)
    assert volumes[1] == pytest.approx(volumes[0], rel=0.1)


@settings(max_examples=12)
@given(seed=st.integers(0, 2**31), slices=st.integers(1, 9), side=st.integers(4, 40))
def test_any_size_can_be_made(seed, slices, side):
    """Down to one slice; what is asked for is what comes, about 320 mm high and 380 mm wide."""
    phantom = make_phantom(seed, sized(slices, side))
    assert phantom.hu.shape == phantom.labels.shape == phantom.geometry.shape == (slices, side, side)
    assert phantom.geometry.spacing_mm == pytest.approx((320 / slices, 380 / side, 380 / side), rel=1e-3)


CHEST, ABDOMEN, PELVIS = {"lung_left", "heart"}, {"kidney_left", "gallbladder", "stomach"}, {"urinary_bladder"}


@pytest.mark.parametrize(
    ("region", "whole", "outside"),
    [
        (Region.CHEST, CHEST, {"gallbladder"} | PELVIS),
        (Region.ABDOMEN, ABDOMEN, {"trachea"} | PELVIS),
        (Region.ABDOMEN_PELVIS, PELVIS | {"kidney_left", "gallbladder"}, {"trachea", "heart"}),
        (Region.CHEST_ABDOMEN, ABDOMEN | {"heart"}, PELVIS),
        (Region.TRUNK, set(ORGANS) - {"body", "trachea"}, set()),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_region_is_what_is_covered(seed, region, whole, outside):
    """From chest to pelvis nothing is left out, but for the ends of the trachea and of the body itself."""
    organs = make_phantom(seed, sized(60, 64, region)).truth.organs
    assert {organs[name] for name in whole} <= {Coverage.WHOLE, Coverage.REMOVED}
    assert {name for name, covered in organs.items() if covered is Coverage.OUTSIDE} >= outside
    assert region is not Region.TRUNK or Coverage.OUTSIDE not in organs.values()


def test_coverage_is_that_of_the_label_map():
    """What is seen has voxels; what is whole does not touch the ends of the scan; what was removed has no voxels."""
    states = set()
    for seed in range(40):
        phantom = small(seed)
        for organ, coverage in phantom.truth.organs.items():
            mask = phantom.mask(organ)
            states.add(coverage)
            if coverage is Coverage.REMOVED:
                assert not mask.any()
            if phantom.truth.seen(organ):
                assert mask.any()
            if coverage is Coverage.WHOLE:
                ends = mask[0].sum() + mask[-1].sum()
                assert ends <= 0.1 * mask.sum()
        for organ in ("body", "vertebral_column", "rib", "aorta"):
            assert phantom.truth.seen(organ) == phantom.mask(organ).any()
    assert states == set(Coverage)


def test_body_is_all_within_the_skin_and_masks_are_named():
    """The body holds every organ, and a name that nothing has is refused."""
    phantom = small(2)
    body = phantom.mask("body")
    assert all((phantom.mask(organ) <= body).all() for organ in ORGANS)
    assert phantom.hu[~body].max() < 150, "beside the patient there are air and the table, and no bone"
    with pytest.raises(KeyError, match="pancreas"):
        phantom.mask("pancreas")
