"""Language tasks: a report and questions, read back into facts and compared with the truth."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from medvl.embedded.facts import FindingFact, ReportFacts, facts, reported_findings
from medvl.embedded.questions import QuestionAnswer, Topic, questions, score_answer
from medvl.embedded.report import FINDINGS, IMPRESSION, STYLES
from medvl.embedded.report_reader import parse_report
from medvl.embedded.truth import FindingKind, Truth
from medvl.embedded.words import KINDS, Grade
from medvl.evaluation.cases import Case
from medvl.evaluation.items import Answered, Reported
from medvl.evaluation.subjects import Subject
from medvl.imaging.volume import Volume

QUESTIONS = 12
"""Of a case, balanced over topics and answers."""
_KIDNEYS = "kidneys"
"""What is counted beside findings; two of these are no feat."""
_STREAM = 1
"""Sets the draws of questions apart from others of the same seed."""
_OTHER_SIDE = {"left": "right", "right": "left"}
_PAIRED = [kind for kind, words in KINDS.items() if words.paired]


def report(case: Case, volume: Volume, subject: Subject) -> tuple[Reported, ...]:
    """Have a report of a volume written and compare it with the truth of a case."""
    return (compare_report(case.truth, subject.report(volume)),)


def answers(case: Case, volume: Volume, subject: Subject) -> tuple[Answered, ...]:
    """Ask the questions of a case about a volume."""
    asked = questions(case.truth, np.random.default_rng([case.seed, _STREAM]), QUESTIONS)
    return tuple(compare_answer(one, subject.ask(volume, one.question)) for one in asked)


def compare_report(truth: Truth, text: str) -> Reported:
    """Return how a report agrees with a truth.

    Findings match by kind and organ, which holds the side; each counts once. Sizes are compared within a kind and organ
    in order of size, with the truth before rounding.
    """
    said = parse_report(text)
    wanted, stated = _counted(facts(truth)), _counted(said)
    wanted_kinds, stated_kinds, matched_kinds = (_by_kind(c) for c in (wanted, stated, wanted & stated))
    both = wanted_kinds & stated_kinds
    return Reported(
        text=text,
        wanted=_named(wanted_kinds),
        stated=_named(stated_kinds),
        matched=_named(matched_kinds),
        sided=sum(both[kind] for kind in _PAIRED),
        side_right=sum(matched_kinds[kind] for kind in _PAIRED),
        unread=len(said.unread),
        errors_mm=tuple(_size_errors_mm(truth, said)),
    )


def compare_answer(asked: QuestionAnswer, text: str) -> Answered:
    """Return whether an answer is right.

    A closed one is right by its decisive word. An open one is right when it can be read and says the same: the size,
    rounded as reports round it, or the facts of a description and no others.
    """
    error_mm, mirrored = None, False
    if asked.closed:
        right = score_answer(asked, text)
        if other := _OTHER_SIDE.get(asked.expected):
            mirrored = score_answer(replace(asked, expected=other), text)
    elif asked.topic is Topic.SIZE:
        right, error_mm = _size_is_right(asked.expected, text)
    else:
        right = _same_description(asked.expected, text)
    return Answered(
        topic=asked.topic.value,
        closed=asked.closed,
        question=asked.question,
        answer=text,
        right=right,
        mirrored=mirrored,
        several=asked.topic is Topic.NUMBER and asked.expected not in {"0", "1"} and _KIDNEYS not in asked.question,
        error_mm=error_mm,
    )


def _counted(said: ReportFacts) -> Counter[tuple[FindingKind, str]]:
    """Return the findings by kind and organ, removed organs among them."""
    counts: Counter[tuple[FindingKind, str]] = Counter((f.kind, f.organ) for f in said.findings)
    counts.update((FindingKind.MISSING_ORGAN, organ) for organ in said.absent)
    return counts


def _by_kind(counts: Counter[tuple[FindingKind, str]]) -> Counter[FindingKind]:
    kinds: Counter[FindingKind] = Counter()
    for (kind, _), count in counts.items():
        kinds[kind] += count
    return kinds


def _named(counts: Counter[FindingKind]) -> dict[str, int]:
    return {kind.value: count for kind, count in counts.items()}


def _size_errors_mm(truth: Truth, said: ReportFacts) -> Iterator[float]:
    true_mm: dict[tuple[FindingKind, str], list[float]] = defaultdict(list)
    stated_mm: dict[tuple[FindingKind, str], list[int]] = defaultdict(list)
    for finding in reported_findings(truth):
        true_mm[finding.kind, finding.organ].append(finding.size_mm)
    for fact in said.findings:
        if isinstance(fact.size, int):
            stated_mm[fact.kind, fact.organ].append(fact.size)
    for key, sizes in stated_mm.items():
        pairs = zip(sorted(sizes, reverse=True), sorted(true_mm[key], reverse=True), strict=False)
        yield from (abs(stated - true) for stated, true in pairs)


def _size_is_right(expected: str, text: str) -> tuple[bool, float | None]:
    if expected in tuple(Grade):
        return [w for w in re.findall("[a-z]+", text.lower()) if w in tuple(Grade)] == [expected], None
    numbers = re.findall(r"\d+", text)
    if len(numbers) != 1:
        return False, None
    return numbers[0] == expected, abs(float(numbers[0]) - float(expected))


def _same_description(expected: str, text: str) -> bool:
    wanted, said = (_described(words) for words in (expected, text))
    return not said.unread and _facts_of(said) == _facts_of(wanted)


def _described(sentences: str) -> ReportFacts:
    """Read sentences that are the findings of a report without impression."""
    return parse_report(f"{FINDINGS}{sentences}\n{IMPRESSION}{STYLES[0].nothing}.")


def _facts_of(said: ReportFacts) -> tuple[Counter[FindingFact], frozenset[str], frozenset[str], frozenset[str]]:
    # [SEG] has no place in an answer and does not count.
    return Counter(said.findings), said.normal, said.absent, said.not_assessable
