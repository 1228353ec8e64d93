"""Reports say what is so, in every style, and can be read back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvl.embedded.facts import FindingFact, ReportFacts, facts, findings_named, seg_targets
from medvl.embedded.random_truth import random_truth
from medvl.embedded.report import STYLES, render_report, write_report
from medvl.embedded.report_reader import parse_report
from medvl.embedded.truth import Coverage, Finding, FindingKind, Truth
from medvl.embedded.words import NOUNS, SEG, Grade, clearly_larger, noun_phrase, rounded_mm, side_of
from medvl.pacs.structured_report import ReportText, _sections

_SEEDS = st.integers(0, 2**32 - 1)
_STYLES = pytest.mark.parametrize("style", range(len(STYLES)))


def _truth(*found: tuple[FindingKind, str, float], **coverage: Coverage) -> Truth:
    findings = tuple(
        Finding(kind=kind, organ=organ, side=side_of(organ), size_mm=mm, centre_lps_mm=(0, 0, 0), value=20 + index)
        for index, (kind, organ, mm) in enumerate(found)
    )
    organs = {"body": Coverage.WHOLE} | dict.fromkeys(NOUNS, Coverage.WHOLE) | coverage
    return Truth(seed=0, organs=organs, findings=findings, names={})


@given(_SEEDS)
def test_what_is_written_can_be_read(seed: int):
    """All facts of a truth, and no others, come back from its report in each style; every [SEG] keeps its finding."""
    said = facts(random_truth(np.random.default_rng(seed)))
    for style in range(len(STYLES)):
        read = parse_report(render_report(said, style))
        assert read == said
        assert [f.seg for f in read.findings] == [f.seg for f in said.findings]


@given(st.text() | st.text("findgsmpro: .,[SEG]\n0123456789alvky", max_size=80))
def test_nonsense_is_listed_not_raised(text: str):
    """A model may write anything: sentences that are none of a report's are named."""
    read = parse_report(text)
    assert read.unread or not read.findings


@given(_SEEDS, st.data())
def test_a_damaged_report_loses_only_what_was_damaged(seed: int, data: st.DataObject):
    """A word put into one sentence makes that sentence unread and leaves the others as they were."""
    said = facts(random_truth(np.random.default_rng(seed)))
    findings, impression = render_report(said, 0).split("\n")
    sentences = findings.removeprefix("Findings: ").rstrip(".").split(". ")
    index = data.draw(st.integers(0, len(sentences) - 1))
    damaged = [*sentences[:index], f"Zebra {sentences[index]}", *sentences[index + 1 :]]
    read = parse_report(f"Findings: {'. '.join(damaged)}.\n{impression}")
    assert read.unread == (damaged[index],)
    assert set(read.findings) <= set(said.findings)
    assert read.normal <= said.normal
    assert read.impression == said.impression


@given(_SEEDS)
def test_each_seg_belongs_to_a_finding_with_voxels(seed: int):
    """As many [SEG] as targets, in the order of the text."""
    rng = np.random.default_rng(seed)
    truth = random_truth(rng)
    targets = seg_targets(truth)
    assert write_report(truth, rng).count(SEG) == len(targets)
    grounded = [f for f in facts(truth).findings if f.seg is not None]
    assert [(f.kind, f.organ) for f in grounded] == [(truth.findings[i].kind, truth.findings[i].organ) for i in targets]


@pytest.mark.parametrize(
    ("sizes", "meant"),
    [
        ("a 30 mm cyst [SEG] and a 10 mm cyst [SEG]", {0: 0, 1: 1}),
        ("a 10 mm cyst [SEG] and a 30 mm cyst [SEG]", {0: 1, 1: 0}),
        ("a 15 mm cyst [SEG]", {0: 1}),
        ("a 25 mm cyst [SEG]", {0: 0}),
        ("a 15 mm cyst [SEG], a 35 mm cyst [SEG] and a 25 mm cyst [SEG]", {0: None, 1: 0, 2: 1}),
        ("a 10 mm cyst", {}),
        ("a 30 mm mass [SEG]", {0: None}),
    ],
)
def test_what_a_report_names_is_what_is_nearest_in_size(sizes: str, meant: dict[int, int | None]):
    """In the order of sizes; what there is one too many of, or nothing of, is not there."""
    truth = _truth((FindingKind.LIVER_CYST, "liver", 31.0), (FindingKind.LIVER_CYST, "liver", 12.0))
    said = parse_report(f"Findings: The liver shows {sizes}.\nImpression: Liver cyst.")
    assert {seg: number for seg, _, number in findings_named(truth, said)} == meant


def test_a_report_of_nothing():
    """Is one short sentence for each system."""
    assert render_report(facts(_truth()), 0) == (
        "Findings: The lungs and trachea are clear. The heart and aorta are normal. The liver and gallbladder are "
        "normal. The spleen and stomach are normal. The kidneys and bladder are normal. The spine and ribs are "
        "intact.\nImpression: No abnormality."
    )


@_STYLES
def test_a_study_of_nothing_is_not_called_normal(style: int):
    """In any style, and the reader understands it."""
    truth = _truth(**dict.fromkeys(NOUNS, Coverage.OUTSIDE))
    text = render_report(facts(truth), style)
    assert text.endswith("\nImpression: The study cannot be assessed.")
    assert parse_report(text) == facts(truth)


def test_a_report_of_much():
    """Sizes are rounded to 5 mm, effusions graded, the larger of alike findings comes first, absence is said."""
    truth = _truth(
        (FindingKind.PLEURAL_EFFUSION, "lung_left", 31.0),
        (FindingKind.KIDNEY_CYST, "kidney_right", 22.4),
        (FindingKind.KIDNEY_CYST, "kidney_right", 78.0),
        spleen=Coverage.REMOVED,
        urinary_bladder=Coverage.OUTSIDE,
    )
    text = render_report(facts(truth), 0)
    assert "The left pleural space shows a moderate effusion [SEG]. The right lung and trachea are clear." in text
    assert "The right kidney shows an 80 mm cyst [SEG] and a 20 mm cyst [SEG]. The bladder is not included." in text
    assert "The spleen is absent, status post splenectomy." in text
    assert text.endswith("\nImpression: Left pleural effusion. Two right kidney cysts. Status post splenectomy.")
    assert seg_targets(truth) == (0, 2, 1)


def test_an_organ_with_a_finding_is_not_called_outside():
    """However little of it is seen: the sentences of a report never contradict one another."""
    said = facts(_truth((FindingKind.PLEURAL_EFFUSION, "lung_left", 15.0), lung_left=Coverage.OUTSIDE))
    assert said.not_assessable == frozenset()
    assert "lung_left" not in said.normal


def test_at_most_three_of_a_kind_are_named():
    """The largest three of one organ; the others are left out of text and facts."""
    truth = _truth(*((FindingKind.LIVER_CYST, "liver", mm) for mm in (10.0, 40.0, 30.0, 20.0)))
    assert [f.size for f in facts(truth).findings] == [40, 30, 20]
    assert seg_targets(truth) == (1, 2, 3)


@_STYLES
def test_the_archive_finds_both_sections(style: int):
    """The structured report splits the text where the impression begins, and strips the headings."""
    sections = list(_sections(ReportText(render_report(facts(_truth()), style), ())))
    assert len(sections) == 2
    assert sections[1].ContentSequence[0].TextValue == STYLES[style].nothing + "."


def test_a_model_may_mix_styles_and_forget_segs():
    """Each sentence is read for itself; a finding without [SEG] is a finding."""
    read = parse_report(
        "Findings: Liver: a 25 mm cyst. In the left lung there is a 10 mm nodule [SEG].\nImpression: Liver cyst."
    )
    assert read == ReportFacts(
        findings=(
            FindingFact(FindingKind.LIVER_CYST, "liver", 25),
            FindingFact(FindingKind.LUNG_NODULE, "lung_left", 10),
        ),
        impression=frozenset({(FindingKind.LIVER_CYST, "liver")}),
    )
    assert [f.seg for f in read.findings] == [None, 0]


@pytest.mark.parametrize(
    "sentence",
    [
        "The liver shows a 25 mm nodule [SEG].",
        "The left lung shows a small effusion [SEG].",
        "The left pleural space shows a 25 effusion [SEG].",
        "The spleen is absent, status post nephrectomy.",
        "The left kidney and moon are normal.",
    ],
)
def test_sentences_that_cannot_be_are_unread(sentence: str):
    """A finding in an organ that cannot have it, a size of the wrong sort, an operation on another organ."""
    read = parse_report(f"Findings: {sentence}\nImpression: No abnormality.")
    assert read.unread == (sentence.rstrip("."),)
    assert not read.findings


def test_words_of_sizes():
    """Halves round up, nothing is 0 mm, and a clear difference is more than a quarter and more than 4 mm."""
    assert [rounded_mm(mm) for mm in (0.4, 7.4, 7.5, 12.5)] == [5, 5, 10, 15]
    assert clearly_larger(26.0, 20.0)
    assert not clearly_larger(25.0, 20.0)
    assert not clearly_larger(9.0, 5.0)
    assert facts(_truth((FindingKind.PNEUMOTHORAX, "lung_left", 40.0))).findings[0].size is Grade.LARGE


def test_pairs_become_plurals():
    """And lists end with "and"."""
    assert noun_phrase(["kidney_left", "urinary_bladder", "kidney_right"]) == "kidneys and bladder"
    assert noun_phrase(["kidney_left", "heart", "aorta"]) == "heart, aorta and left kidney"
    assert noun_phrase([]) == ""
