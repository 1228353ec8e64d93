"""What can be asked to be segmented: classes by name, organs and findings by words that mean one thing only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from medvl.embedded.facts import as_seen
from medvl.embedded.phrasing import CONCEPTS, Concept, expand, organ_words, pick, place
from medvl.embedded.truth import Coverage, FindingKind, Truth
from medvl.embedded.words import NOUNS, capitalised, clearly_larger, side_of


@dataclass(frozen=True, slots=True)
class SegmentRequest:
    """A request for one mask.

    Attributes
    ----------
    text
        The name of a class, or words that stand after "Segment": ``the larger cyst in the right kidney``.
    by_class
        Whether it is the name of a class.
    organ
        The organ that is meant, or that the finding belongs to; None when a finding is sought in several.
    findings
        Indices into ``truth.findings`` of what is meant; empty for an organ and for what is absent.
    present
        Whether there is anything to segment.
    kind
        Of the finding that is meant; None for an organ and for names of several kinds, such as "lesion".
    """

    text: str
    by_class: bool
    organ: str | None
    findings: tuple[int, ...]
    present: bool
    kind: FindingKind | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """One thing to ask for, in all its phrasings; see :class:`SegmentRequest`."""

    patterns: tuple[str, ...]
    by_class: bool
    organ: str | None
    findings: tuple[int, ...]
    present: bool
    kind: FindingKind | None = None

    @property
    def stratum(self) -> tuple[str, bool]:
        """What requests are balanced over: class, organ or finding, and whether it is there."""
        form = "class" if self.by_class else "organ" if self.kind is None and not self.findings else "finding"
        return form, self.present

    @property
    def one_of_several(self) -> bool:
        """Whether its words tell it from others by its size."""
        return any(word in pattern for pattern in self.patterns for word in ("largest", "smallest"))

    def phrasings(self) -> Iterator[SegmentRequest]:
        """Yield it in every phrasing."""
        return (self._request(t) for t in dict.fromkeys(t for p in self.patterns for t in expand(p)))

    def phrased(self, rng: np.random.Generator) -> SegmentRequest:
        """Return it as somebody may have typed it."""
        text = pick(self.patterns[int(rng.integers(len(self.patterns)))], rng)
        return self._request(capitalised(text) if not self.by_class and rng.random() < _CAPITALISED else text)

    def _request(self, text: str) -> SegmentRequest:
        return SegmentRequest(text, self.by_class, self.organ, self.findings, self.present, self.kind)


_SHARES = {
    ("class", True): 0.25,
    ("class", False): 0.08,
    ("organ", True): 0.15,
    ("organ", False): 0.05,
    ("finding", True): 0.35,
    ("finding", False): 0.12,
}
"""How often each stratum is drawn, of those that a truth has."""
_CAPITALISED = 0.1
"""Share of texts that begin with a large letter."""


def requests(truth: Truth, rng: np.random.Generator, count: int = 4) -> list[SegmentRequest]:
    """Return at most ``count`` requests for different things, balanced over classes, organs, findings and absence."""
    left = list(request_pool(truth))
    chosen: list[Wanted] = []
    while left and len(chosen) < count:
        strata = sorted({w.stratum for w in left})
        shares = np.array([_SHARES[s] for s in strata])
        stratum = strata[int(rng.choice(len(strata), p=shares / shares.sum()))]
        candidates = [w for w in left if w.stratum == stratum]
        chosen.append(candidates[int(rng.integers(len(candidates)))])
        left.remove(chosen[-1])
    return [wanted.phrased(rng) for wanted in chosen]


def request_pool(truth: Truth) -> tuple[Wanted, ...]:
    """Return everything that can be asked for, each thing once; the same for the same truth."""
    truth = as_seen(truth)
    return (*_organs(truth), *(w for concept in CONCEPTS for w in _findings(truth, concept)))


def all_requests(truth: Truth) -> tuple[SegmentRequest, ...]:
    """Return every request in each of its phrasings; the same for the same truth."""
    return tuple(request for wanted in request_pool(truth) for request in wanted.phrasings())


def _organs(truth: Truth) -> Iterator[Wanted]:
    for organ in NOUNS:
        present = truth.seen(organ)
        yield Wanted((organ,), True, organ, (), present)
        words, side = organ_words(organ), side_of(organ)
        patterns = [f"(the |the |){words}"]
        if side:
            patterns.append(f"the {organ.split('_', maxsplit=1)[0]} on the {side}( side|)")
        if present and truth.of(FindingKind.SPLENOMEGALY, organ):
            patterns.append("the enlarged spleen")
        yield Wanted(tuple(patterns), False, organ, (), present)


def _findings(truth: Truth, concept: Concept) -> Iterator[Wanted]:
    """Yield the findings of a concept that words single out, and what is not there."""
    if FindingKind.SPLENOMEGALY in concept.kinds:
        return
    for organ in concept.organs:
        at = place(concept, organ)
        names = [f"the {concept.bare} {at}", f"(the {concept.bare}|{concept.a}) {at}"]
        sizes = [f"the SIZE {concept.bare} {at}"]
        if concept.sided:
            names.append(f"(the |){side_of(organ)}(-sided|) {concept.sided}")
            sizes.append(f"the SIZE {side_of(organ)}(-sided|) {concept.sided}")
        if concept.kinds == (FindingKind.VERTEBRAL_FRACTURE,):
            names.append("(the|a) (fractured|broken|collapsed) (vertebra|vertebral body)")
        yield from _singled_out(truth, concept, organ, names, sizes)
    if len(concept.organs) == 2 or not any(c.bare == concept.bare for c in CONCEPTS if c is not concept):
        yield from _singled_out(truth, concept, None, [f"(the |the |){concept.own}"], [f"the SIZE {concept.own}"])


def _singled_out(
    truth: Truth, concept: Concept, organ: str | None, names: list[str], sizes: list[str]
) -> Iterator[Wanted]:
    found = concept.found(truth, organ)
    kind = concept.kinds[0] if len(concept.kinds) == 1 else None
    places = (organ,) if organ else concept.organs
    if not found:
        yield Wanted(tuple(names), False, organ, (), False, kind)
    elif len(found) == 1 and not any(truth.organs[o] is Coverage.OUTSIDE for o in places):
        yield _one(truth, tuple(names), found[0])
    elif len(found) > 1:
        yield from _extremes(truth, found, sizes)


def _extremes(truth: Truth, found: tuple[int, ...], sizes: list[str]) -> Iterator[Wanted]:
    """Yield the largest and the smallest of several findings where no other comes near."""
    mm = [truth.findings[i].size_mm for i in found]
    large, small = (
        ("(larger|bigger|largest)", "(smaller|smallest)") if len(found) == 2 else ("(largest|biggest)", "smallest")
    )
    if clearly_larger(mm[0], mm[1]):
        yield _one(truth, tuple(s.replace("SIZE", large) for s in sizes), found[0])
    if clearly_larger(mm[-2], mm[-1]):
        yield _one(truth, tuple(s.replace("SIZE", small) for s in sizes), found[-1])


def _one(truth: Truth, patterns: tuple[str, ...], index: int) -> Wanted:
    finding = truth.findings[index]
    return Wanted(patterns, False, finding.organ, (index,), finding.value is not None, finding.kind)
