"""A series loads right or is refused with its reason; never silently wrong."""

from __future__ import annotations

import errno
import gzip
import re
import threading
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.pixels.decoders.base import Decoder
from pydicom.tag import Tag

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
from medvl.imaging import dicom
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
        ("enhanced_ct", TooFewSlices, "has 2"),
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


def stored(**values):
    """Put bytes into the file that its writer would never write."""

    def apply(dataset):
        for name, value in values.items():
            tag = Tag(tag_for_keyword(name))
            vr = dictionary_VR(tag)[:2]
            dataset[tag] = RawDataElement(tag, vr, len(value), value.encode(), 0, False, True)

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
        (change(FrameOfReferenceUID="2.25.7"), MixedSeries),
        (change(FrameOfReferenceUID=None), MixedSeries),
        (change(StudyInstanceUID="2.25.7"), MixedSeries),
        (change(StudyInstanceUID=None), MixedSeries),
        (change(PatientID="ANOTHER"), MixedSeries),
        (change(IssuerOfPatientID="ANOTHER"), MixedSeries),
        (change(PatientName="ANOTHER^CT"), MixedSeries),
        (change(PatientBirthDate="19000101"), MixedSeries),
        (change(RescaleType="Z_EFF"), NotCt),
        (change(RescaleType="MGML"), NotCt),
        (change(RescaleSlope=None), CorruptFile),
        (change(RescaleSlope=0), CorruptFile),
        (change(RescaleIntercept=None), CorruptFile),
        (stored(RescaleSlope="nan"), CorruptFile),
        (stored(RescaleSlope="abc"), CorruptFile),
        (stored(RescaleSlope="1\\2"), CorruptFile),
        (stored(RescaleIntercept="x"), CorruptFile),
        (stored(ImagePositionPatient="1\\2\\x"), GeometryRefused),
        (stored(Modality="CT\\OT"), CorruptFile),
        (stored(SeriesInstanceUID="2.25.1\\2.25.2"), CorruptFile),
        (stored(Rows="abc"), CorruptFile),
        (stored(Columns=""), CorruptFile),
        (stored(NumberOfFrames="many"), CorruptFile),
        (stored(PixelPaddingValue="abcd"), CorruptFile),
        (stored(PixelRepresentation="abc"), CorruptFile),
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


def test_who_else_it_may_be_is_not_said(tmp_path):
    """By what slices differ, never whom they name."""
    write_phantom_series(tmp_path, seed=3, slices=5, side=16)
    dataset = dcmread(tmp_path / "0002.dcm")
    dataset.PatientID, dataset.PatientName = "SECRET-1", "Secret^Patient"
    dataset.save_as(tmp_path / "0002.dcm")
    with pytest.raises(MixedSeries, match="The slices differ in PatientID, PatientName, so") as refused:
        read_series(tmp_path)
    assert not re.search("secret|phantom", str(refused.value), re.IGNORECASE)


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", "M\u00fcller^J\u00f6rg"),
        ("ISO_IR 192", "M\u00fcller^J\u00f6rg^^"),
        ("ISO_IR 192", "Mu\u0308ller^Jo\u0308rg^^^=="),
        ("ISO_IR 192", " M\u00fcller ^J\u00f6rg\\Mueller^Joerg"),
    ],
)
def test_a_name_is_the_same_however_it_is_written(character_set, name, tmp_path):
    """In another character set, with delimiters at its end, with a second one, of which results hold the first."""
    truth = write_phantom_series(tmp_path, seed=3, slices=5, side=16)
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        dataset = dcmread(path)
        dataset.SpecificCharacterSet = character_set if number == 2 else "ISO_IR 192"
        dataset.PatientName = name if number == 2 else "M\u00fcller^J\u00f6rg"
        dataset.save_as(path)
    assert np.array_equal(read_series(tmp_path).volume.hu, truth.hu)


@pytest.mark.parametrize("value", [None, ""])
def test_a_series_of_nobody_loads(value, tmp_path):
    """Anonymised series name neither patient nor study, by empty attributes or by none."""
    truth = write_phantom_series(tmp_path, seed=3, slices=5, side=16)
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        dataset = dcmread(path)
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "IssuerOfPatientID"):
            setattr(dataset, keyword, value)
            if number == 2:
                del dataset[keyword]
        dataset.save_as(path)
    assert np.array_equal(read_series(tmp_path).volume.hu, truth.hu)


def test_a_damaged_header_is_named(tmp_path):
    """By its file, not by its values, which may be a patient's."""
    write_phantom_series(tmp_path, seed=3, slices=5, side=16)
    dataset = dcmread(tmp_path / "0002.dcm")
    stored(RescaleSlope="abc")(dataset)
    dataset.save_as(tmp_path / "0002.dcm")
    with pytest.raises(CorruptFile, match=r"^The header of 0002\.dcm is damaged: fetch the series again\.$"):
        read_series(tmp_path)


@pytest.mark.parametrize(
    "damage", [change(RescaleType="US"), change(RescaleType=None), stored(PixelPaddingRangeLimit="")]
)
def test_what_says_nothing_is_let_through(damage, tmp_path):
    """A unit that is not told, or values that are there and empty."""
    truth = write_phantom_series(tmp_path, seed=3, slices=5, side=16)
    for path in tmp_path.iterdir():
        dataset = dcmread(path)
        damage(dataset)
        dataset.add_new("PixelPaddingValue", "SS", 30000)
        dataset.save_as(path)
    assert np.array_equal(read_series(tmp_path).volume.hu, truth.hu)


def test_series_without_a_frame_of_reference_load(tmp_path):
    """Where no slice says it, there is nothing to compare."""
    truth = write_phantom_series(tmp_path, seed=3, slices=5, side=16)
    for path in tmp_path.iterdir():
        dataset = dcmread(path)
        del dataset.FrameOfReferenceUID
        dataset.save_as(path)
    assert np.array_equal(read_series(tmp_path).volume.hu, truth.hu)


@pytest.mark.parametrize("where", ["dcmread", "read_file_meta_info"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), PermissionError(13, "no"), MemoryError()])
def test_a_disk_that_fails_is_no_damaged_file(error, where, tmp_path, monkeypatch):
    """The same series may be read later: nobody may refuse it for good."""
    write_phantom_series(tmp_path, seed=3, slices=5, side=16)

    def fail(path):
        raise error

    monkeypatch.setattr(dicom, where, fail)
    with pytest.raises(type(error)):
        read_series(tmp_path)


def test_what_the_parser_calls_an_os_error_is_damage(tmp_path, monkeypatch):
    """Pydicom raises OSError, without a number, where a sequence is cut off."""

    def fail(path):
        raise OSError("No tag to read at file position 3F")

    write_phantom_series(tmp_path, seed=3, slices=5, side=16)
    monkeypatch.setattr(dicom, "dcmread", fail)
    with pytest.raises(CorruptFile):
        read_series(tmp_path)


@pytest.mark.parametrize("where", ["open", "load"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), PermissionError(13, "no"), MemoryError()])
def test_a_disk_that_fails_is_no_damaged_nifti(error, where, tmp_path, monkeypatch):
    """Neither where the file is opened nor while it is read; nibabel hides the first."""
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)), tmp_path / "ct.nii")

    def fail(*_args):
        raise error

    monkeypatch.setattr(*((Path, "open") if where == "open" else (nibabel, "load")), fail)
    with pytest.raises(type(error)):
        read_series(tmp_path / "ct.nii")


def test_a_localizer_is_known_by_its_only_value(tmp_path):
    """ImageType may have one value, which pydicom gives as a text and not as a list."""
    truth = write_phantom_series(tmp_path, seed=3, slices=6, side=16)
    paths = sorted(tmp_path.iterdir(), key=lambda path: dcmread(path).ImagePositionPatient[2])
    dataset = dcmread(paths[0])
    dataset.ImageType = "LOCALIZER"
    dataset.save_as(paths[0])
    loaded = read_series(tmp_path)
    assert np.array_equal(loaded.volume.hu, truth.hu[1:])
    assert [f.kind for f in loaded.findings] == [FindingKind.OTHER_OBJECTS]


def write_multi_frame(folder, *, claimed, described):
    """Write a multi-frame CT with as many frames of pixels as it claims."""
    write_phantom_series(folder, seed=3, slices=claimed, side=16)
    slices = [dcmread(path) for path in sorted(folder.iterdir())]
    whole = slices[0]
    whole.NumberOfFrames = claimed
    whole.PixelData = b"".join(s.PixelData for s in slices)
    whole.PerFrameFunctionalGroupsSequence = []
    for number in range(described):
        place, frame = Dataset(), Dataset()
        place.ImagePositionPatient = slices[min(number, claimed - 1)].ImagePositionPatient
        frame.PlanePositionSequence = [place]
        whole.PerFrameFunctionalGroupsSequence.append(frame)
    for path in folder.iterdir():
        path.unlink()
    whole.save_as(folder / "whole.dcm")


def test_a_multi_frame_file_loads(tmp_path):
    """Each frame lies where its own item says."""
    write_multi_frame(tmp_path, claimed=4, described=4)
    loaded = read_series(tmp_path)
    assert loaded.volume.geometry.shape == (4, 16, 16)
    assert sorted(loaded.source.frames) == [0, 1, 2, 3]


def test_a_multi_frame_file_is_decoded_once(tmp_path, monkeypatch):
    """Not by each thread that fills a slice; the first decoding gives others the time to begin theirs."""
    write_multi_frame(tmp_path, claimed=4, described=4)
    begun, again = [], threading.Event()
    as_array = Decoder.as_array

    def watched(*args, **kwargs):
        begun.append(args)
        if len(begun) > 1:
            again.set()
        again.wait(0.5)
        return as_array(*args, **kwargs)

    monkeypatch.setattr(Decoder, "as_array", watched)
    read_series(tmp_path)
    assert len(begun) == 1


@pytest.mark.parametrize("described", [0, 3, 5])
def test_frames_that_are_not_all_described_are_refused(described, tmp_path):
    """More or fewer than the file claims: which is which is not known."""
    write_multi_frame(tmp_path, claimed=4, described=described)
    with pytest.raises(CorruptFile, match=f"whole.dcm claims 4 frames and describes {described}"):
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


@pytest.mark.parametrize("kept_bytes", [200, 600, 1000])
def test_a_file_that_ends_within_its_header_is_damaged(kept_bytes, tmp_path):
    """It is not taken for an object of another kind, which would leave its slice out."""
    write_phantom_series(tmp_path, seed=3, slices=5, side=16)
    path = tmp_path / "0002.dcm"
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(CorruptFile, match="fetch the series again"):
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
