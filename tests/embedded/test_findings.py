"""Findings are where and what the truth says, and can be seen."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch

from medvl.embedded.findings import ILL, MOST_HIDDEN, SMALL_LESIONS, Illness
from medvl.embedded.phantom import FIRST_FINDING, Kernel, Protocol, make_phantom
from medvl.embedded.truth import PLEURAL, Coverage, FindingKind

from .phantoms import SEEDS, SMALL, all_findings, extent_mm, places, small

LESIONS = {
    FindingKind.LUNG_NODULE,
    FindingKind.LIVER_CYST,
    FindingKind.LIVER_MASS,
    FindingKind.KIDNEY_CYST,
    FindingKind.HYDRONEPHROSIS,
}
THIN = Protocol(
    slices=(200, 200), spacing_mm=(1.0, 1.0), side=96, pixel_mm=(3.0, 3.0),
    noise_hu=(0.0, 0.0), tilt_deg=0.0, kernels=(Kernel.SHARP,),
)  # fmt: skip
"""Slices of a millimetre without noise, of a patient who lies straight."""
HEALTHY, FRACTURED = Illness(1.0, (1.0,)), Illness(0.0, (1.0,), again=(FindingKind.VERTEBRAL_FRACTURE,))
LOST_BONE_HU = 40
"""Above a crushed vertebra there are 60 HU: marrow, of 120 and more, loses more than this, a disc, of 85, less."""
WITHOUT_VOXELS = {FindingKind.SPLENOMEGALY, FindingKind.MISSING_ORGAN}


def test_every_kind_comes_often_enough():
    """Each in at least one phantom of twenty; a quarter of the phantoms has no finding, none has more than 4 kinds."""
    kinds = [{f.kind for f in small(seed).truth.findings} for seed in SEEDS]
    seen = Counter(kind for of_one in kinds for kind in of_one)
    assert all(seen[kind] >= 0.05 * len(kinds) for kind in FindingKind), seen
    assert 0.15 < sum(not k for k in kinds) / len(kinds) < 0.4
    assert max(map(len, kinds)) <= 4


def test_who_is_ill_has_findings_of_many_kinds():
    """Up to eight, of which the field of view shows most; it is the same patient otherwise."""
    for seed in SEEDS[:6]:
        ill = make_phantom(seed, SMALL, illness=ILL)
        assert 3 <= len({f.kind for f in ill.truth.findings}) <= 8
        assert ill.geometry == small(seed).geometry


def test_small_lesions_are_drawn_again():
    """In the end, so that findings before stay what and where they are."""
    more = 0
    for seed in SEEDS[:6]:
        ill, again = (make_phantom(seed, SMALL, illness=illness).truth.findings for illness in (ILL, SMALL_LESIONS))
        assert [(f.kind, f.size_mm) for f in again[: len(ill)]] == [(f.kind, f.size_mm) for f in ill]
        assert {f.kind for f in again[len(ill) :]} <= {FindingKind.LUNG_NODULE, FindingKind.KIDNEY_CYST}
        more += len(again) - len(ill)
    assert more > 15


def test_values_and_voxels():
    """A finding has a value of its own and voxels with it, except where the truth says that it has none."""
    for phantom, finding in all_findings():
        if finding.kind in WITHOUT_VOXELS:
            assert finding.value is None
            assert not phantom.finding_mask(finding).any()
        else:
            assert finding.value is not None
            assert finding.value >= FIRST_FINDING
            assert phantom.finding_mask(finding).any()
            centre = places(phantom, phantom.finding_mask(finding)).mean(axis=0)
            assert np.allclose(centre, finding.centre_lps_mm, atol=0.01)
            assert phantom.truth.names[finding.value].startswith(finding.kind)
    for seed in SEEDS:
        phantom = small(seed)
        assert set(np.unique(phantom.labels)) <= {0, *phantom.truth.names}


def test_lesions_belong_to_their_organ():
    """A nodule, cyst, mass or stone is part of its organ's mask; fluid and gas about a lung are not."""
    for phantom, finding in all_findings():
        mask, organ = phantom.finding_mask(finding), phantom.mask(finding.organ)
        outside = {FindingKind.PLEURAL_EFFUSION, FindingKind.PNEUMOTHORAX}
        assert (mask & organ).sum() == (0 if finding.kind in outside else mask.sum())
        assert finding.side is None or finding.organ.endswith(finding.side)


def test_lesions_lie_in_or_at_their_organ():
    """The voxels around a lesion are those of its organ, at least a part of them."""
    for phantom, finding in all_findings():
        if finding.kind not in LESIONS:
            continue
        mask = phantom.finding_mask(finding)
        d, r, c = np.argwhere(mask).mean(axis=0).round().astype(int)
        box = (slice(max(d - 5, 0), d + 6), slice(max(r - 8, 0), r + 9), slice(max(c - 8, 0), c + 9))
        near = phantom.mask(finding.organ)[box] & ~mask[box]
        assert near.any()


def test_sizes_are_those_of_the_voxels():
    """The longest diameter in the truth is that of the mask, to within two voxels and a fifth of it."""
    measured = 0
    for phantom, finding in all_findings():
        if finding.kind in LESIONS:
            points = places(phantom, phantom.finding_mask(finding))
            margin = 2.2 * max(phantom.geometry.spacing_mm) + 0.2 * finding.size_mm
            assert extent_mm(points) == pytest.approx(finding.size_mm, abs=margin), finding
            measured += 1
    assert measured > 30


def test_depths_and_widths_are_those_of_the_voxels():
    """Of stones the diameter, to within a slice; of layers about a lung how thick they are; of aneurysms the width."""
    measured = Counter[FindingKind]()
    for phantom, finding in all_findings():
        slice_mm, pixel_mm, _ = phantom.geometry.spacing_mm
        mask, size_mm = phantom.finding_mask(finding), finding.size_mm
        if finding.kind is FindingKind.KIDNEY_STONE:
            assert extent_mm(places(phantom, mask)) == pytest.approx(size_mm, abs=slice_mm)
        elif finding.kind in PLEURAL:
            planes = (np.pad(plane, 1).astype(np.uint8) for plane in mask if plane.any())
            thick = 2 * pixel_mm * max(cv2.distanceTransform(plane, cv2.DIST_L2, 5).max() for plane in planes)
            assert thick == pytest.approx(size_mm, abs=1.5 * pixel_mm)
        elif finding.kind is FindingKind.AORTIC_ANEURYSM:
            width_mm = 2 * pixel_mm * np.sqrt(mask.sum((1, 2)).max() / np.pi)
            assert 0.7 * size_mm < width_mm < size_mm + pixel_mm
        measured[finding.kind] += 1
    assert min(measured[kind] for kind in (FindingKind.KIDNEY_STONE, FindingKind.AORTIC_ANEURYSM, *PLEURAL)) > 5


@pytest.mark.parametrize("seed", [2, 4, 7])
def test_a_vertebra_lost_the_height_that_is_told(seed: int):
    """In front: so many mm above what is left of it were bone in the same patient without findings. Less behind."""
    fractured = make_phantom(seed, THIN, illness=FRACTURED)
    (fracture,) = fractured.truth.of(FindingKind.VERTEBRAL_FRACTURE)
    crushed = fractured.finding_mask(fracture)
    denser_before = make_phantom(seed, THIN, illness=HEALTHY).hu - fractured.hu.astype(int)
    lost = (denser_before > LOST_BONE_HU) & ~crushed
    slice_mm, body = fractured.geometry.spacing_mm[0], crushed.any(0)
    lost_mm = [np.median(lost.sum(0)[row][body[row]]) * slice_mm for row in np.flatnonzero(body.any(1))]
    front, behind = np.array_split(lost_mm, 2)
    assert front.max() == pytest.approx(fracture.size_mm, abs=1.5 * slice_mm)
    assert np.median(behind) < 0.7 * front.max()


def test_sizes_are_in_their_ranges():
    """Aneurysms measure 40 to 80 mm, large spleens over 140, normal ones less than 130, nodules at most 35."""
    for phantom, finding in all_findings():
        if finding.kind is FindingKind.AORTIC_ANEURYSM:
            assert 40 <= finding.size_mm <= 80
        if finding.kind is FindingKind.SPLENOMEGALY:
            assert finding.size_mm > 140
            if phantom.truth.organs["spleen"] is Coverage.WHOLE:
                assert extent_mm(places(phantom, phantom.mask("spleen"))) > 130
        if finding.kind is FindingKind.LUNG_NODULE:
            assert finding.size_mm < 35
    for seed in SEEDS:
        phantom = small(seed)
        if phantom.truth.organs["spleen"] is Coverage.WHOLE and not phantom.truth.of(FindingKind.SPLENOMEGALY):
            assert extent_mm(places(phantom, phantom.mask("spleen"))) < 132


def test_several_cysts_of_a_kidney_differ_in_size():
    """So that "the larger cyst" has one answer."""
    pairs = 0
    for seed in SEEDS:
        for organ in ("kidney_left", "kidney_right"):
            sizes = [f.size_mm for f in small(seed).truth.of(FindingKind.KIDNEY_CYST, organ)]
            pairs += len(sizes) > 1
            assert all(b < 0.8 * a for a, b in pairwise(sizes)), sizes
    assert pairs > 0


@pytest.mark.parametrize("seed", [247, 292, 321, 352, 420, 432, 478])
def test_no_nodule_lies_in_fluid_or_gas_about_its_lung(seed):
    """These had one; where a nodule touches fluid or gas, at least half of what lies about it is lung."""
    phantom = make_phantom(seed, illness=ILL)
    about_lungs = np.zeros(phantom.labels.shape, bool)
    for finding in phantom.truth.findings:
        if finding.kind in PLEURAL:
            about_lungs |= phantom.finding_mask(finding)
    for finding in phantom.truth.findings:
        if finding.kind is FindingKind.LUNG_NODULE:
            nodule = phantom.finding_mask(finding)
            assert about_lungs[_grown(nodule) & ~nodule].mean() < 0.55


def _grown(mask: np.ndarray) -> np.ndarray:
    """Return a mask grown by two voxels."""
    return torch.nn.functional.max_pool3d(torch.from_numpy(mask)[None].float(), 5, 1, 2)[0].numpy() > 0


def test_no_cyst_lies_in_a_dilated_pelvis():
    """Water in water: this one had such a cyst; little of what lies about one is pelvis."""
    phantom = make_phantom(600012)
    (dilated,) = phantom.truth.of(FindingKind.HYDRONEPHROSIS)
    cysts = phantom.truth.of(FindingKind.KIDNEY_CYST, dilated.organ)
    assert cysts
    for cyst in cysts:
        lesion = phantom.finding_mask(cyst)
        assert phantom.finding_mask(dilated)[_grown(lesion) & ~lesion].mean() < MOST_HIDDEN


@pytest.mark.parametrize("seed", [725, 1203])
def test_no_spleen_grows_into_a_cyst(seed):
    """These had a cyst that was half spleen; a cyst is nearly the ball that its diameter tells."""
    phantom = make_phantom(seed)
    cysts = phantom.truth.of(FindingKind.KIDNEY_CYST, "kidney_left")
    assert cysts
    for cyst in cysts:
        volume_mm3 = phantom.finding_mask(cyst).sum() * np.prod(phantom.geometry.spacing_mm)
        assert volume_mm3 > 0.7 * np.pi / 6 * cyst.size_mm**3


def test_a_stone_lies_in_what_is_dilated_behind_it():
    """In this one the stone was drawn first, and the dilated pelvis over it."""
    phantom = make_phantom(601092)
    stone, dilated = (phantom.truth.of(k) for k in (FindingKind.KIDNEY_STONE, FindingKind.HYDRONEPHROSIS))
    assert stone[0].organ == dilated[0].organ
    lesion = phantom.finding_mask(stone[0])
    assert phantom.finding_mask(dilated[0])[_grown(lesion) & ~lesion].mean() > 0.5


@pytest.mark.parametrize("seed", [600039, 600209])
def test_no_nodule_lies_among_vessels(seed):
    """These had one; most of what lies about a nodule is air."""
    phantom = make_phantom(seed)
    nodules = phantom.truth.of(FindingKind.LUNG_NODULE)
    assert nodules
    for finding in nodules:
        nodule = phantom.finding_mask(finding)
        assert (phantom.hu[_grown(nodule) & ~nodule] > -500).mean() < MOST_HIDDEN


def test_lesions_can_be_seen():
    """Their density differs from that of their organ by 20 HU and more."""
    for phantom, finding in all_findings():
        if finding.kind in {FindingKind.LIVER_CYST, FindingKind.LIVER_MASS} and finding.size_mm > 25:
            lesion = phantom.hu[phantom.finding_mask(finding)]
            liver = phantom.hu[phantom.labels == 1 + list(phantom.truth.organs).index("liver")]
            assert abs(np.median(lesion) - np.median(liver)) > 20 - 4, "noise moves medians"
        if finding.kind is FindingKind.LUNG_NODULE:
            assert phantom.hu[phantom.finding_mask(finding)].max() > -450
        if finding.kind is FindingKind.KIDNEY_STONE:
            assert phantom.hu[phantom.finding_mask(finding)].max() > 180


def test_a_removed_organ_leaves_fat_and_its_neighbours():
    """Nothing of it is left, its place is fat for the most part, the other organs are there."""
    removed = [(p, f) for p, f in all_findings() if f.kind is FindingKind.MISSING_ORGAN]
    assert len({f.organ for _, f in removed}) >= 3
    for phantom, finding in removed:
        assert not phantom.mask(finding.organ).any()
        assert phantom.truth.organs[finding.organ] is Coverage.REMOVED
        assert phantom.truth.seen("liver")
