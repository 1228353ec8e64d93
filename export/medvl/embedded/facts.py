"""What a report says, as data: the common ground of its writer, its reader and the evaluation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations, zip_longest

from medvl.embedded.truth import Coverage, Finding, FindingKind, Truth
from medvl.embedded.words import KINDS, NOUNS, SYSTEMS, Grade, grade, rounded_mm

MOST_OF_A_KIND = 3
"""A report names at most so many findings of one kind in one organ, the largest."""


@dataclass(frozen=True, slots=True)
class FindingFact:
    """A finding as a report states it.

    Attributes
    ----------
    size
        Millimetres, rounded to 5; the grade of an effusion or pneumothorax.
    seg
        Number of its [SEG] among those of the report; None when it has none. It does not count in comparisons.
    """

    kind: FindingKind
    organ: str
    size: int | Grade
    seg: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """What a report says.

    Attributes
    ----------
    findings
        In the order of the text. Two alike are two findings: compare with a counter, not a set.
    normal, absent, not_assessable
        Organs said to be without finding, removed, outside the field of view.
    impression
        Kind and organ of what the impression names, missing organs among it.
    unread
        Sentences that are no sentences of a report.
    """

    findings: tuple[FindingFact, ...] = ()
    normal: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    not_assessable: frozenset[str] = frozenset()
    impression: frozenset[tuple[FindingKind, str]] = frozenset()
    unread: tuple[str, ...] = ()

    @property
    def assessable(self) -> bool:
        """Whether anything can be said of any organ."""
        return bool(self.findings or self.normal or self.absent)


def facts(truth: Truth) -> ReportFacts:
    """Return what a report of ``truth`` has to say."""
    truth = as_seen(truth)
    described = tuple(_described(truth))
    abnormal = {(f.kind, f.organ) for f in described}
    absent = organs_with(truth, Coverage.REMOVED)
    seen = organs_with(truth, Coverage.WHOLE) | organs_with(truth, Coverage.PARTIAL)
    return ReportFacts(
        findings=described,
        normal=seen - {organ for _, organ in abnormal},
        absent=absent,
        not_assessable=organs_with(truth, Coverage.OUTSIDE),
        impression=frozenset(abnormal | {(FindingKind.MISSING_ORGAN, organ) for organ in absent}),
    )


def as_seen(truth: Truth) -> Truth:
    """Return ``truth`` where an organ that shows a finding is within the field of view, however little of it is.

    Otherwise an effusion at the base of a lung would be described beside the sentence that the lung is not included.
    """
    shown = {f.organ for f in truth.findings if truth.organs[f.organ] is Coverage.OUTSIDE}
    return truth.model_copy(update={"organs": truth.organs | dict.fromkeys(shown, Coverage.PARTIAL)})


def reported_findings(truth: Truth) -> Iterator[Finding]:
    """Yield the findings that a report describes, in its order; of alike ones the largest first."""
    for system in SYSTEMS:
        for organ in system.organs:
            for kind in KINDS:
                yield from truth.of(kind, organ)[:MOST_OF_A_KIND]


def seg_targets(truth: Truth) -> tuple[int, ...]:
    """Return for each [SEG] of a report of ``truth``, in any style, the index of its finding in ``truth.findings``."""
    return tuple(truth.findings.index(f) for f in reported_findings(truth) if f.value is not None)


def findings_named(truth: Truth, said: ReportFacts) -> Iterator[tuple[int, FindingKind, int | None]]:
    """Yield for each [SEG] of a report its number, the kind that it names, and which of ``truth.findings``, if any.

    Those of one kind in one organ belong to one another in the order of their sizes; where the report has fewer, to
    those whose sizes are nearest, and where it has more, the smallest are not there.
    """
    named, there = defaultdict(list), defaultdict(list)
    for fact in said.findings:
        if fact.seg is not None:
            named[fact.kind, fact.organ].append((fact.size if isinstance(fact.size, int) else 0, fact.seg))
    for number in seg_targets(truth):
        there[truth.findings[number].kind, truth.findings[number].organ].append(number)
    for (kind, organ), alike in named.items():
        alike.sort(key=lambda one: -one[0])
        nearest = _nearest(truth, there[kind, organ], [mm for mm, _ in alike])
        for (_, seg), meant in zip_longest(alike, nearest):
            yield seg, kind, meant


def _nearest(truth: Truth, numbers: list[int], sizes_mm: list[int]) -> tuple[int, ...]:
    """Return those of ``truth.findings`` that differ least from sizes, one for each; all where there are no more."""

    def off_mm(chosen: tuple[int, ...]) -> float:
        return sum(abs(truth.findings[n].size_mm - mm) for n, mm in zip(chosen, sizes_mm, strict=False))

    return min(combinations(numbers, min(len(numbers), len(sizes_mm))), key=off_mm)


def organs_with(truth: Truth, coverage: Coverage) -> frozenset[str]:
    """Return the organs of a coverage, of those that reports speak of."""
    return frozenset(organ for organ in NOUNS if truth.organs.get(organ) is coverage)


def size_in_words(finding: Finding) -> int | Grade:
    """Return the size of a finding as a report states it."""
    return grade(finding.size_mm) if KINDS[finding.kind].pleural else rounded_mm(finding.size_mm)


def _described(truth: Truth) -> Iterator[FindingFact]:
    seg = 0
    for finding in reported_findings(truth):
        has_voxels = finding.value is not None
        yield FindingFact(finding.kind, finding.organ, size_in_words(finding), seg if has_voxels else None)
        seg += has_voxels
