"""Questions about a phantom with their answers: what can be asked, how it is chosen, and how answers are scored."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import numpy as np

from medvl.embedded.phrasing import expand, organ_words, pick
from medvl.embedded.words import NOUNS, capitalised, outside_clause

T = TypeVar("T")

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

    @property
    def group(self) -> str:
        """What it is balanced by within its topic: the answer, or that it is open, normal or not."""
        return self.expected if self.closed else f"open, {'notable' if self.trap else 'plain'}"

    def phrasings(self) -> Iterator[QuestionAnswer]:
        """Yield it in every phrasing."""
        seen = dict.fromkeys(text for pattern in self.patterns for text in expand(pattern))
        return (self._asked(capitalised(text)) for text in seen)

    def phrased(self, rng: np.random.Generator) -> QuestionAnswer:
        """Return it as somebody may have typed it."""
        return self._asked(_typed(pick(self.patterns[int(rng.integers(len(self.patterns)))], rng), rng))

    def _asked(self, question: str) -> QuestionAnswer:
        return QuestionAnswer(question, self.answer, self.topic, self.closed, self.expected)


def outside_answer(organs: Iterable[str]) -> str:
    """Return the answer to a question about what lies outside the field of view."""
    return f"It {NOT_ASSESSABLE}: {outside_clause(organs)}."


def choose(pool: Sequence[Asked], rng: np.random.Generator, count: int) -> list[Asked]:
    """Return at most ``count`` different things to ask.

    Topics are equally likely; within one, expected answers are, but for those that say that there is nothing; of those
    with one answer, traps and others are. A topic that has but one answer for this truth is asked less often, so that
    over many truths yes and no are balanced.
    """
    by_topic: dict[Topic, list[Asked]] = {}
    for asked in pool:
        by_topic.setdefault(asked.topic, []).append(asked)
    weights = {t: 1.0 if len({a.group for a in left}) > 1 else _ONE_ANSWER_WEIGHT for t, left in by_topic.items()}
    chosen: list[Asked] = []
    while by_topic and len(chosen) < count:
        topic = _drawn({t: weights[t] for t in by_topic}, rng)
        left = by_topic[topic]
        group = _drawn({a.group: _RARER.get((a.topic, a.group), 1.0) for a in left}, rng)
        of_answer = [a for a in left if a.group == group]
        trap = _drawn({a.trap: 1.0 for a in of_answer}, rng)
        candidates = [a for a in of_answer if a.trap is trap]
        chosen.append(candidates[int(rng.integers(len(candidates)))])
        left.remove(chosen[-1])
        if not left:
            del by_topic[topic]
    return chosen


def score_answer(expected: QuestionAnswer, text: str) -> bool:
    """Whether an answer to a closed question begins with its decisive word and no alternative; False for open ones."""
    if not expected.closed:
        return False
    said = re.sub(r"[^a-z0-9 ]", " ", text.lower())
    if expected.expected == NOT_ASSESSABLE:
        return NOT_ASSESSABLE in " ".join(said.split())
    said = re.sub(r"^((it is|it s|in|on|the) )+", "", " ".join(said.split()) + " ")
    return any(re.match(f"{word} (?!{_alternative(word)})", said) for word in _decisive(expected.expected))


_ONE_ANSWER_WEIGHT = 0.25
_RARER = {
    (Topic.ORGAN, "none"): 0.25,
    (Topic.SIDE, "neither"): 0.25,
    (Topic.NUMBER, "0"): 0.4,
    (Topic.PRESENCE, "no"): 0.7,
}
"""Weights of answers that every truth offers, beside 1 of the others that few do."""
_LOWER_CASE, _NO_MARK, _SUFFIX = 0.2, 0.2, 0.15
"""Shares of questions typed in lower case, without question mark, and with the scan named."""
_SCAN = "( on this CT| on this scan| in this CT| in this study| in this patient| on the CT)"


def _drawn(weights: dict[T, float], rng: np.random.Generator) -> T:
    """Return one of the keys, whose order is that of their first insertion."""
    shares = np.array(list(weights.values()))
    return list(weights)[int(rng.choice(len(shares), p=shares / shares.sum()))]


def _typed(question: str, rng: np.random.Generator) -> str:
    question = capitalised(question)
    if question.endswith("?") and rng.random() < _SUFFIX and not re.search("CT|scan|study|patient|field", question):
        question = question[:-1] + pick(_SCAN, rng) + "?"
    if rng.random() < _LOWER_CASE:
        question = question.lower()
    return question.rstrip("?.") if rng.random() < _NO_MARK else question


def _alternative(word: str) -> str:
    """Return the pattern of what may not follow a decisive word: one side is none beside the other."""
    return "or |(and )?(the )?(left|right) " if word.startswith(("left", "right")) else "or "


def _decisive(expected: str) -> tuple[str, ...]:
    """Return the ways to begin an answer with what is expected."""
    if expected.isdecimal():
        word = NUMBERS[int(expected)] if int(expected) < len(NUMBERS) else expected
        return (expected, word, *(("no", "zero") if expected == "0" else ()))
    if expected == "none":
        return (expected, "nothing", "no")
    synonyms = (word for organ, noun in NOUNS.items() if noun == expected for word in expand(organ_words(organ)))
    return (expected, *synonyms)
