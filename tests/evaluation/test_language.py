"""Reports and open answers are read as facts: what is said is compared, not how it is said."""

from __future__ import annotations

import pytest

from medvl.embedded.questions import QuestionAnswer, Topic, question_pool
from medvl.embedded.truth import Coverage, Finding, FindingKind, Truth
from medvl.embedded.words import NOUNS, side_of
from medvl.evaluation.language import compare_answer, compare_report

IMPRESSION = "\nImpression: No abnormality."


def truth(*found: tuple[FindingKind, str, float], **coverage: Coverage) -> Truth:
    findings = tuple(
        Finding(kind=kind, organ=organ, side=side_of(organ), size_mm=mm, centre_lps_mm=(0, 0, 0), value=100 + index)
        for index, (kind, organ, mm) in enumerate(found)
    )
    organs = {"body": Coverage.WHOLE} | dict.fromkeys(NOUNS, Coverage.WHOLE) | coverage
    return Truth(seed=0, organs=organs, findings=findings, names={})


CYST = truth((FindingKind.LIVER_CYST, "liver", 22.0))
KIDNEY = truth((FindingKind.KIDNEY_CYST, "kidney_left", 31.0), (FindingKind.KIDNEY_CYST, "kidney_left", 14.0))


def counts(of: Truth, findings: str) -> tuple[int, int, int, int]:
    item = compare_report(of, f"Findings: {findings}{IMPRESSION}")
    return (*(sum(c.values()) for c in (item.wanted, item.stated, item.matched)), item.unread)


def test_a_finding_matches_by_kind_and_organ():
    """Another kind, another organ and another side are both missed and invented."""
    assert counts(CYST, "The liver shows a 20 mm cyst [SEG].") == (1, 1, 1, 0)
    assert counts(CYST, "The liver shows a 20 mm mass [SEG].") == (1, 1, 0, 0)
    assert counts(CYST, "The left kidney shows a 20 mm cyst [SEG].") == (1, 1, 0, 0)
    assert counts(KIDNEY, "The right kidney shows a 30 mm cyst [SEG].") == (2, 1, 0, 0)


def test_the_side_is_judged_where_the_kind_is_named():
    """A cyst in the other kidney is on the wrong side; a finding that has no side does not count."""
    wrong = compare_report(KIDNEY, f"Findings: The right kidney shows a 30 mm cyst [SEG].{IMPRESSION}")
    right = compare_report(KIDNEY, f"Findings: The left kidney shows a 30 mm cyst [SEG].{IMPRESSION}")
    without = compare_report(CYST, f"Findings: The liver shows a 20 mm cyst [SEG].{IMPRESSION}")
    assert [(i.side_right, i.sided) for i in (wrong, right, without)] == [(0, 1), (1, 1), (0, 0)]


def test_a_finding_counts_once():
    """The same said twice of one is an invention; one said of two is a miss."""
    assert counts(CYST, "The liver shows a 20 mm cyst [SEG] and a 20 mm cyst [SEG].") == (1, 2, 1, 0)
    assert counts(KIDNEY, "The left kidney shows a 30 mm cyst [SEG].") == (2, 1, 1, 0)


def test_a_removed_organ_is_a_finding():
    """Said of the right one only."""
    gone = truth(spleen=Coverage.REMOVED)
    assert counts(gone, "The spleen is absent, status post splenectomy.") == (1, 1, 1, 0)
    assert counts(gone, "The gallbladder is absent, status post cholecystectomy.") == (1, 1, 0, 0)


def test_what_cannot_be_read_is_counted():
    """And says nothing."""
    assert counts(CYST, "Liver liver 20 the. The spleen is normal.") == (1, 0, 0, 1)


def test_sizes_are_compared_with_the_truth_before_rounding():
    """The larger with the larger, and only of findings that match."""
    said = "The left kidney shows a 10 mm cyst [SEG] and a 35 mm cyst [SEG]. The liver shows a 90 mm cyst [SEG]."
    item = compare_report(KIDNEY, f"Findings: {said}{IMPRESSION}")
    assert item.errors_mm == pytest.approx((4.0, 4.0))


@pytest.mark.parametrize(
    ("text", "right", "error_mm"),
    [
        ("About 30 mm.", True, 0.0),
        ("30", True, 0.0),
        ("About 35 mm.", False, 5.0),
        ("Between 30 and 35 mm.", False, None),
        ("Large.", False, None),
        ("", False, None),
    ],
)
def test_a_size_is_right_to_its_rounding(text: str, right: bool, error_mm: float | None):
    """One number, and how far it is off; anything else says no size."""
    asked = QuestionAnswer("How large?", "About 30 mm.", Topic.SIZE, closed=False, expected="30")
    item = compare_answer(asked, text)
    assert (item.right, item.error_mm) == (right, error_mm)


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [("Right.", True), ("On the right.", True), ("Left.", False), ("Neither.", False), ("", False)],
)
def test_the_other_side_is_told_from_no_side(text: str, mirrored: bool):
    """Left where it is right is worse than a finding that was not seen."""
    asked = QuestionAnswer("Which kidney has the cyst?", "The left one.", Topic.SIDE, closed=True, expected="left")
    assert compare_answer(asked, text).mirrored is mirrored


@pytest.mark.parametrize("organ", ["liver", "kidney_left"])
@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_several_findings_are_counted_apart(organ: str, number: int):
    """However they are asked for; two kidneys are not among them."""
    kind = FindingKind.LIVER_CYST if organ == "liver" else FindingKind.KIDNEY_CYST
    found = truth(*[(kind, organ, 20.0)] * number)
    asked = [q for a in question_pool(found) if a.topic is Topic.NUMBER for q in a.phrasings()]
    several = {q.expected for q in asked if compare_answer(q, "One.").several}
    assert several == ({str(number)} if number > 1 else set())
    of_kidneys = [q for q in asked if "number of kidneys" in q.question or "How many kidneys" in q.question]
    assert of_kidneys
    assert not any(compare_answer(q, "Two.").several for q in of_kidneys)


def test_a_grade_is_one_word():
    """Naming several is no answer."""
    asked = QuestionAnswer("How large?", "Moderate.", Topic.SIZE, closed=False, expected="moderate")
    assert compare_answer(asked, "It is moderate.").right
    assert not compare_answer(asked, "Small.").right
    assert not compare_answer(asked, "Small or moderate.").right


def test_a_description_is_right_when_it_says_the_same():
    """In any style of writing; no fact less, no fact more, no sentence that cannot be read."""
    expected = "The liver shows a 20 mm cyst."
    asked = QuestionAnswer("What does the liver show?", expected, Topic.DESCRIPTION, closed=False, expected=expected)

    def right(text: str) -> bool:
        return compare_answer(asked, text).right

    assert right(expected)
    assert right("Liver: a 20 mm cyst.")
    assert not right("The liver shows a 25 mm cyst.")
    assert not right("The liver shows a 20 mm cyst and a 20 mm cyst.")
    assert not right("The liver shows a 20 mm cyst. Cyst the.")
    assert not right("The liver is normal.")
    assert not right("")
