"""Values and places to the voxel, where real series differ from plain ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom import Dataset, dcmread

from medvl.client.maskfiles import read_mask
from medvl.contracts.errors import GeometryRefused, NotCt
from medvl.embedded.files import write_phantom_series
from medvl.embedded.phantom import Phantom
from medvl.imaging.geometry import Geometry
from medvl.imaging.seg import Maker, Segment, build_seg
from medvl.imaging.series import read_series
from medvl.imaging.stack import AIR_HU

MAKER = Maker("s", "c", "0" * 64)
SLICES, SIDE = 8, 24


def rewritten(folder: Path, change: Callable[[Dataset, int], None]) -> None:
    """Change every instance of a series, given its number."""
    for path in sorted(folder.iterdir()):
        instance = dcmread(path)
        change(instance, int(path.stem))
        instance.save_as(path)


def stored(instance: Dataset) -> np.ndarray:
    return np.frombuffer(instance.PixelData, "<u2").reshape(instance.Rows, instance.Columns).copy()


def test_each_slice_has_its_own_slope_and_intercept(tmp_path: Path):
    truth = write_phantom_series(tmp_path, seed=3, slices=SLICES, side=SIDE)

    def change(instance: Dataset, n: int) -> None:
        instance.PixelData = ((truth.hu[n].astype(int) + 1024 + 10 * n) // 2).astype("<u2").tobytes()
        instance.RescaleSlope, instance.RescaleIntercept = 2, -1024 - 10 * n

    rewritten(tmp_path, change)
    assert np.abs(read_series(tmp_path).volume.hu.astype(int) - truth.hu).max() <= 1


def test_padding_is_air(tmp_path: Path):
    """The value itself, and all up to the limit of its range."""
    truth = write_phantom_series(tmp_path, seed=3, slices=SLICES, side=SIDE)

    def change(instance: Dataset, _: int) -> None:
        values = stored(instance)
        values[0, :2] = 63000, 63005
        instance.PixelData = values.tobytes()
        instance.add_new("PixelPaddingValue", "US", 63000)
        instance.add_new("PixelPaddingRangeLimit", "US", 63010)

    rewritten(tmp_path, change)
    hu = read_series(tmp_path).volume.hu
    assert (hu[:, 0, :2] == AIR_HU).all()
    assert np.array_equal(hu[:, 1:], truth.hu[:, 1:])


def test_what_16_bits_cannot_hold_is_clipped(tmp_path: Path):
    write_phantom_series(tmp_path, seed=3, slices=SLICES, side=SIDE)

    def change(instance: Dataset, _: int) -> None:
        values = stored(instance)
        values[3, 3] = 65000
        instance.PixelData = values.tobytes()

    rewritten(tmp_path, change)
    assert (read_series(tmp_path).volume.hu[:, 3, 3] == np.iinfo(np.int16).max).all()


def test_rows_and_columns_have_spacings_of_their_own(tmp_path: Path):
    """The first of PixelSpacing is between rows."""
    write_phantom_series(tmp_path, seed=3, slices=SLICES, side=SIDE)
    rewritten(tmp_path, lambda instance, _: setattr(instance, "PixelSpacing", [2.0, 3.0]))
    assert read_series(tmp_path).volume.geometry.spacing_mm[1:] == (2.0, 3.0)


def tilted(folder: Path, pixels: int) -> Phantom:
    """Store a phantom sheared, slice n by n times so many pixels along its rows' axis; return it as it was."""
    truth = write_phantom_series(folder, seed=3, slices=SLICES, side=SIDE)

    def change(instance: Dataset, n: int) -> None:
        by = n * pixels
        instance.ImagePositionPatient[1] += by * truth.geometry.spacing_mm[1]
        sheared = np.full((SIDE, SIDE), AIR_HU, np.int16)
        if by >= 0:
            sheared[: SIDE - by] = truth.hu[n][by:]
        else:
            sheared[-by:] = truth.hu[n][:by]
        instance.PixelData = (sheared.astype(int) + 1024).astype("<u2").tobytes()

    rewritten(folder, change)
    return truth


@pytest.mark.parametrize("pixels", [1, -1])
def test_a_tilt_is_undone(tmp_path: Path, pixels: int):
    """Every voxel that is shown lies where it lay, whichever way the gantry was tilted."""
    truth = tilted(tmp_path, pixels)
    volume = read_series(tmp_path, "resample").volume
    places = truth.geometry.index_to_lps(np.argwhere(np.ones(truth.hu.shape, bool)))
    index = np.rint(volume.geometry.lps_to_index(places)).astype(int)
    assert np.allclose(volume.geometry.index_to_lps(index), places, atol=1e-2)
    found = volume.hu[tuple(index.T)].reshape(truth.hu.shape)
    for n in range(SLICES):
        shown = slice(n, None) if pixels > 0 else slice(0, SIDE - n)
        assert np.array_equal(found[n, shown], truth.hu[n, shown]), n


def test_missing_slices_are_blended_of_their_neighbours(tmp_path: Path):
    """Each by its distance; the others stay as they are."""
    truth = write_phantom_series(tmp_path, seed=3, slices=SLICES, side=SIDE)
    for name in ("0003.dcm", "0004.dcm"):
        (tmp_path / name).unlink()
    hu = read_series(tmp_path, "resample").volume.hu
    there = [0, 1, 2, 5, 6, 7]
    assert np.array_equal(hu[there], truth.hu[there])
    below, above = (truth.hu[n].astype(float) for n in (2, 5))
    assert np.abs(hu[3] - (2 * below + above) / 3).max() <= 1
    assert np.abs(hu[4] - (below + 2 * above) / 3).max() <= 1


def test_one_slice_out_of_place_leaves_the_spacing(tmp_path: Path):
    truth = write_phantom_series(tmp_path, seed=3, slices=SLICES, side=SIDE)

    def change(instance: Dataset, n: int) -> None:
        instance.ImagePositionPatient[2] += 5 * (n == 3)

    rewritten(tmp_path, change)
    spacing_mm = read_series(tmp_path, "warn").volume.geometry.spacing_mm[0]
    assert spacing_mm == pytest.approx(truth.geometry.spacing_mm[0], rel=1e-4)


def check_places(path: Path, mask: np.ndarray, geometry: Geometry) -> None:
    """Check that the voxels of a SEG with axial planes lie where those of a mask on a grid lie, in patient mm."""
    seg = highdicom.seg.segread(path)
    row_mm, column_mm = map(float, seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing)
    found = []
    for item, plane in zip(seg.PerFrameFunctionalGroupsSequence, np.atleast_3d(seg.pixel_array), strict=True):
        x, y, z = map(float, item.PlanePositionSequence[0].ImagePositionPatient)
        found.extend((x + column * column_mm, y + row * row_mm, z) for row, column in np.argwhere(plane))
    wanted = geometry.index_to_lps(np.argwhere(mask))
    assert np.allclose(sorted_places(found), sorted_places(wanted), atol=0.05)


def sorted_places(places: object) -> np.ndarray:
    return np.array(sorted(map(tuple, np.round(places, 1) + 0.0)))


def test_a_seg_of_a_resampled_series_lies_in_place(tmp_path: Path):
    """On the grid that was made of it, which is another than that of its slices."""
    tilted(tmp_path / "ct", 1)
    loaded = read_series(tmp_path / "ct", "resample")
    mask = np.zeros(loaded.volume.geometry.shape, bool)
    mask[2:6, 10:14, 4:9] = True
    build_seg(loaded, [Segment(mask, "x")], MAKER).save_as(tmp_path / "seg.dcm")
    check_places(tmp_path / "seg.dcm", mask, loaded.volume.geometry)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", [range(8), range(7, -1, -1), [3, 0, 5, 1, 7, 2, 6, 4]])
def test_a_seg_of_one_multi_frame_object_lies_in_place(tmp_path: Path, order: Sequence[int]):
    """In whatever order its frames are stored."""
    truth = write_phantom_series(tmp_path / "ct", seed=3, slices=SLICES, side=SIDE)
    slices = [dcmread(path) for path in sorted((tmp_path / "ct").iterdir())]
    for instance in slices:
        instance.PatientName = "Phantom^"
    (tmp_path / "one").mkdir()
    one = LegacyConvertedEnhancedCTImage([slices[i] for i in order], "2.25.1", 1, "2.25.11", 1)
    one.save_as(tmp_path / "one" / "a.dcm")
    loaded = read_series(tmp_path / "one")
    assert np.array_equal(loaded.volume.hu, truth.hu)
    mask = np.zeros(truth.hu.shape, bool)
    mask[1:3, 2:6, 3:9] = True
    mask[5, 10, 12] = True
    build_seg(loaded, [Segment(mask, "x")], MAKER).save_as(tmp_path / "seg.dcm")
    check_places(tmp_path / "seg.dcm", mask, truth.geometry)


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray, unit: str = "mm", qform: object = None) -> Path:
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units(unit)
    image.set_sform(affine, 1)
    image.set_qform(affine if qform is None else qform, 1)
    nibabel.save(image, path)
    return path


def test_a_nifti_file_may_be_in_metres(tmp_path: Path):
    affine = np.diag([0.001, 0.002, 0.003, 1.0])
    path = write_nifti(tmp_path / "a.nii", np.zeros((4, 5, 6), np.int16), affine, "meter")
    assert read_series(path).volume.geometry.spacing_mm == pytest.approx((3.0, 2.0, 1.0))


def test_a_nifti_file_whose_two_affines_mirror_each_other_is_refused(tmp_path: Path):
    """Nobody knows which side is left."""
    mirrored = np.diag([-1.0, 1.0, 1.0, 1.0])
    path = write_nifti(tmp_path / "a.nii", np.zeros((4, 5, 6), np.int16), np.eye(4), qform=mirrored)
    with pytest.raises(GeometryRefused, match="differ"):
        read_series(path)


def test_a_nifti_file_with_a_voxel_that_is_no_number_is_refused(tmp_path: Path):
    voxels = np.zeros((4, 5, 6), np.float32)
    voxels[0, 0, 0] = np.nan
    with pytest.raises(NotCt):
        read_series(write_nifti(tmp_path / "a.nii", voxels, np.eye(4)))


def test_a_mask_of_other_spacings_lies_in_place(tmp_path: Path):
    """Each voxel of the series takes the nearest one of the file."""
    loaded = read_series(write_nifti(tmp_path / "ct.nii", np.zeros((12, 12, 12), np.int16), np.eye(4)))
    mask = np.zeros((6, 12, 4), np.uint8)
    mask[1:3, 5:9, 2] = 1
    affine = np.array([[2, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 3, 1], [0, 0, 0, 1.0]])
    found = read_mask(write_nifti(tmp_path / "m.nii", mask, affine), loaded)
    wanted = np.zeros((12, 12, 12), bool)
    wanted[2:6, 5:9, 6:9] = True
    # Of the canonical grid, whose columns and rows run against those of this file.
    assert np.array_equal(found.transpose(2, 1, 0)[::-1, ::-1], wanted)
