"""Masks read from files lie where their voxels do, however the file stores them."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom import dcmread

from medvl.client.maskfiles import MaskTarget, read_mask, write_nifti
from medvl.contracts.errors import InvalidRequest
from medvl.embedded.files import IN_PLANE, write_phantom_series
from medvl.imaging.seg import Maker, Segment, build_seg
from medvl.imaging.series import LoadedSeries, read_series


def marked(loaded: LoadedSeries) -> np.ndarray:
    """A mask bool [D, R, C] that no turn or flip leaves as it is."""
    mask = np.zeros(loaded.volume.geometry.shape, bool)
    mask[2:5, 3:11, 5:9] = True
    mask[2, 20, 30] = True
    return mask


@pytest.fixture(scope="module", params=IN_PLANE)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedSeries:
    folder = tmp_path_factory.mktemp("ct")
    write_phantom_series(folder, seed=11, slices=9, side=40, orientation=request.param, descending=True)
    return read_series(folder)


def test_what_was_written_is_read_back(loaded: LoadedSeries, tmp_path: Path):
    """As NIfTI on the source's grid, and as one of two segments of a DICOM SEG; a file on other axes is the same."""
    mask = marked(loaded)
    write_nifti(tmp_path / "mask.nii.gz", loaded, mask)
    assert np.array_equal(read_mask(tmp_path / "mask.nii.gz", loaded), mask)
    turned = nibabel.as_closest_canonical(nibabel.load(tmp_path / "mask.nii.gz"))
    nibabel.save(turned, tmp_path / "turned.nii")
    assert np.array_equal(read_mask(tmp_path / "turned.nii", loaded), mask)
    segments = [Segment(~mask, "all else", None), Segment(mask, "the object", None)]
    build_seg(loaded, segments, Maker("test", "test", "0" * 64)).save_as(tmp_path / "seg.dcm")
    assert np.array_equal(read_mask(tmp_path / "seg.dcm", loaded, 2), mask)


def test_files_that_are_no_mask_of_the_series_are_refused(loaded: LoadedSeries, tmp_path: Path):
    """With the name of the file and what to do."""
    mask, path = marked(loaded), tmp_path / "mask.nii.gz"
    segments = [Segment(mask, "one", None), Segment(~mask, "two", None)]
    build_seg(loaded, segments, Maker("test", "test", "0" * 64)).save_as(tmp_path / "seg.dcm")
    write_nifti(path, loaded, mask)
    (tmp_path / "text.nii").write_text("no image")
    far = nibabel.load(path)
    far.affine[:3, 3] += 5000
    nibabel.save(nibabel.Nifti1Image(np.asarray(far.dataobj), far.affine), tmp_path / "far.nii")
    oblique = np.array([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4), np.uint8), oblique), tmp_path / "oblique.nii")
    of_times = np.stack([np.asarray(nibabel.load(path).dataobj)] * 2, axis=-1)
    nibabel.save(nibabel.Nifti1Image(of_times, nibabel.load(path).affine), tmp_path / "times.nii")
    for name, segment, said in (
        ("seg.dcm", None, r"has the segments \[1, 2\]: name one"),
        ("seg.dcm", 3, "no segment 3"),
        ("mask.nii.gz", 7, "no voxel within the series"),
        ("text.nii", None, "cannot be read"),
        ("far.nii", None, "no voxel within the series"),
        ("oblique.nii", None, "axes of the mask"),
        ("times.nii", None, "has 4 axes, not 3"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            read_mask(tmp_path / name, loaded, segment)


def test_a_seg_of_uneven_slices_is_refused_in_a_sentence(tmp_path: Path):
    """A series that was loaded as if it were regular has a SEG whose frames are no grid."""
    write_phantom_series(tmp_path / "ct", seed=11, slices=9, side=40)
    moved = dcmread(tmp_path / "ct" / "0004.dcm")
    moved.ImagePositionPatient[2] += 0.7
    moved.save_as(tmp_path / "ct" / "0004.dcm")
    loaded = read_series(tmp_path / "ct", "warn")
    mask = np.ones(loaded.volume.geometry.shape, bool)
    build_seg(loaded, [Segment(mask, "all", None)], Maker("test", "test", "0" * 64)).save_as(tmp_path / "seg.dcm")
    with pytest.raises(InvalidRequest, match=r"seg\.dcm are not evenly spaced: write it as NIfTI"):
        read_mask(tmp_path / "seg.dcm", loaded)


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({"FrameOfReferenceUID": "2.25.7"}, False),
        ({"FrameOfReferenceUID": ""}, False),
        ({"StudyInstanceUID": "2.25.7"}, True),
        ({"ReferencedSeriesSequence": []}, True),
        ({"StudyInstanceUID": "2.25.7", "ReferencedSeriesSequence": []}, False),
        ({"StudyInstanceUID": "", "ReferencedSeriesSequence": []}, True),
    ],
)
def test_a_seg_of_another_patient_is_refused(changes, taken, tmp_path):
    """It lies in the space of the series, and is of its study or refers to it where it says either."""
    write_phantom_series(tmp_path / "ct", seed=11, slices=9, side=40)
    loaded = read_series(tmp_path / "ct")
    mask = marked(loaded)
    seg = build_seg(loaded, [Segment(mask, "all", None)], Maker("test", "test", "0" * 64))
    for keyword, value in changes.items():
        setattr(seg, keyword, value)
    seg.save_as(tmp_path / "seg.dcm")
    if taken:
        assert np.array_equal(read_mask(tmp_path / "seg.dcm", loaded), mask)
    else:
        with pytest.raises(InvalidRequest, match=r"seg\.dcm was made of another patient or series.*write it as NIfTI"):
            read_mask(tmp_path / "seg.dcm", loaded)


def test_a_seg_of_a_series_that_says_nothing_is_its_own(tmp_path: Path):
    """Neither study nor series nor frame of reference, as an anonymised one."""
    write_phantom_series(tmp_path / "ct", seed=11, slices=9, side=40)
    for path in (tmp_path / "ct").iterdir():
        dataset = dcmread(path)
        dataset.StudyInstanceUID = dataset.SeriesInstanceUID = dataset.FrameOfReferenceUID = ""
        dataset.save_as(path)
    loaded = read_series(tmp_path / "ct")
    mask = marked(loaded)
    build_seg(loaded, [Segment(mask, "all", None)], Maker("test", "test", "0" * 64)).save_as(tmp_path / "seg.dcm")
    assert np.array_equal(read_mask(tmp_path / "seg.dcm", loaded), mask)


def test_segs_that_others_made(test_data, tmp_path):
    """One of the series is taken, one of another patient in the same folder is not."""
    loaded = read_series(test_data / "dcmqi_ct3")
    assert read_mask(test_data / "dcmqi_ct3" / "liver.dcm", loaded).any()
    with pytest.raises(InvalidRequest, match="another patient or series"):
        read_mask(test_data / "dcmqi_ct3" / "seg.dcm", loaded)


def test_a_file_that_is_there_can_be_written_over(tmp_path: Path):
    """Asking whether it can leaves it as it is; a folder of its name cannot."""
    path = tmp_path / "mask.nii.gz"
    path.write_bytes(b"before")
    MaskTarget.of(path, objects=1).check_writable()
    assert path.read_bytes() == b"before"
    (tmp_path / "mask.dcm").mkdir()
    with pytest.raises(IsADirectoryError):
        MaskTarget.of(tmp_path / "mask.dcm", objects=1).check_writable()
