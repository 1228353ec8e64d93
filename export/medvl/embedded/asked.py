"""Questions about a phantom with their answers: what can be asked, how it is chosen, and how answers are scored."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from medvl.embedded.phrasing import expand, pick
from medvl.embedded.words import capitalised

NOT_ASSESSABLE = "cannot be assessed"
"""Expected of a question about what lies outside the field of view."""
NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


class Topic(StrEnum):
    """What a question is about."""

    PRESENCE = "presence"
    SIDE = "side"
    NUMBER = "number"
    SIZE = "size"
    ORGAN = "organ"
    COMPARISON = "comparison"
    NORMALITY = "normality"
    SURGERY = "surgery"
    ASSESSABILITY = "assessability"
    DESCRIPTION = "description"


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """A question as somebody asked it, and its answer.

    Attributes
    ----------
    closed
        Whether the answer is right or wrong by its decisive word; see :func:`score_answer`.
    expected
        The canonical answer: ``yes``, ``no``, ``left``, ``right``, ``both``, ``neither``, a number of things in digits,
        an organ's noun, ``none``, :data:`NOT_ASSESSABLE`; of open questions millimetres, a grade, or a sentence.
    """

    question: str
    answer: str
    topic: Topic
    closed: bool
    expected: str


@dataclass(frozen=True, slots=True)
class Asked:
    """One thing to ask about a truth, in all its phrasings.

    Attributes
    ----------
    patterns
        See :func:`medvl.embedded.phrasing.expand`.
    trap
        Whether a careless reader would say the opposite: the wrong side of a finding, for instance.
    """

    patterns: tuple[str, ...]
    answer: str
    topic: Topic
    expected: str
    closed: bool = True
    trap: bool = False

    def phrasings(self) -> Iterator[QuestionAnswer]:
        """Yield it in every phrasing."""
        seen = dict.fromkeys(text for pattern in self.patterns for text in expand(pattern))
        return (self._asked(capitalised(text)) for text in seen)

    def phrased(self, rng: np.random.Generator) -> QuestionAnswer:
        """Return it as somebody may have typed it."""
        return self._asked(_typed(pick(self.patterns[int(rng.integers(len(self.patterns)))], rng), rng))

    def _asked(self, question: str) -> QuestionAnswer:
        return QuestionAnswer(question, self.answer, self.topic, self.closed, self.expected)


def choose(pool: Sequence[Asked], rng: np.random.Generator, count: int) -> list[Asked]:
    """Return at most ``count`` different things to ask.

    Topics are equally likely; within one, expected answers are; of those with one answer, traps and others are. A topic
    that has but one answer for this truth is asked less often, so that over many truths yes and no are balanced.
    """
    left = list(pool)
    chosen: list[Asked] = []
    while left and len(chosen) < count:
        topics = sorted({a.topic for a in left})
        several = [len({a.expected for a in pool if a.topic is t}) > 1 for t in topics]
        weights = np.where(several, 1.0, _ONE_ANSWER_WEIGHT)
        topic = topics[int(rng.choice(len(topics), p=weights / weights.sum()))]
        candidates = [a for a in left if a.topic is topic]
        for key in (_expected, _trap):
            values = sorted({key(a) for a in candidates})
            value = values[int(rng.integers(len(values)))]
            candidates = [a for a in candidates if key(a) == value]
        chosen.append(candidates[int(rng.integers(len(candidates)))])
        left.remove(chosen[-1])
    return chosen


def score_answer(expected: QuestionAnswer, text: str) -> bool:
    """Whether an answer to a closed question begins with its decisive word; False for open questions."""
    if not expected.closed:
        return False
    said = re.sub(r"[^a-z0-9 ]", " ", text.lower())
    if expected.expected == NOT_ASSESSABLE:
        return NOT_ASSESSABLE in " ".join(said.split())
    said = re.sub(r"^((it is|it s|in|on|the) )+", "", " ".join(said.split()) + " ")
    return any(said.startswith(f"{word} ") for word in _decisive(expected.expected))


_ONE_ANSWER_WEIGHT = 0.4
_LOWER_CASE, _NO_MARK, _SUFFIX = 0.2, 0.2, 0.15
"""Shares of questions typed in lower case, without question mark, and with the scan named."""
_SCAN = "( on this CT| on this scan| in this CT| in this study| in this patient| on the CT)"


def _expected(asked: Asked) -> str:
    return asked.expected


def _trap(asked: Asked) -> str:
    return str(asked.trap)


def _typed(question: str, rng: np.random.Generator) -> str:
    question = capitalised(question)
    if question.endswith("?") and rng.random() < _SUFFIX and not re.search("CT|scan|study|patient|field", question):
        question = question[:-1] + pick(_SCAN, rng) + "?"
    if rng.random() < _LOWER_CASE:
        question = question.lower()
    return question.rstrip("?.") if rng.random() < _NO_MARK else question


def _decisive(expected: str) -> tuple[str, ...]:
    if expected.isdecimal():
        word = NUMBERS[int(expected)] if int(expected) < len(NUMBERS) else expected
        return (expected, word, *(("no", "zero") if expected == "0" else ()))
    return (expected, "nothing") if expected == "none" else (expected,)
