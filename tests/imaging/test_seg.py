"""A DICOM SEG holds the mask where the patient has it."""

from __future__ import annotations

from dataclasses import replace

import highdicom
import numpy as np
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom import Dataset, dcmread

from medvl.contracts.errors import InvalidRequest
from medvl.embedded.files import IN_PLANE, write_phantom_series
from medvl.imaging.seg import Maker, Segment, SegUids, build_seg
from medvl.imaging.series import read_series

MAKER = Maker("medvl-sam2 0", "phantom", "c" * 64)


@pytest.mark.parametrize("orientation", IN_PLANE)
def test_segments_lie_where_the_mask_lies(orientation, tmp_path):
    """Read back by another library, every voxel stands at its own place in the patient."""
    truth = write_phantom_series(tmp_path / "ct", seed=3, slices=8, side=24, orientation=orientation)
    mask = truth.mask("liver")
    seg = build_seg(read_series(tmp_path / "ct"), [Segment(mask, "liver", ("10200004", "Liver"))], MAKER)
    seg.save_as(tmp_path / "seg.dcm")
    volume = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume()
    found = np.argwhere(volume.array[..., 0])
    places = found @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    expected = truth.geometry.index_to_lps(np.argwhere(mask))
    assert len(found) > 10
    assert {tuple(p) for p in places.round(2)} == {tuple(p) for p in expected.round(2)}
    assert (places[:, 0] < 0).mean() > 0.75, "most of the liver lies on the right, where x is negative"


def test_identity_can_be_derived(tmp_path):
    """Given UIDs are used; who made it and that it is not for diagnosis are in it."""
    truth = write_phantom_series(tmp_path, seed=3, slices=4, side=16)
    loaded = read_series(tmp_path)
    seg = build_seg(loaded, [Segment(truth.labels > 0, "all")], MAKER, SegUids("2.25.1", "2.25.2"))
    assert (seg.SeriesInstanceUID, seg.SOPInstanceUID) == ("2.25.1", "2.25.2")
    assert "not for diagnosis" in seg.SeriesDescription
    assert seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == "c" * 64


def test_a_segments_name_fits_its_attribute(tmp_path):
    """Cut between words, in any script, whatever the characters of the series; a backslash would make two values."""
    truth = write_phantom_series(tmp_path / "ct", seed=3, slices=4, side=16)
    label = "Finding 1: a nodule \\ mass of the left upper lobe that is \u2265 155 mm"
    build_seg(read_series(tmp_path / "ct"), [Segment(truth.labels > 0, label)], MAKER).save_as(tmp_path / "seg.dcm")
    [segment] = highdicom.seg.segread(tmp_path / "seg.dcm").SegmentSequence
    assert segment.SegmentLabel == "Finding 1: a nodule / mass of the left upper lobe that is \u2265..."


def test_a_segment_can_be_tracked(tmp_path):
    """Under its name, by the UID that it is given; without one it has neither."""
    truth = write_phantom_series(tmp_path, seed=3, slices=4, side=16)
    tracked = Segment(truth.labels > 0, "all", tracking_uid="2.25.3")
    seg = build_seg(read_series(tmp_path), [tracked, replace(tracked, tracking_uid=None)], MAKER)
    first, second = seg.SegmentSequence
    assert (first.tracking_id, first.tracking_uid) == ("all", "2.25.3")
    assert (second.tracking_id, second.tracking_uid) == (None, None)


def test_a_quantised_language_model_is_named(tmp_path):
    """Among the parameters of the algorithm, where there is one."""
    truth = write_phantom_series(tmp_path, seed=3, slices=4, side=16)
    loaded, segment = read_series(tmp_path), Segment(truth.labels > 0, "all")
    plain, told = (
        build_seg(loaded, [segment], maker) for maker in (MAKER, replace(MAKER, quantised="weights in 4 bits"))
    )
    plain, told = (s.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0] for s in (plain, told))
    assert "AlgorithmParameters" not in plain
    assert told.AlgorithmParameters == "quantised language model=weights in 4 bits"


def test_real_series_have_what_they_lack(test_data, tmp_path):
    """A series without SOPClassUID, and one that was resampled, have a SEG that reads back."""
    for name in ("ts_example_ct_dicom_j2k", "ge_headct_tilt_nonuniform"):
        loaded = read_series(test_data / name, "resample")
        seg = build_seg(loaded, [Segment(loaded.volume.hu > 200, "bone")], MAKER)
        seg.save_as(tmp_path / "seg.dcm")
        assert highdicom.seg.segread(tmp_path / "seg.dcm").pixel_array.any()
        assert seg.StudyInstanceUID


def test_a_series_of_no_study_has_segs_of_one(tmp_path):
    """Which follows from the series: an object without a study is none, and every SEG of a series is in the same."""
    studies = []
    for seed in (3, 4):
        truth = write_phantom_series(tmp_path / f"{seed}", seed=seed, slices=4, side=16)
        for path in (tmp_path / f"{seed}").iterdir():
            dataset = dcmread(path)
            dataset.StudyInstanceUID = ""
            dataset.save_as(path)
        loaded = read_series(tmp_path / f"{seed}")
        studies += [build_seg(loaded, [Segment(truth.labels > 0, "all")], MAKER).StudyInstanceUID for _ in range(2)]
    first, again, other, other_again = studies
    assert first == again != other == other_again


def test_text_in_sequences_is_that_of_the_series(tmp_path):
    """Whatever its character set: the SEG has another."""
    truth = write_phantom_series(tmp_path / "ct", seed=3, slices=4, side=16)
    for path in (tmp_path / "ct").iterdir():
        dataset = dcmread(path)
        dataset.SpecificCharacterSet = "ISO_IR 100"
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "99LOCAL", "CT Sch\u00e4del"
        dataset.ProcedureCodeSequence = [code]
        dataset.save_as(path)
    build_seg(read_series(tmp_path / "ct"), [Segment(truth.labels > 0, "all")], MAKER).save_as(tmp_path / "seg.dcm")
    seg = dcmread(tmp_path / "seg.dcm")
    assert (seg.SpecificCharacterSet, seg.ProcedureCodeSequence[0].CodeMeaning) == ("ISO_IR 192", "CT Sch\u00e4del")


def test_several_multi_frame_files_have_no_seg(tmp_path):
    """A SEG refers to one multi-frame object or to slices: which is said, and the masks can be NIfTI."""
    truth = write_phantom_series(tmp_path / "ct", seed=3, slices=8, side=16)
    slices = [dcmread(path) for path in sorted((tmp_path / "ct").iterdir())]
    for dataset in slices:
        # highdicom warns of a name that is one word.
        dataset.PatientName = "Phantom^"
    (tmp_path / "split").mkdir()
    for number in range(2):
        part = LegacyConvertedEnhancedCTImage(slices[4 * number :][:4], "2.25.1", 1, f"2.25.1{number}", number + 1)
        part.save_as(tmp_path / "split" / f"{number}.dcm")
    loaded = read_series(tmp_path / "split")
    assert np.array_equal(loaded.volume.hu, truth.hu)
    with pytest.raises(InvalidRequest, match="several multi-frame objects: write the masks as NIfTI"):
        build_seg(loaded, [Segment(truth.labels > 0, "all")], MAKER)


def test_nifti_has_no_seg(test_data):
    """There is no series to refer to."""
    loaded = read_series(test_data / "ts_example_ct" / "example_ct_sm.nii.gz")
    with pytest.raises(InvalidRequest, match="DICOM source"):
        build_seg(loaded, [Segment(loaded.volume.hu > 0, "x")], MAKER)
