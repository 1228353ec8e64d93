"""Questions have the answers that the truth gives them, and those answers can be scored."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvl.embedded.phrasing import expand, pick
from medvl.embedded.questions import (
    QuestionAnswer,
    Topic,
    all_questions,
    question_pool,
    questions,
    score_answer,
)
from medvl.embedded.random_truth import random_truth
from medvl.embedded.truth import Coverage, Finding, FindingKind, Truth
from medvl.embedded.words import NOUNS, side_of

_SEEDS = st.integers(0, 2**32 - 1)


def _truth(*found: tuple[FindingKind, str, float], **coverage: Coverage) -> Truth:
    findings = tuple(
        Finding(kind=kind, organ=organ, side=side_of(organ), size_mm=mm, centre_lps_mm=(0, 0, 0), value=20 + index)
        for index, (kind, organ, mm) in enumerate(found)
    )
    organs = {"body": Coverage.WHOLE} | dict.fromkeys(NOUNS, Coverage.WHOLE) | coverage
    return Truth(seed=0, organs=organs, findings=findings, names={})


_ONE_CYST = _truth((FindingKind.KIDNEY_CYST, "kidney_right", 26.0), gallbladder=Coverage.REMOVED)


def _answer(truth: Truth, question: str) -> QuestionAnswer:
    found = {q.question: q for q in all_questions(truth)}
    assert question in found, f"Nobody asks that of this truth: {question}"
    return found[question]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Is there a renal cyst?", "Yes, in the right kidney."),
        ("Is there a cyst in the left kidney?", "No, only in the right kidney."),
        ("Does the scan show a left-sided kidney cyst?", "No, only in the right kidney."),
        ("Is there a cyst in the liver?", "No."),
        ("Is there a nodule?", "No."),
        ("Is the spleen enlarged?", "No."),
        ("Are the lungs clear?", "Yes, the lungs are normal."),
        ("On which side is the renal cyst?", "Right."),
        ("On which side is the pleural effusion?", "Neither."),
        ("How many kidney cysts are there?", "One."),
        ("How large is the cyst in the right kidney?", "About 25 mm."),
        ("Is the kidney cyst larger than 20 mm?", "Yes, it measures about 25 mm."),
        ("Which organ contains the cyst?", "The right kidney."),
        ("Is the right kidney normal?", "No, there is a kidney cyst."),
        ("Is the left kidney normal?", "Yes, the left kidney is normal."),
        ("Describe the kidneys.", "The right kidney shows a 25 mm cyst. The left kidney is normal."),
        ("Has the gall bladder been removed?", "Yes, status post cholecystectomy."),
        ("Has the spleen been removed?", "No."),
        ("Can the gallbladder be assessed?", "No, the gallbladder is absent."),
        ("How many kidneys are there?", "Two."),
    ],
)
def test_answers(question: str, answer: str):
    """A patient with one cyst in the right kidney and no gallbladder."""
    assert _answer(_ONE_CYST, question).answer == answer


def test_what_is_outside_cannot_be_assessed():
    """Of an organ outside the field of view nothing is claimed, whatever is asked."""
    truth = _truth(spleen=Coverage.OUTSIDE, lung_left=Coverage.OUTSIDE)
    said = "It cannot be assessed: the spleen is outside the field of view."
    for question in ("Is there splenomegaly?", "Is the spleen normal?", "Has the spleen been removed?"):
        assert _answer(truth, question).answer == said
    assert _answer(truth, "Can the spleen be assessed?").expected == "no"
    asked = {q.question for q in all_questions(truth)}
    assert "Is there a lung nodule?" not in asked, "one lung was not seen"
    assert "Is there a nodule in the right lung?" in asked


def test_a_study_of_nothing_cannot_be_assessed():
    """It is neither normal nor abnormal."""
    truth = _truth(**dict.fromkeys(NOUNS, Coverage.OUTSIDE))
    for question in ("Is this CT normal?", "Is the scan abnormal?", "Does this scan show any pathology?"):
        assert _answer(truth, question).answer == "It cannot be assessed."


def test_an_organ_with_a_finding_is_not_called_outside():
    """An effusion at the base of a lung that is hardly seen makes the lung abnormal, not invisible."""
    truth = _truth((FindingKind.PLEURAL_EFFUSION, "lung_left", 15.0), lung_left=Coverage.OUTSIDE)
    assert _answer(truth, "Is the left lung normal?").answer == "No, there is a pleural effusion."
    assert _answer(truth, "Is the left lung visible?").answer == "Yes."


def test_comparisons():
    """Of both sides and of two kinds; only where the difference is clear."""
    kinds = (FindingKind.KIDNEY_CYST, FindingKind.KIDNEY_CYST, FindingKind.LIVER_MASS)
    truth = _truth(*zip(kinds, ("kidney_left", "kidney_right", "liver"), (40.0, 20.0, 80.0), strict=True))
    assert _answer(truth, "Which kidney has the larger cyst?").answer == "The left kidney."
    question = "Is the cyst in the right kidney larger than the one in the left kidney?"
    assert _answer(truth, question).answer == "No, the left one is larger."
    assert _answer(truth, "Which is larger, the largest kidney cyst or the liver mass?").expected == "liver mass"
    alike = _truth((FindingKind.KIDNEY_CYST, "kidney_left", 22.0), (FindingKind.KIDNEY_CYST, "kidney_right", 20.0))
    assert not [q for q in all_questions(alike) if q.topic is Topic.COMPARISON]


@given(_SEEDS)
@settings(max_examples=25)
def test_a_question_has_one_answer(seed: int):
    """No two things asked of one truth share a phrasing unless they share the decisive answer."""
    expected: dict[str, str] = {}
    for asked in question_pool(random_truth(np.random.default_rng(seed))):
        for question in asked.phrasings():
            assert expected.setdefault(question.question, asked.expected) == asked.expected, question.question


@given(_SEEDS)
@settings(max_examples=25)
def test_the_right_answer_scores_and_wrong_ones_do_not(seed: int):
    """Among the answers of the same topic, those with another decisive word are wrong."""
    closed = [a.phrased(np.random.default_rng(0)) for a in question_pool(random_truth(np.random.default_rng(seed)))]
    closed = [q for q in closed if q.closed]
    for question in closed:
        assert score_answer(question, question.answer)
        for other in closed:
            if other.topic is question.topic and other.expected != question.expected:
                assert not score_answer(question, other.answer)


@given(_SEEDS, st.text())
def test_scoring_takes_any_text(seed: int, text: str):
    """A model may say anything."""
    rng = np.random.default_rng(seed)
    for question in questions(random_truth(rng), rng):
        score_answer(question, text)


@pytest.mark.parametrize(
    ("expected", "text", "right"),
    [
        ("yes", "yes it is", True),
        ("yes", "Yesterday.", False),
        ("no", "None.", False),
        ("2", "2 cysts.", True),
        ("0", "No cysts.", True),
        ("left", "On the left.", True),
        ("left", "Left or right.", False),
        ("left", "Left and right.", False),
        ("right", "The right, the left.", False),
        ("both", "Both, left and right.", True),
        ("yes", "Yes, left of the spine.", True),
        ("bladder", "The urinary bladder.", True),
        ("left kidney", "The right kidney.", False),
        ("cannot be assessed", "The spleen cannot be assessed.", True),
        ("cannot be assessed", "No.", False),
        ("no", "", False),
    ],
)
def test_the_decisive_word(expected: str, text: str, right: bool):
    """Case, articles and punctuation do not matter; the first word that says something does."""
    assert score_answer(QuestionAnswer("", "", Topic.PRESENCE, True, expected), text) is right


def test_open_questions_are_not_scored():
    assert not score_answer(QuestionAnswer("", "", Topic.SIZE, False, "25"), "About 25 mm.")


@given(_SEEDS, st.integers(1, 30))
@settings(max_examples=25)
def test_samples_are_different_things(seed: int, count: int):
    """As many as were asked for, as long as there are so many."""
    pool = question_pool(random_truth(np.random.default_rng(seed)))
    chosen = questions(random_truth(np.random.default_rng(seed)), np.random.default_rng(1), count)
    assert len(chosen) == min(count, len(pool))


def test_answers_are_balanced():
    """Of closed questions with yes or no each is said in 40 to 60 %; left and right as often as each other."""
    rng = np.random.default_rng(3)
    counts = Counter((q.topic, q.expected) for _ in range(400) for q in questions(random_truth(rng), rng) if q.closed)
    topics = {topic for topic, _ in counts}
    assert topics == set(Topic) - {Topic.DESCRIPTION}
    pairs = [(Topic.SIDE, "left", "right"), (Topic.PRESENCE, "yes", "no"), (Topic.SIZE, "yes", "no")]
    for topic, one, other in [*pairs, (Topic.NORMALITY, "yes", "no"), (Topic.SURGERY, "yes", "no")]:
        share = counts[topic, one] / (counts[topic, one] + counts[topic, other])
        assert 0.4 <= share <= 0.6, (topic, share)


def test_every_topic_has_many_phrasings():
    """At least 6 for one thing to ask, in every topic."""
    rng = np.random.default_rng(1)
    most: Counter[Topic] = Counter()
    for asked in (a for _ in range(20) for a in question_pool(random_truth(rng))):
        most[asked.topic] = max(most[asked.topic], len(list(asked.phrasings())))
    assert min(most[topic] for topic in Topic) >= 6


@given(st.integers(0, 2**16))
def test_patterns(seed: int):
    """What is picked is one of the texts that a pattern stands for."""
    pattern = "(a (small|large) |)cyst"
    texts = set(expand(pattern))
    assert texts == {"a small cyst", "a large cyst", "cyst"}
    assert pick(pattern, np.random.default_rng(seed)) in texts
