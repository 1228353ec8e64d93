"""A series loads right or is refused with its reason; never silently wrong."""

from __future__ import annotations

import gzip

import nibabel
import numpy as np
import pytest
from pydicom import dcmread

from medvl.client.maskfiles import write_nifti
from medvl.contracts.errors import (
    CorruptFile,
    EmptySeries,
    GeometryRefused,
    MixedSeries,
    NotCt,
    SeriesTooLarge,
    TooFewSlices,
)
from medvl.embedded.files import IN_PLANE, write_phantom_series
from medvl.imaging.policy import FindingAction, FindingKind
from medvl.imaging.series import read_series, source_to_lps


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("orientation", IN_PLANE)
def test_every_axial_orientation_is_the_same_patient(orientation, descending, tmp_path):
    """However its pixels and files are ordered, a series becomes the same voxels in the same places."""
    truth = write_phantom_series(tmp_path, seed=3, slices=8, side=24, orientation=orientation, descending=descending)
    loaded = read_series(tmp_path)
    assert np.array_equal(loaded.volume.hu, truth.hu)
    assert np.allclose(loaded.volume.geometry.affine, truth.geometry.affine)
    assert loaded.findings == ()


@pytest.mark.parametrize("orientation", IN_PLANE)
def test_source_indices_are_those_of_the_stored_image(orientation, tmp_path):
    """Column and row of a stored pixel lie where its own header says."""
    write_phantom_series(tmp_path, seed=3, slices=4, side=16, orientation=orientation)
    loaded = read_series(tmp_path)
    header = dcmread(loaded.source.files[2])
    along_row, down_column = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
    spacing = header.PixelSpacing
    expected = np.array(header.ImagePositionPatient, float) + 5 * spacing[1] * along_row + 7 * spacing[0] * down_column
    assert np.allclose(source_to_lps(loaded, (5, 7, 2)), expected)


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1), (-1, -1, -1)])
def test_nifti_of_any_axes_is_the_same_patient(flip, tmp_path):
    """A flipped file loads to the same voxels, and a mask goes back onto its own grid."""
    truth = write_phantom_series(tmp_path / "dicom", seed=3, slices=8, side=24)
    loaded = read_series(tmp_path / "dicom")
    write_nifti(tmp_path / "plain.nii", loaded, truth.labels > 0)
    plain = nibabel.load(tmp_path / "plain.nii")
    stored = np.ascontiguousarray(truth.hu.transpose(2, 1, 0)[:: flip[0], :: flip[1], :: flip[2]])
    turn = np.diag([*flip, 1.0])
    turn[:3, 3] = [(n - 1) * (f < 0) for n, f in zip(stored.shape, flip, strict=True)]
    nibabel.save(nibabel.Nifti1Image(stored, plain.affine @ turn), tmp_path / "ct.nii.gz")
    turned = read_series(tmp_path / "ct.nii.gz")
    assert np.array_equal(turned.volume.hu, truth.hu)
    assert np.allclose(turned.volume.geometry.affine, truth.geometry.affine, atol=1e-4)
    write_nifti(tmp_path / "mask.nii.gz", turned, truth.hu > 0)
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    assert np.allclose(mask.affine, plain.affine @ turn, atol=1e-4)
    assert np.array_equal(np.asarray(mask.dataobj), stored > 0)
    place = source_to_lps(turned, (3, 4, 5)) * np.array([-1, -1, 1])
    assert np.allclose(place, (plain.affine @ turn @ [3, 4, 5, 1])[:3], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("ge_headct_tilt_nonuniform", GeometryRefused, "tilted by 18.5 degrees.*gaps of up to 7.00 mm"),
        ("d2n_tricky/gantry_tilt_siemens", GeometryRefused, "tilted by 14.0 degrees"),
        ("d2n_tricky/missing_slice_ge", GeometryRefused, "missing between the first and the last: 1"),
        ("d2n_tricky/compressed_j2k", NotCt, "MR, not CT"),
        ("d2n_tricky/compressed_jpeg", NotCt, "MR, not CT"),
        ("d2n_tricky/compressed_jpegls", NotCt, "MR, not CT"),
        ("d2n_tricky/compressed_rle", NotCt, "MR, not CT"),
        ("enhanced_ct", TooFewSlices, "2 slices"),
    ],
)
def test_real_series_that_are_refused(name, error, words, test_data):
    """Each says what is wrong in one sentence."""
    with pytest.raises(error, match=words):
        read_series(test_data / name)


@pytest.mark.parametrize("name", ["ge_headct_tilt_nonuniform", "d2n_tricky/gantry_tilt_siemens"])
def test_tilt_is_undone_or_said(name, test_data):
    """Resampled slices reach beyond their planes' edges; loaded as they are, they do not; both are said."""
    resampled, warned = read_series(test_data / name, "resample"), read_series(test_data / name, "warn")
    assert resampled.volume.geometry.shape[1] > warned.volume.geometry.shape[1]
    for loaded, action in ((resampled, FindingAction.RESAMPLED), (warned, FindingAction.LOADED_AS_REGULAR)):
        (tilt,) = [f for f in loaded.findings if f.kind is FindingKind.GANTRY_TILT]
        assert tilt.action is action


def test_a_compressed_series_loads(test_data):
    """JPEG 2000, SOPClassUID missing."""
    volume = read_series(test_data / "ts_example_ct_dicom_j2k").volume
    assert volume.geometry.shape == (20, 512, 512)
    assert volume.geometry.spacing_mm == pytest.approx((2.0, 0.977, 0.977), abs=1e-3)
    assert -1024 <= volume.hu.min() < -900
    assert 0 < np.median(volume.hu[10, 200:300, 200:300]) < 200


def test_other_objects_and_padding_are_said(test_data):
    """SEG and SR beside a series are ignored, padding becomes air."""
    kinds = {f.kind for f in read_series(test_data / "dcmqi_ct3").findings}
    assert kinds == {FindingKind.OTHER_OBJECTS, FindingKind.PIXEL_PADDING}


def test_inverted_display_changes_no_hu(tmp_path):
    """MONOCHROME1 is about showing, and is said."""
    truth = write_phantom_series(tmp_path, seed=3, slices=4, side=16)
    for path in tmp_path.iterdir():
        dataset = dcmread(path)
        dataset.PhotometricInterpretation = "MONOCHROME1"
        dataset.save_as(path)
    loaded = read_series(tmp_path)
    assert [f.kind for f in loaded.findings] == [FindingKind.MONOCHROME1]
    assert np.array_equal(loaded.volume.hu, truth.hu)


def change(**values):
    def apply(dataset):
        for name, value in values.items():
            setattr(dataset, name, value)

    return apply


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (change(SeriesInstanceUID="2.25.7"), MixedSeries),
        (change(Modality="MR"), MixedSeries),
        (change(PixelSpacing=[9.0, 9.0]), GeometryRefused),
        (change(ImageOrientationPatient=[0, 1, 0, 1, 0, 0]), GeometryRefused),
        (change(ImagePositionPatient=None), GeometryRefused),
        (change(Rows=8), GeometryRefused),
        (change(PixelData=b"\0\0"), CorruptFile),
    ],
)
def test_one_slice_that_does_not_fit_is_enough(damage, error, tmp_path):
    """The whole series is refused."""
    write_phantom_series(tmp_path, seed=3, slices=5, side=16)
    path = tmp_path / "0002.dcm"
    dataset = dcmread(path)
    damage(dataset)
    dataset.save_as(path)
    with pytest.raises(error):
        read_series(tmp_path)


def test_a_duplicate_slice_is_refused(tmp_path):
    """Two slices at one place are two series, or one sent twice."""
    write_phantom_series(tmp_path, seed=3, slices=5, side=16)
    (tmp_path / "again.dcm").write_bytes((tmp_path / "0002.dcm").read_bytes())
    with pytest.raises(GeometryRefused, match="same position"):
        read_series(tmp_path)


def test_a_claim_of_gigabytes_is_refused_before_memory_is_taken(tmp_path):
    """A header's rows and columns cost nothing until they are believed."""
    write_phantom_series(tmp_path, seed=3, slices=3, side=16)
    for path in tmp_path.iterdir():
        dataset = dcmread(path)
        dataset.Rows = dataset.Columns = 65535
        dataset.save_as(path)
    with pytest.raises(SeriesTooLarge):
        read_series(tmp_path)


def test_nothing_is_no_series(tmp_path):
    """An empty folder, a missing one, and one without DICOM."""
    with pytest.raises(EmptySeries):
        read_series(tmp_path / "nowhere")
    with pytest.raises(EmptySeries):
        read_series(tmp_path)
    (tmp_path / "notes.txt").write_text("no images here, though this is long enough to hold a preamble" * 5)
    with pytest.raises(EmptySeries):
        read_series(tmp_path)


def test_damaged_and_placeless_nifti(tmp_path):
    """A cut file and a file that does not know left from right are refused."""
    image = nibabel.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4))
    nibabel.save(image, tmp_path / "whole.nii.gz")
    data = gzip.decompress((tmp_path / "whole.nii.gz").read_bytes())
    (tmp_path / "cut.nii").write_bytes(data[:-100])
    with pytest.raises(CorruptFile):
        read_series(tmp_path / "cut.nii")
    image.header.set_sform(None, 0)
    image.header.set_qform(None, 0)
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 8), np.int16), None, image.header), tmp_path / "placeless.nii")
    with pytest.raises(GeometryRefused, match="left and right"):
        read_series(tmp_path / "placeless.nii")
