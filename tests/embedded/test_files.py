"""A phantom reads back from every kind of file that it is written to as the same voxels in the same places."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from pydicom import dcmread

from medvl.embedded.files import (
    IN_PLANE,
    TRANSFER_SYNTAXES,
    write_labels,
    write_nifti,
    write_phantom_series,
    write_series,
    write_truth,
)
from medvl.embedded.parts import Phase
from medvl.embedded.phantom import make_phantom, sized
from medvl.embedded.truth import Truth
from medvl.export.cli import main
from medvl.imaging.series import read_series


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(5, sized(6, 32))


def assert_same(folder, phantom):
    loaded = read_series(folder)
    assert np.array_equal(loaded.volume.hu, phantom.hu)
    assert np.allclose(loaded.volume.geometry.affine, phantom.geometry.affine, atol=1e-3)
    assert loaded.findings == ()


@pytest.mark.parametrize("name", TRANSFER_SYNTAXES)
def test_every_transfer_syntax_reads_back(name, phantom, tmp_path):
    """Compressed or not, without loss."""
    write_series(tmp_path, phantom, transfer_syntax=TRANSFER_SYNTAXES[name])
    assert dcmread(tmp_path / "0000.dcm").file_meta.TransferSyntaxUID == TRANSFER_SYNTAXES[name]
    assert_same(tmp_path, phantom)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed: apt-get install dicom3tools")
@pytest.mark.parametrize("name", TRANSFER_SYNTAXES)
def test_headers_are_valid(name, tmp_path):
    """As the information object definition wants them, with contrast medium and without."""
    for phase in (Phase.NATIVE, Phase.ARTERIAL):
        phantom = make_phantom(5, replace(sized(3, 32), phases=(phase,)))
        write_series(tmp_path / phase, phantom, transfer_syntax=TRANSFER_SYNTAXES[name])
        told = subprocess.run(["dciodvfy", tmp_path / phase / "0001.dcm"], capture_output=True, text=True, check=False)
        assert not [line for line in told.stderr.splitlines() if line.startswith(("Error", "Warning"))]
        assert told.stderr.startswith("CTImage")


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("orientation", IN_PLANE)
def test_every_orientation_reads_back(orientation, descending, phantom, tmp_path):
    """However the pixels are stored."""
    write_series(tmp_path, phantom, orientation=orientation, descending=descending)
    assert_same(tmp_path, phantom)


@pytest.mark.parametrize("orientation", IN_PLANE)
def test_patient_position_says_what_lies_down(orientation, phantom, tmp_path):
    """Columns run to what lies down (PS3.3 C.7.3.1.1.2); rows and columns turn with head or feet first."""
    write_series(tmp_path, phantom, orientation=orientation)
    header = dcmread(tmp_path / "0000.dcm")
    along, down = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
    position = header.PatientPosition
    lies_down = {"S": (0, 1, 0), "P": (0, -1, 0), "DR": (-1, 0, 0), "DL": (1, 0, 0)}[position[2:]]
    assert tuple(down) == lies_down
    assert (np.cross(along, down)[2] > 0) == position.startswith("HF")


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz"])
def test_nifti_reads_back(name, phantom, tmp_path):
    """HU and places alike; the label map has the same grid."""
    write_nifti(tmp_path / "ct" / name, phantom)
    write_labels(tmp_path / "labels.nii.gz", phantom)
    assert_same(tmp_path / "ct" / name, phantom)
    labels, image = nibabel.load(tmp_path / "labels.nii.gz"), nibabel.load(tmp_path / "ct" / name)
    assert np.array_equal(labels.affine, image.affine)
    assert np.array_equal(np.asarray(labels.dataobj).transpose(2, 1, 0), phantom.labels)


def test_truth_reads_back(phantom, tmp_path):
    """``truth.json`` is the whole truth."""
    write_truth(tmp_path, phantom)
    assert Truth.model_validate_json((tmp_path / "truth.json").read_text()) == phantom.truth


def test_files_are_the_same_byte_for_byte(tmp_path):
    """So that a digest names a phantom."""
    for name in ("a", "b"):
        phantom = write_phantom_series(tmp_path / name, seed=1, slices=3, side=16)
        write_nifti(tmp_path / name / "ct.nii.gz", phantom)
    first, second = ([p.read_bytes() for p in sorted((tmp_path / n).iterdir())] for n in ("a", "b"))
    assert first == second


def test_the_command_keeps_truth_and_series_apart(tmp_path, capsys):
    """Several patients, each with a series that reads, a label map and the truth in folders of their own."""
    size = ["--slices", "4", "--side", "16", "--transfer-syntax", "rle", "--orientation", "feet first prone"]
    assert main(["phantom", "--out", str(tmp_path), "--seed", "3", "--number", "2", *size]) == 0
    for seed in (3, 4):
        folder = tmp_path / str(seed)
        assert {p.suffix for p in (folder / "series").iterdir()} == {".dcm"}
        assert json.loads((folder / "truth" / "truth.json").read_text())["seed"] == seed
        assert (folder / "labels" / "labels.nii.gz").is_file()
        assert_same(folder / "series", make_phantom(seed, sized(4, 16)))
    assert "holds 4 slices" in capsys.readouterr().out


def test_the_command_replaces_an_earlier_series_only(tmp_path, capsys):
    """A NIfTI takes the place of a DICOM series; a folder with anything else is left alone."""
    size = ["--slices", "4", "--side", "16"]
    assert main(["phantom", "--out", str(tmp_path), *size]) == 0
    assert main(["phantom", "--out", str(tmp_path), *size, "--format", "nifti"]) == 0
    assert [p.name for p in (tmp_path / "series").iterdir()] == ["ct.nii.gz"]
    (tmp_path / "series" / "notes.txt").write_text("mine")
    assert main(["phantom", "--out", str(tmp_path), *size]) == 1
    assert "holds something else than a series" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--slices", "0"],
        ["--number", "0"],
        ["--seed", "-1"],
        ["--orientation", "x"],
        ["--transfer-syntax", "x"],
        ["--transfer-syntax", "jpeg2000", "--side", "16"],
        ["--slices", "4", "--region", "x"],
        ["--region", "chest"],
    ],
)
def test_the_command_refuses_what_it_cannot_make(options, tmp_path, capsys):
    """In words, and nothing is written."""
    assert main(["phantom", "--out", str(tmp_path / "out"), *options]) == 1
    assert capsys.readouterr().err
    assert not (tmp_path / "out").exists()
