"""A report's markers become words that a person reads and names of segments."""

from __future__ import annotations

import re
from itertools import count

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from medvl.client.events import Mask, TextSpan
from medvl.client.findings import findings, readable, running_numbers
from medvl.client.results import Answer
from medvl.imaging.masks import pack_mask

VOXEL = pack_mask(np.ones((1, 1, 1), bool))


def report(text, found=(), marker="[SEG]"):
    """A report whose markers have masks, found or not; the last comes first."""
    spans = [TextSpan(*m.span()) for m in re.finditer(re.escape(marker), text)]
    masks = [
        Mask(i, "", "", was_found, 0.5, VOXEL, (1, 1, 1), None, (), {}, span)
        for i, (span, was_found) in enumerate(zip(spans, found, strict=False))
    ]
    return Answer(text, tuple(reversed(masks)), (), None)


def read(answer, numbers=None):
    """What a person reads, with segments numbered as in the documents unless numbers are given."""
    named = findings(answer)
    return readable(answer.text, named, numbers or running_numbers([finding.mask for finding in named]))


@pytest.mark.parametrize(
    ("text", "found", "expected"),
    [
        ("A cyst [SEG].", [True], "A cyst (segment 1)."),
        ("A cyst [SEG].", [False], "A cyst."),
        ("A cyst[SEG] and a mass[SEG]", [True, True], "A cyst (segment 1) and a mass (segment 2)"),
        ("A cyst [SEG], a mass [SEG], a stone [SEG].", [1, 0, 1], "A cyst (segment 1), a mass, a stone (segment 2)."),
        ("A cyst. [SEG] A mass. [SEG]\nAll else is well.", [0, 0], "A cyst. A mass.\nAll else is well."),
        ("[SEG] A cyst.\n[SEG] A mass.", [False, True], "A cyst.\n(segment 1) A mass."),
        ("A cyst [SEG] [SEG] is seen.", [True, True], "A cyst (segment 1) (segment 2) is seen."),
        ("No findings.\nImpression: none.", [], "No findings.\nImpression: none."),
    ],
)
def test_markers_give_way_to_numbers_or_to_nothing(text, found, expected):
    """Spaces are as a person would write them."""
    assert read(report(text, found)) == expected


PIECES = ["A cyst", "[SEG]", " ", ". ", "\n", "\n\n", "(", ")", "Impression:", "It goes on and on. " * 30]


@given(st.lists(st.sampled_from(PIECES) | st.text()).map("".join))
@example(f"{PIECES[-1]}[SEG]{PIECES[-1]}[SEG]{PIECES[-1]}")
def test_nothing_of_a_report_is_lost(text):
    """Save markers, and spaces where they were; here every second one has no mask."""
    found = [number % 2 == 0 for number in range(text.count("[SEG]"))]
    counted = count(1)
    numbers = iter([f"(segment {next(counted)})" if one else "" for one in found])
    wanted = re.sub(r"\[SEG\]", lambda _: next(numbers), text)
    assert "".join(read(report(text, found)).split()) == "".join(wanted.split())


def test_a_marker_without_a_mask_is_taken_out_and_told():
    """A text that was cut off behind its marker has no mask for it."""
    answer = report("A cyst [SEG]. A mass [SEG]", [True])
    assert read(answer) == "A cyst (segment 1). A mass"
    assert [str(finding) for finding in findings(answer) if finding.mask is None] == ['Finding "A mass"']


def test_markers_of_another_checkpoint_are_known_by_their_masks():
    """Whatever they are spelled like."""
    assert read(report("A cyst <seg>.", [True], marker="<seg>")) == "A cyst (segment 1)."


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Findings: The left lung shows a 20 mm nodule [SEG].", ["The left lung shows a 20 mm nodule"]),
        (
            "The heart is normal. Liver: a 25 mm mass [SEG] and a 1.5 cm cyst [SEG].",
            ["Liver: a 25 mm mass", "a 1.5 cm cyst"],
        ),
        ("Normal.\nImpression: Liver mass. [SEG] Splenic cyst. [SEG]", ["Liver mass", "Splenic cyst"]),
        ("Findings:\n- A cyst [SEG]\n- A mass [SEG]", ["A cyst", "A mass"]),
        ("[SEG] and [SEG]", ["", ""]),
    ],
)
def test_a_finding_is_called_what_the_report_says_of_it(text, words):
    """Of its own sentence, from the marker before it on."""
    assert [finding.words for finding in findings(report(text))] == words


def test_segments_are_told_apart():
    """By their numbers where words are alike, or missing."""
    named = findings(report("A cyst [SEG]. A cyst [SEG]. [SEG]", [True, True, True]))
    labels = [finding.segment(number).label for number, finding in enumerate(named, 1)]
    assert labels == ["Finding 1: A cyst", "Finding 2: A cyst", "Finding 3"]
