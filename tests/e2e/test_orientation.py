"""Left stays left: a served mask lies in the same place of the patient however the series is stored."""

from __future__ import annotations

from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pytest

from medvl.client import Client, ObjectPrompt, Point
from medvl.client.maskfiles import MaskTarget, write_masks
from medvl.embedded.files import IN_PLANE, write_phantom_series
from medvl.imaging.series import read_series


def places_of(array: np.ndarray, affine: np.ndarray, signs: tuple[int, int, int]) -> set[tuple[float, ...]]:
    """Return the LPS places of a file's voxels, to 0.01 mm; adding 0.0 makes -0.0 what it equals."""
    index = np.argwhere(array)
    return {tuple(p) for p in ((index @ affine[:3, :3].T + affine[:3, 3]) * signs).round(2) + 0.0}


@pytest.mark.parametrize("descending", [False, True], ids=["ascending", "descending"])
@pytest.mark.parametrize("orientation", IN_PLANE)
def test_masks_in_files_lie_where_the_service_saw_them(
    orientation: str, descending: bool, client: Client, tmp_path: Path
):
    """The click, the mask, its NIfTI file and its DICOM SEG agree in patient millimetres."""
    truth = write_phantom_series(
        tmp_path / "ct", seed=11, slices=12, side=64, orientation=orientation, descending=descending
    )
    loaded = read_series(tmp_path / "ct")
    x, y, z = truth.geometry.index_to_lps(np.argwhere(truth.mask("liver")).mean(axis=0)).tolist()
    assert x < 0, "the liver lies on the patient's right"
    answer = client.segment(loaded.volume, [ObjectPrompt(points=(Point((x, y, z)),))]).collect()
    (mask,) = answer.masks
    expected = places_of(mask.array, truth.geometry.affine, (1, 1, 1))
    assert 100 < len(expected) < mask.array.size
    for name in ("mask.nii.gz", "mask.dcm"):
        write_masks(MaskTarget.of(tmp_path / name, objects=1), loaded, answer)
    nifti = nibabel.load(tmp_path / "mask.nii.gz")
    assert places_of(np.asarray(nifti.dataobj), nifti.affine, (-1, -1, 1)) == expected
    volume = highdicom.seg.segread(tmp_path / "mask.dcm").get_volume()
    assert places_of(volume.array[..., 0], volume.affine, (1, 1, 1)) == expected
