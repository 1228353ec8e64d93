"""What the trained phantom checkpoint says and draws is right, on phantoms that no training has seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medvl.client import Client, ObjectPrompt
from medvl.client.maskfiles import MaskTarget, write_masks
from medvl.embedded.files import write_series
from medvl.embedded.phantom import Phantom, make_phantom
from medvl.embedded.questions import Topic, question_pool, score_answer
from medvl.embedded.report_reader import parse_report
from medvl.embedded.scanner import Protocol
from medvl.embedded.truth import FindingKind
from medvl.evaluation.language import compare_report
from medvl.evaluation.metrics import dice
from medvl.imaging.series import LoadedSeries, read_series

WITHOUT_SPLEEN, WITH_NODULES, WITH_SMALL_NODULES, WITH_TWO_CYSTS, WITH_FOUR_FINDINGS = 5044, 5124, 5036, 5035, 5119
WIDE = Protocol(pixel_mm=(1.75, 1.75))
"""448 mm, as wide as large patients need it and wider than any phantom is scanned by itself."""
NOT_YET = "the checkpoint overlooks all but one of several nodules in a lung: see docs/open.md"
ORIENTATION = "feet first prone"
"""Rows and columns both run against those of the canonical grid."""


@dataclass(frozen=True)
class Patient:
    """A phantom on disk, and what is true of it."""

    loaded: LoadedSeries
    phantom: Phantom

    @classmethod
    def stored(cls, folder: Path, seed: int, protocol: Protocol | None = None) -> Patient:
        phantom = make_phantom(seed, protocol)
        write_series(folder, phantom, orientation=ORIENTATION)
        return cls(read_series(folder), phantom)


@pytest.fixture(scope="module")
def without_spleen(tmp_path_factory: pytest.TempPathFactory) -> Patient:
    return Patient.stored(tmp_path_factory.mktemp("patient"), WITHOUT_SPLEEN)


@pytest.fixture(scope="module")
def with_nodules(tmp_path_factory: pytest.TempPathFactory) -> Patient:
    return Patient.stored(tmp_path_factory.mktemp("patient"), WITH_NODULES)


@pytest.mark.parametrize("name", ["kidney_left", "kidney_right", "liver"])
def test_an_organ_lies_on_its_side_of_the_patient(client: Client, with_nodules: Patient, name: str, tmp_path: Path):
    """In the file that is written, in patient millimetres, and where the organ is."""
    answer = client.segment(with_nodules.loaded.volume, [ObjectPrompt(label=name)]).collect()
    (mask,) = answer.masks
    assert mask.found
    path = tmp_path / "mask.nii.gz"
    write_masks(MaskTarget.of(path, objects=1), with_nodules.loaded, answer)
    image = nibabel.load(path)
    x_ras, *_ = (image.affine @ np.append(np.argwhere(np.asarray(image.dataobj)).mean(axis=0), 1.0)).tolist()
    assert (x_ras < 0) == (name == "kidney_left"), "x of NIfTI grows to the right"
    wanted = np.isin(with_nodules.phantom.labels, with_nodules.phantom.truth.values_of(name))
    assert dice(mask.array, wanted) > 0.8


def test_nodules_are_counted(client: Client, with_nodules: Patient):
    """As many as there are, in the lung where they are."""
    for lung in ("right lung", "left lung"):
        assert counted(client, with_nodules, "nodule", lung), lung


def test_two_in_one_organ_are_counted(client: Client, tmp_path: Path):
    """More than that there are any."""
    patient = Patient.stored(tmp_path, WITH_TWO_CYSTS)
    assert len(patient.phantom.truth.of(FindingKind.KIDNEY_CYST, "kidney_right")) == 2
    assert counted(client, patient, "cyst", "right kidney")


@pytest.mark.xfail(strict=True, reason=NOT_YET)
def test_small_nodules_are_counted(client: Client, tmp_path: Path):
    """Three, of which two are small."""
    assert counted(client, Patient.stored(tmp_path, WITH_SMALL_NODULES), "nodule", "right lung")


def counted(client: Client, patient: Patient, finding: str, organ: str) -> bool:
    """Ask how many of a finding there are in an organ; return whether the answer is right."""
    asked = next(
        question
        for wanted in question_pool(patient.phantom.truth)
        if wanted.topic is Topic.NUMBER and wanted.expected != "0"
        for question in wanted.phrasings()
        if organ in question.question and finding in question.question
    )
    return score_answer(asked, client.ask(patient.loaded.volume, asked.question).collect().text)


def test_an_absent_spleen_is_reported_absent(client: Client, without_spleen: Patient):
    """The report says that it was removed, and asking for its mask gives none."""
    report = client.report(without_spleen.loaded.volume).collect()
    assert "spleen" in parse_report(report.text).absent, report.text
    (mask,) = client.segment(without_spleen.loaded.volume, [ObjectPrompt(label="spleen")]).collect().masks
    assert not mask.found
    assert not mask.array.any()


def test_a_series_that_is_wider_than_phantoms_are_is_reported(client: Client, tmp_path: Path):
    """Every finding, each on its side, and no other: training widens fields of view."""
    wide = Patient.stored(tmp_path, WITH_FOUR_FINDINGS, WIDE)
    report = compare_report(wide.phantom.truth, client.report(wide.loaded.volume).collect().text)
    assert report.wanted == report.stated == report.matched, report.text
    assert sum(report.wanted.values()) == 4
    assert not report.unread
