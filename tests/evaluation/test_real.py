"""Label maps of real CT lie on their series, however either file orders its axes."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medvl.contracts.errors import SetupError
from medvl.evaluation.masks import pointed
from medvl.evaluation.real import CLASS_MAP, CLICKS, SERIES, RealSeries, labels_on_grid, load, require
from medvl.imaging.series import read_series

SHAPE = (7, 8, 9)
AFFINE = np.array([[1.5, 0, 0, -20.0], [0, 2.0, 0, 30.0], [0, 0, 3.0, 5.0], [0, 0, 0, 1]])


def save(path: Path, values: np.ndarray, order: tuple[int, ...] = (0, 1, 2), flips: tuple[int, ...] = ()) -> Path:
    """Store an array of NIfTI's axes in another order, with the matrix that keeps each voxel in its place."""
    affine = AFFINE.copy()
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (values.shape[axis] - 1)
        affine[:3, axis] *= -1
    stored = np.flip(values, flips).transpose(order)
    affine[:3, :3] = affine[:3, list(order)]
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(stored), affine), path)
    return path


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_labels_meet_their_voxels(order: tuple[int, ...], tmp_path):
    """In each order and each direction of the axes of the label map, and another order of those of the CT."""
    hu = np.random.default_rng(1).integers(-1000, 1000, SHAPE).astype(np.int16)
    labels = (hu > 0).astype(np.uint8)
    volume = read_series(save(tmp_path / "ct.nii.gz", hu, order[::-1], (0, 2))).volume
    for flips in product((False, True), repeat=3):
        path = save(tmp_path / "labels.nii.gz", labels, order, tuple(np.flatnonzero(flips)))
        assert np.array_equal(labels_on_grid(path, volume) > 0, volume.hu > 0)


def test_labels_of_another_grid_are_refused(tmp_path):
    """Another shape, or the same shape at another place."""
    values = np.ones(SHAPE, np.int16)
    volume = read_series(save(tmp_path / "ct.nii.gz", values)).volume
    with pytest.raises(SetupError, match="grid"):
        labels_on_grid(save(tmp_path / "other.nii.gz", values[:-1]), volume)
    moved = AFFINE.copy()
    moved[0, 3] += 1.5
    nibabel.save(nibabel.Nifti1Image(values, moved), tmp_path / "moved.nii.gz")
    with pytest.raises(SetupError, match="grid"):
        labels_on_grid(tmp_path / "moved.nii.gz", volume)


def test_a_folder_without_the_series_is_refused(tmp_path):
    """With the name of what is missing."""
    with pytest.raises(SetupError, match="example_ct"):
        load(tmp_path, SERIES[0])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"total": {"x": "liver"}}'])
def test_a_map_without_classes_is_refused(text: str, tmp_path):
    """Before anything else is done."""
    for part in (CLASS_MAP, *(part for series in SERIES for part in (series.images, series.labels))):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        (tmp_path / part).write_text(text)
    with pytest.raises(SetupError, match="does not name the classes"):
        require(tmp_path)


@pytest.mark.parametrize("series", SERIES, ids=lambda series: series.name)
def test_organs_of_real_ct_are_where_they_belong(series: RealSeries, test_data: Path):
    """The liver lies right of the spleen, the vertebrae behind the aorta; on a mirrored grid bone would not be bone."""
    volume, targets = load(test_data, series)
    masks = {target.name: target.mask for target in targets}
    assert {"liver", "spleen", "aorta", "vertebrae"} <= masks.keys()
    places = {name: volume.geometry.index_to_lps(np.argwhere(mask)).mean(0) for name, mask in masks.items()}
    assert places["liver"][0] < places["spleen"][0]
    assert places["aorta"][1] < places["vertebrae"][1]
    bone = masks["vertebrae"]
    assert all(np.median(volume.hu[bone]) > np.median(volume.hu[np.flip(bone, axis)]) + 50 for axis in range(3))
    assert 20 < np.median(volume.hu[masks["liver"]]) < 200


def test_every_object_of_a_real_ct_is_pointed_at(test_data: Path, silent):
    """By one click and more, and by a box."""
    volume, targets = load(test_data, SERIES[0])
    for target in targets:
        items = list(pointed(target, volume, silent, clicks=CLICKS))
        assert [(i.prompt, i.clicks) for i in items] == [("point", 1), ("point", 2), ("point", 3), ("box", 0)]
        assert {(i.asked, i.present, i.found, i.dice) for i in items} == {(target.name, True, False, 0.0)}
