"""What ``medvl`` promises a shell, through ``main`` and once through the installed script."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pytest

from medvl.client.cli import main
from medvl.client.events import provenance_from_wire
from medvl.client.exits import Exit
from medvl.client.maskfiles import maker
from medvl.contracts.disclaimer import CUT_OFF, DISCLAIMER
from medvl.contracts.errors import DeadlineExceeded, InternalError, Overloaded, UnknownLabel
from medvl.embedded.files import write_phantom_series
from medvl.imaging.masks import unpack_mask
from medvl.wire.v1 import medvl_pb2 as pb

SHAPE = (24, 20, 12)
"""Columns, rows and slices of the file."""
# The file's axes run to the patient's left, front and head with 0.7, 0.8 and 2.5 mm: RAS+ millimetres.
AFFINE = np.array([[-0.7, 0, 0, 9], [0, 0.8, 0, -30], [0, 0, 2.5, 40], [0, 0, 0, 1.0]])


@pytest.fixture
def series(tmp_path) -> Path:
    """A NIfTI file whose voxels all differ from their neighbours."""
    hu = (np.arange(np.prod(SHAPE)) % 1700 - 700).astype(np.int16).reshape(SHAPE)
    path = tmp_path / "ct.nii.gz"
    nibabel.save(nibabel.Nifti1Image(hu, AFFINE), path)
    return path


@pytest.fixture
def medvl(service, capsys):
    """Run ``medvl`` against the service; return exit code, standard output and standard error."""

    def run(*arguments):
        code = main([*map(str, arguments), "--endpoint", service.endpoint])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_report_prints_text_as_it_comes_and_the_disclaimer(service, medvl, series):
    """Nothing but the answer goes to standard output, and nothing at all to standard error when no one watches."""
    service.events = [pb.Event(text=pb.TextDelta(text=t)) for t in ("No ", "finding.")] + [service.done("No finding.")]
    code, out, err = medvl("report", series)
    assert (code, err) == (Exit.OK, "")
    assert out.startswith("No finding.\n")
    assert "Not for diagnosis" in out


@pytest.mark.parametrize("command", [("report",), ("ask", "?")])
def test_masks_of_a_text_are_written(service, medvl, series, tmp_path, command):
    """Each that was found, named for its marker; a text that names nothing writes nothing."""
    name, *rest = command
    events = [service.mask(m, index=i, label="", prompt="") for i, m in enumerate([np.ones((12, 20, 24), bool), None])]
    for event in events:
        event.mask.span.CopyFrom(pb.TextSpan(start=event.mask.object, end=event.mask.object + 5))
    service.events = [*events, service.done()]
    code, out, _ = medvl(name, series, *rest, "-o", tmp_path / "masks", "--json")
    assert code == Exit.OK
    (path,) = (tmp_path / "masks").iterdir()
    assert path.name == "0-seg-1.nii.gz"
    assert [said["path"] for said in json.loads(out)["masks"]] == [str(path), None]
    assert np.asarray(nibabel.load(path).dataobj).all()
    assert "[SEG] 2: not found" in medvl(name, series, *rest)[1]
    service.events = [service.done()]
    assert medvl(name, series, *rest, "-o", tmp_path / "none")[0] == Exit.OK
    assert not (tmp_path / "none").exists()


def test_masks_of_a_text_are_findings_in_a_seg(service, medvl, tmp_path):
    """Called after its words, coded as lesions, in its order, as the PACS gateway does it; without those not found."""
    write_phantom_series(tmp_path / "ct", seed=3, slices=7, side=16)
    text = "The liver shows a cyst [SEG] and a mass [SEG]. A nodule [SEG]."
    marked = [np.ones((7, 16, 16), bool), None, np.eye(16, dtype=bool)[None].repeat(7, 0)]
    events = [service.mask(mask, index=i, label="", prompt="") for i, mask in enumerate(marked)]
    for event, marker in zip(events, re.finditer(r"\[SEG\]", text), strict=True):
        event.mask.span.CopyFrom(pb.TextSpan(start=marker.start(), end=marker.end()))
    service.events = [*reversed(events), service.done(text)]
    assert medvl("report", tmp_path / "ct", "-o", tmp_path / "mask.dcm")[0] == Exit.OK
    seg = highdicom.seg.segread(tmp_path / "mask.dcm")
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["Finding 1: The liver shows a cyst", "Finding 2: A nodule"]
    for segment in seg.SegmentSequence:
        (category,), (kind,) = segment.SegmentedPropertyCategoryCodeSequence, segment.SegmentedPropertyTypeCodeSequence
        assert (category.CodeValue, kind.CodeValue) == ("49755003", "52988006")
    assert [int((seg.get_volume(segment_numbers=[n]).array > 0).sum()) for n in (1, 2)] == [7 * 256, 7 * 16]


def test_segments_of_classes_have_the_codes_that_the_service_tells(service, medvl, tmp_path):
    """Each its own; what has no code is tissue, and nothing of it a lesion."""
    write_phantom_series(tmp_path / "ct", seed=3, slices=7, side=16)
    mask = np.ones((7, 16, 16), bool)
    service.events = [
        service.mask(mask, index=0, label="", prompt="the bright organ"),
        service.mask(mask, index=1, label="liver"),
        service.done(),
    ]
    prompts = ["--text", "the bright organ", "--label", "liver"]
    assert medvl("segment", tmp_path / "ct", *prompts, "-o", tmp_path / "mask.dcm")[0] == Exit.OK
    coded = {
        segment.SegmentLabel: (
            segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue,
            segment.SegmentedPropertyTypeCodeSequence[0].CodeValue,
        )
        for segment in highdicom.seg.segread(tmp_path / "mask.dcm").SegmentSequence
    }
    assert coded == {"the bright organ": ("123037004", "85756007"), "liver": ("123037004", "10200004")}


@pytest.mark.parametrize("command", [("report",), ("ask", "?"), ("segment", "--label", "liver", "-o", "OUT")])
def test_what_was_unusual_about_a_series_is_warned_of(service, medvl, tmp_path, command):
    """On standard error and in the document, where the policy lets it pass: nothing of it stands in the text."""
    name, *rest = [str(tmp_path / "mask.nii.gz") if word == "OUT" else word for word in command]
    write_phantom_series(tmp_path / "ct", seed=3, slices=7, side=16)
    (tmp_path / "ct" / "0003.dcm").unlink()
    _, out, err = medvl(name, tmp_path / "ct", *rest, "--geometry-policy", "warn", "--json")
    (finding,) = json.loads(out)["series"]["findings"]
    assert finding.startswith("Slices are missing")
    assert err == f"medvl: warning: {finding}\n"


@pytest.mark.parametrize(("output", "sentence"), [("m.nii.gz", "those of a text"), ("m.dcm", "needs a DICOM source")])
def test_an_output_that_cannot_hold_them_is_refused_before_the_service_is_asked(
    service, medvl, series, output, sentence
):
    """One file for any number of masks, and a DICOM SEG of what is not DICOM."""
    code, _, err = medvl("report", series, "-o", output)
    assert (code, service.calls) == (Exit.USAGE, [])
    assert sentence in err


def test_ask_sends_the_question(service, medvl, series):
    """The words arrive as they were typed, even when they begin with a minus sign and a digit."""
    assert medvl("ask", series, "Is the liver large?")[0] == Exit.OK
    assert service.requests[-1].question == "Is the liver large?"


def test_a_long_text_is_printed_whole(service, medvl, series):
    """However much of it comes at once."""
    text = " ".join(map(str, range(20_000)))
    service.events = [pb.Event(text=pb.TextDelta(text=text)), service.done(text)]
    assert medvl("report", series)[1].startswith(f"{text}\n")


def test_text_of_a_model_cannot_steer_the_terminal(service, medvl, series):
    """Control characters are dropped; line breaks stay."""
    service.events = [pb.Event(text=pb.TextDelta(text="a\x1b[2Jb\r\nc")), service.done("a")]
    assert medvl("report", series)[1].startswith("a[2Jb\nc\n")


@pytest.mark.parametrize("command", [("report",), ("ask", "?")])
def test_a_text_that_was_cut_off_says_so(service, medvl, series, command):
    """On standard error, beside the text and beside the document, which has the reason."""
    name, *rest = command
    done = service.done("Findings: The right lung sho")
    done.done.finish_reason = "length"
    service.events = [done]
    code, _, err = medvl(name, series, *rest)
    assert (code, err) == (Exit.OK, f"medvl: warning: {CUT_OFF}\n")
    _, out, err = medvl(name, series, *rest, "--json")
    assert (json.loads(out)["finish_reason"], err) == ("length", f"medvl: warning: {CUT_OFF}\n")


def test_no_answer_is_without_the_disclaimer(service, medvl, series):
    """Whatever the service sends."""
    done = service.done("No finding.")
    done.done.disclaimer = " "
    service.events = [done]
    assert f"\n{DISCLAIMER}\n" in medvl("report", series)[1]
    assert json.loads(medvl("report", series, "--json")[1])["disclaimer"] == DISCLAIMER


@pytest.mark.parametrize("command", [("report",), ("ask", "?"), ("segment", "--label", "liver", "-o", "OUT")])
def test_json_is_one_document_and_nothing_else(service, medvl, series, tmp_path, command):
    """A program can read standard output whole."""
    name, *rest = [str(tmp_path / "mask.nii.gz") if word == "OUT" else word for word in command]
    mask = np.ones((12, 20, 24), bool)
    service.events = [pb.Event(text=pb.TextDelta(text="x")), service.mask(mask), service.done("x")]
    code, out, err = medvl(name, series, *rest, "--json")
    document = json.loads(out)
    assert (code, err) == (Exit.OK, "")
    assert document["text"] == "x"
    assert document["series"] == {
        "digest": service.requests[-1].series,
        "geometry": {
            "shape": [12, 20, 24],
            "spacing_mm": pytest.approx([2.5, 0.8, 0.7]),
            # The foremost row is the last one of the file; LPS millimetres.
            "origin_mm": pytest.approx([-9.0, 30.0 - 19 * 0.8, 40.0]),
            "direction": [pytest.approx(axis) for axis in ([0, 0, 1], [0, 1, 0], [1, 0, 0])],
        },
        "findings": [],
    }
    assert document["masks"][0]["measurement"]["voxels"] == mask.sum()
    assert document["provenance"]["trained"] is False
    assert document["disclaimer"]


def test_describe(service, medvl):
    """What is served can be read by people and programs."""
    said = medvl("describe")[1]
    assert "classes       liver\n" in said
    assert f"checkpoint    phantom (NOT trained: random weights), {'c' * 12}\n" in said
    assert said.endswith(f"intended use  demonstration\n{DISCLAIMER}\n")
    service.provenance.trained = True
    assert "checkpoint    phantom (trained)" in medvl("describe")[1]
    assert json.loads(medvl("describe", "--json")[1])["backends"] == {"llm": "python"}


def test_a_quantised_language_model_is_told(service, medvl, series):
    """By ``describe``, in the document of every answer, and by what a DICOM SEG says of its maker."""
    assert "quantised" not in medvl("describe")[1]
    told = pb.Quantisation(method="awq", weight_bits=4, dtype="bfloat16", digest="d" * 64)
    done = service.done()
    for provenance in (service.provenance, done.done.provenance):
        provenance.quantisation.CopyFrom(told)
    words = "weights in 4 bits, activations in bfloat16 (awq)"
    assert f"words         quantised: {words}\n" in medvl("describe")[1]
    service.events = [done]
    document = json.loads(medvl("report", series, "--json")[1])
    assert document["provenance"]["quantisation"] == {
        "method": "awq",
        "format": "",
        "weight_bits": 4,
        "activation_bits": None,
        "dtype": "bfloat16",
        "digest": "d" * 64,
    }
    assert maker(provenance_from_wire(service.provenance)).quantised == words


def test_a_mask_is_written_on_the_grid_of_the_file(service, medvl, series, tmp_path):
    """The voxel that the service marks is the voxel of the same place in the file."""
    mask = np.zeros((12, 20, 24), bool)
    mask[11, 0, 23] = True
    service.events = [service.mask(mask), service.done()]
    code, out, _ = medvl("segment", series, "--label", "liver", "-o", tmp_path / "new" / "mask.nii.gz")
    written = nibabel.load(tmp_path / "new" / "mask.nii.gz")
    assert code == Exit.OK
    assert np.allclose(written.affine, AFFINE)
    assert written.header.get_xyzt_units()[0] == "mm"
    assert b"not for diagnosis" in bytes(written.header["descrip"])
    # Head, front, left of the canonical grid: the file's own axes run to left, front and head.
    assert np.argwhere(np.asarray(written.dataobj)).tolist() == [[0 if AFFINE[0, 0] > 0 else 23, 19, 11]]
    assert "liver: 1.2 ml" in out
    (comment,) = written.header.extensions
    said, made = json.loads(comment.get_content()), maker(provenance_from_wire(service.provenance))
    assert (said["label"], said["checkpoint_digest"], said["software"]) == (
        "liver",
        made.checkpoint_digest,
        made.software,
    )
    assert said["disclaimer"] == DISCLAIMER


def test_points_and_boxes_are_lps_millimetres(service, medvl, series, tmp_path):
    """Numbers arrive as typed, the negative ones included, as one object."""
    points = ["--point", "-12.5,3,4", "--point", "-1,-2,-3,neg"]
    medvl("segment", series, *points, "--box", "-9,1,2,-3,8,9", "-o", tmp_path / "m.nii.gz")
    (sent,) = service.requests[-1].objects
    assert [(list(p.lps_mm), p.negative) for p in sent.points] == [([-12.5, 3, 4], False), ([-1, -2, -3], True)]
    assert (list(sent.boxes[0].min_lps_mm), list(sent.boxes[0].max_lps_mm)) == ([-9, 1, 2], [-3, 8, 9])


def test_corrections_come_one_after_another(service, medvl, series, tmp_path):
    """Each on the mask that everything before it makes, in the order in which they were typed."""
    typed = ["--correct", "-1,-2,-3,neg", "--point", "-12.5,3,4", "--correct", "5,6,7"]
    medvl("segment", series, *typed, "-o", tmp_path / "m.nii.gz")
    (sent,) = service.requests[-1].objects
    assert [(p.lps_mm[0], p.negative, p.correction) for p in sent.points] == [
        (-12.5, False, 0),
        (-1, True, 1),
        (5, False, 2),
    ]


def test_a_cleanup_is_asked_for_and_told(service, medvl, series, tmp_path):
    """Both parts of it, and what they did stands in the document."""
    mask = np.ones((12, 20, 24), bool)
    event = service.mask(mask)
    event.mask.cleaned.CopyFrom(pb.Cleaned(cleanup=pb.Cleanup(largest_component=True), removed_voxels=5))
    event.mask.local = True
    service.events = [event, service.done()]
    typed = ["--label", "liver", "--correct", "1,2,3", "--largest", "--fill", "--local"]
    code, out, _ = medvl("segment", series, *typed, "-o", tmp_path / "m.nii.gz", "--json")
    assert code == Exit.OK
    sent = service.requests[-1]
    assert (sent.cleanup, sent.local) == (pb.Cleanup(largest_component=True, fill_holes=True), True)
    (said,) = json.loads(out)["masks"]
    assert said["local"]
    assert (said["cleaned"]["largest_component"], said["cleaned"]["removed_voxels"]) == (True, 5)


@pytest.mark.parametrize(("suffix", "value"), [("", None), (",1", 1), (",2", 2)])
def test_a_mask_to_go_on_from_is_sent(service, medvl, series, suffix, value):
    """Its voxels at their places of the canonical grid: all of the file, or those of the one value that was named."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:5, 3:6, 1:3] = 2
    labels[8, 8, 7] = 1
    before = series.with_name("before.nii.gz")
    nibabel.save(nibabel.Nifti1Image(labels, AFFINE), before)
    medvl("segment", series, "--mask", f"{before}{suffix}", "-o", series.with_name("after.nii.gz"))
    (sent,) = service.requests[-1].objects
    # The file's rows run to the front, those of the canonical grid to the back.
    wanted = (labels > 0 if value is None else labels == value).transpose(2, 1, 0)[:, ::-1]
    assert np.array_equal(unpack_mask(sent.mask, wanted.shape), wanted)


@pytest.mark.parametrize(
    ("typed", "cleanup"), [("--largest", pb.Cleanup(largest_component=True)), ("--fill", pb.Cleanup(fill_holes=True))]
)
def test_each_cleanup_is_its_own(service, medvl, series, typed, cleanup):
    """To keep the largest part only would take the second of two lesions away from who wants holes filled."""
    medvl("segment", series, "--label", "liver", typed, "-o", series.with_name("m.nii.gz"))
    assert service.requests[-1].cleanup == cleanup


def test_voxels_are_indices_of_the_file(service, medvl, series, tmp_path):
    """Column, row and slice of a NIfTI file are its i, j, k, whatever way its axes run."""
    typed = ["--voxel", "--point", "3,4,5", "--box", "0,0,0,2.5,3,4"]
    medvl("segment", series, *typed, "-o", tmp_path / "m.nii.gz")
    (sent,) = service.requests[-1].objects

    def lps(i, j, k):
        x, y, z, _ = AFFINE @ (i, j, k, 1)
        return pytest.approx([-x, -y, z])

    assert list(sent.points[0].lps_mm) == lps(3, 4, 5)
    assert list(sent.boxes[0].min_lps_mm) == lps(0, 0, 0)
    assert list(sent.boxes[0].max_lps_mm) == lps(2.5, 3, 4)


def test_voxels_of_a_series_that_was_resampled_are_refused(service, medvl, tmp_path):
    """Viewers show the stored slices; millimetres mean the same place in both."""
    write_phantom_series(tmp_path / "ct", seed=3, slices=7, side=16)
    (tmp_path / "ct" / "0003.dcm").unlink()
    typed = [tmp_path / "ct", "--geometry-policy", "resample", "-o", tmp_path / "m.nii.gz"]
    for prompt in ("--point", "3,4,2"), ("--box", "3,4,2,8,9,3"):
        code, _, err = medvl("segment", *typed, "--voxel", *prompt)
        assert (code, service.calls) == (Exit.USAGE, [])
        assert "give points and boxes in patient coordinates (LPS, mm)" in err
    medvl("segment", *typed, "--point", "3,4,2")
    assert "Segment" in service.calls


def test_several_objects_go_to_a_folder(service, medvl, series, tmp_path):
    """One file for each object that was found, named for it; the one that was not found has none."""
    mask = np.ones((12, 20, 24), bool)
    service.events = [
        service.mask(mask),
        service.mask(None, index=1, label="spleen", prompt="spleen"),
        service.mask(mask, index=2, label="", prompt="the Bright/organ"),
        service.done(),
    ]
    prompts = ["--label", "liver", "--label", "spleen", "--text", "the Bright/organ"]
    code, out, _ = medvl("segment", series, *prompts, "-o", tmp_path / "masks")
    assert code == Exit.OK
    asked = [(prompt.label, prompt.text) for prompt in service.requests[-1].objects]
    assert asked == [("liver", ""), ("spleen", ""), ("", "the Bright/organ")]
    assert sorted(p.name for p in (tmp_path / "masks").iterdir()) == ["0-liver.nii.gz", "2-the-bright-organ.nii.gz"]
    assert "spleen: not found" in out


@pytest.mark.parametrize("told_mm", [0.0, 15.0])
def test_a_mask_is_measured_in_one_line(service, medvl, series, tmp_path, told_mm):
    """What an older server does not tell is left out, not told as 0 mm."""
    event = service.mask(np.ones((12, 20, 24), bool))
    event.mask.measurement.diameter_3d_mm = told_mm
    service.events = [event, service.done()]
    _, out, _ = medvl("segment", series, "--label", "liver", "-o", tmp_path / "mask.nii.gz")
    through = "15 mm in 3D, " if told_mm else ""
    assert f"liver: 1.2 ml in 5760 voxels, longest diameter 12 mm in a slice, {through}score 0.75\n" in out


def test_an_object_that_is_not_there_writes_nothing(service, medvl, series, tmp_path):
    """Absence is an answer with its own exit code, never an empty mask."""
    service.events = [service.mask(None), service.done()]
    code, out, _ = medvl("segment", series, "--label", "liver", "-o", tmp_path / "mask.nii.gz")
    assert code == Exit.NOT_FOUND
    assert "liver: not found (score 0.75)" in out
    assert not (tmp_path / "mask.nii.gz").exists()


REFUSED = {
    "no prompt": (["-o", "m.nii.gz"], "Say what to segment"),
    "nothing to correct": (["--correct", "1,2,3", "-o", "m.nii.gz"], "something to correct"),
    "correction for two": (["--label", "a", "--text", "b", "--correct", "1,2,3", "-o", "m"], "one --label or --text"),
    "no output": (["--label", "liver"], "-o/--output"),
    "one click for two": (["--label", "a", "--text", "b", "--point", "1,2,3", "-o", "m"], "one --label or --text"),
    "no mask": (["--mask", "nowhere.nii.gz,2", "-o", "m.nii.gz"], "no file nowhere.nii.gz"),
    "unknown suffix": (["--label", "liver", "-o", "m.png"], r"\.nii\.gz, \.nii or \.dcm"),
    "two in one file": (["--label", "a", "--text", "b", "-o", "m.nii.gz"], "not 2"),
    "seg of a nifti": (["--label", "liver", "-o", "m.dcm"], "DICOM"),
    "voxel without place": (["--label", "liver", "--voxel", "-o", "m.nii.gz"], "--voxel"),
    "half a point": (["--point", "1,2", "-o", "m.nii.gz"], "x,y,z"),
    "flat box": (["--box", "1,2,3,1,2,5", "-o", "m.nii.gz"], "no size"),
    "no time": (["--label", "liver", "--deadline", "-1", "-o", "m.nii.gz"], "positive"),
    "empty text": (["--text", " ", "-o", "m.nii.gz"], "give one of these"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused_before_anything_is_sent(service, medvl, series, case):
    """One sentence, exit code 2, no call."""
    arguments, words = REFUSED[case]
    code, out, err = medvl("segment", series, *arguments)
    assert (code, out, service.calls) == (Exit.USAGE, "", [])
    assert err.count("\n") == 1
    assert err.startswith("medvl: ")
    assert re.search(words, err)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnknownLabel("The checkpoint knows no class 'tail'."), Exit.USAGE),
        (DeadlineExceeded("Too late."), Exit.DEADLINE),
        (InternalError("secret"), Exit.DEFECT),
        (Overloaded("Too much to do.", retry_after_s=3600.0), Exit.UNAVAILABLE),
    ],
)
def test_an_error_of_the_service_is_one_sentence_and_a_code(service, medvl, series, error, code):
    """With --json it is also the document on standard output."""
    service.fail("Ask", error, error)
    got, out, err = medvl("ask", series, "?")
    assert (got, out, err.count("\n")) == (code, "", 1)
    got, out, _ = medvl("ask", series, "?", "--json")
    assert (got, json.loads(out)["error"]["reason"]) == (code, error.reason)


@pytest.mark.parametrize("command", [("report",), ("ask", "?"), ("segment", "--label", "liver", "-o", "OUT")])
def test_a_deadline_covers_sending_and_answering(service, medvl, series, command):
    """What sending has taken is gone; without a deadline each call has five minutes or more."""
    name, *rest = [str(series.with_name("mask.nii.gz")) if word == "OUT" else word for word in command]
    medvl(name, series, *rest, "--deadline", "60")
    assert service.calls == ["PutSeries", name.capitalize()]
    # gRPC rounds up on its way.
    assert all(left_s < 70 for left_s in service.left_s)


def test_a_service_that_hangs_is_left_at_the_deadline(service, medvl, series):
    """With the exit code of it."""
    service.hold = threading.Event()
    code, _, err = medvl("report", series, "--deadline", "0.5")
    assert code == Exit.DEADLINE
    assert "deadline" in err


def test_files_that_are_no_series_are_refused(service, medvl, tmp_path):
    """An empty folder, a missing path and a damaged file have the exit code of a bad series."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.nii.gz").write_bytes(b"\x1f\x8bno")
    for name in ("empty", "missing", "damaged.nii.gz"):
        code, out, err = medvl("report", tmp_path / name)
        assert (code, out, err.count("\n")) == (Exit.SERIES, "", 1), name
    assert service.calls == []


@pytest.mark.parametrize("command", [("report",), ("ask", "?"), ("segment", "--label", "liver")])
def test_an_output_that_cannot_be_written_is_told_before_the_service_is_asked(service, medvl, series, command):
    """With the words of the system, as what is not set up, not as a defect; nothing stays behind."""
    name, *rest = command
    folder = series.parent
    (folder / "file").touch()
    (folder / "folder.dcm").mkdir()
    before = sorted(folder.rglob("*"))
    outputs = {
        folder / "file": f"medvl: {folder / 'file'}: Not a directory.\n",
        folder / "file" / "deeper": f"medvl: {folder / 'file'}: Not a directory.\n",
        Path("/proc/nowhere/masks"): "medvl: /proc: No such file or directory.\n",
    }
    for output, said in outputs.items():
        assert medvl(name, series, *rest, "-o", output) == (Exit.SETUP, "", said)
    code, out, _ = medvl(name, series, *rest, "-o", "/proc/masks", "--json")
    assert (code, json.loads(out)["error"]["reason"]) == (Exit.SETUP, "SETUP_ERROR")
    assert service.calls == []
    assert medvl(name, series, *rest, "-o", folder / "masks" / "deeper")[0] in {Exit.OK, Exit.NOT_FOUND}
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), Exit.SETUP, "medvl: No space left on device.\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/spool"),
            Exit.SETUP,
            "medvl: /spool: Permission denied.\n",
        ),
        (OSError("of a library"), Exit.DEFECT, "medvl: A defect of this program (OSError at "),
    ],
)
def test_what_the_system_refuses_is_no_defect(capsys, monkeypatch, error, code, said):
    """A full disk, a folder of somebody else's; what has no words of the system is some library's own."""

    def fail():
        raise error

    monkeypatch.setattr("medvl.client.cli.build_parser", fail)
    assert main(["report"]) == code
    assert capsys.readouterr().err.startswith(said)


def test_an_empty_question_is_refused(service, medvl, series):
    """Before anything is sent."""
    assert medvl("ask", series, "  ")[0] == Exit.USAGE
    assert service.calls == []


def test_the_service_is_found_without_being_named(service, series, capsys, monkeypatch, tmp_path):
    """MEDVL_ENDPOINT counts, else the running system's own folder; without either the sentence says what to do."""
    monkeypatch.delenv("MEDVL_ENDPOINT", raising=False)
    monkeypatch.setenv("MEDVL_HOME", str(tmp_path))
    assert main(["describe"]) == Exit.SETUP
    assert "medvl up" in capsys.readouterr().err
    (tmp_path / "state.json").write_text(json.dumps({"endpoint": service.endpoint}))
    assert main(["describe"]) == Exit.OK
    (tmp_path / "state.json").write_text("{")
    monkeypatch.setenv("MEDVL_ENDPOINT", service.endpoint)
    assert main(["describe"]) == Exit.OK


def test_the_service_that_is_named_is_the_one_that_is_asked(service, medvl, monkeypatch):
    """Whatever the environment says: a series goes nowhere else."""
    monkeypatch.setenv("MEDVL_ENDPOINT", "127.0.0.1:1")
    assert medvl("describe")[0] == Exit.OK
    assert service.calls == ["Describe"]


def test_a_defect_is_no_traceback(capsys, monkeypatch):
    """Even a defect of the program is one sentence, and says where."""
    monkeypatch.setattr("medvl.client.cli.build_parser", lambda: 1 / 0)
    assert main(["report"]) == Exit.DEFECT
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "ZeroDivisionError at test_cli.py:" in err


def test_the_installed_script(service, series):
    """The command on the PATH answers and keeps its streams apart; help documents the exit codes."""
    medvl = Path(sys.executable).with_name("medvl")
    done = subprocess.run(
        [medvl, "report", series, "--endpoint", service.endpoint, "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["series"]["digest"] in service.resident
    assert done.stderr == ""
    helped = subprocess.run([medvl, "--help"], capture_output=True, text=True, check=True).stdout
    assert "exit codes:" in helped
    assert all(command in helped for command in ("report", "ask", "segment", "describe"))
