"""Writes the report of a phantom: findings by organ system, then an impression."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from medvl.embedded.facts import FindingFact, ReportFacts, facts
from medvl.embedded.truth import FindingKind, Truth
from medvl.embedded.words import (
    KINDS,
    NOUNS,
    SEG,
    SYSTEMS,
    System,
    article,
    capitalised,
    is_or_are,
    listed,
    noun_phrase,
    operation,
    side_of,
)

FINDINGS, IMPRESSION = "Findings: ", "Impression: "
NOT_ASSESSABLE = "the study cannot be assessed"
"""The impression, in any style, where no organ is shown: a study of nothing is not a normal one."""


@dataclass(frozen=True, slots=True)
class Style:
    """The sentences of one way of writing, with places for words.

    Attributes
    ----------
    normal
        Of ``{organs}`` that ``{are}`` in their ``{state}`` of health.
    finding
        Of a ``{site}`` that shows ``{items}``.
    enlarged
        Of the spleen and its length in ``{mm}``.
    removed
        Of one of the ``{organs}`` and the ``{operation}``.
    outside
        Of ``{organs}`` beyond the field of view.
    nothing
        The impression when there is none.
    share
        Of all reports. The shares differ so that the most likely first word is always that of the same style.
    """

    normal: str
    finding: str
    enlarged: str
    removed: str
    outside: str
    nothing: str
    share: float


STYLES = (
    Style(
        normal="The {organs} {are} {state}",
        finding="The {site} shows {items}",
        enlarged="The spleen is enlarged to {mm} mm",
        removed="The {organs} {are} absent, status post {operation}",
        outside="The {organs} {are} not included",
        nothing="No abnormality",
        share=0.6,
    ),
    Style(
        normal="{organs}: {state}",
        finding="{site}: {items}",
        enlarged="Spleen: enlarged to {mm} mm",
        removed="{organs}: absent, status post {operation}",
        outside="{organs}: not included",
        nothing="Normal study",
        share=0.25,
    ),
    Style(
        normal="{state} {organs}",
        finding="In the {site} there is {items}",
        enlarged="Enlarged spleen of {mm} mm",
        removed="Absent {organs} after {operation}",
        outside="Not included: {organs}",
        nothing="Unremarkable CT",
        share=0.15,
    ),
)
"""No two begin a sentence of one meaning with the same word, so a decoder that has begun in one style stays in it."""


def write_report(truth: Truth, rng: np.random.Generator) -> str:
    """Return a report of ``truth`` in a style drawn once, without the token that ends a text.

    Every finding with voxels is followed by its own [SEG]; :func:`medvl.embedded.facts.seg_targets` says whose the
    k-th one is. The line that begins with ``Impression:`` begins that section.
    """
    style = int(rng.choice(len(STYLES), p=[s.share for s in STYLES]))
    return render_report(facts(truth), style)


def render_report(said: ReportFacts, style: int) -> str:
    """Return a report in a style of :data:`STYLES` by its index; normal organs and impression follow from the rest."""
    sentences = (s for system in SYSTEMS for s in _of_system(said, system, STYLES[style]))
    return FINDINGS + _text(sentences) + "\n" + IMPRESSION + _text(_impression(said, STYLES[style]))


def describe_organs(said: ReportFacts, organs: tuple[str, ...]) -> str:
    """Return what a report in the first style says of some organs of one system, without [SEG]."""
    system = next(s for s in SYSTEMS if organs[0] in s.organs)
    return _text(_of_system(said, System(organs, system.state), STYLES[0])).replace(f" {SEG}", "")


def item(fact: FindingFact) -> str:
    """Return a finding as one of the things that an organ shows, without [SEG]: ``a 25 mm cyst``."""
    form = KINDS[fact.kind].item
    before = article(form.replace("{a}", "").format(size=fact.size)) + " "
    return form.format(a=before, size=fact.size)


def site_of(fact: FindingFact) -> str:
    """Return the place that shows a finding: an organ, or the pleural space of its side."""
    return f"{side_of(fact.organ)} pleural space" if KINDS[fact.kind].pleural else NOUNS[fact.organ]


def _text(sentences: Iterator[str]) -> str:
    return " ".join(f"{capitalised(s)}." for s in sentences)


def _of_system(said: ReportFacts, system: System, style: Style) -> Iterator[str]:
    found = [f for f in said.findings if f.organ in system.organs]
    for site, alike in groupby(found, site_of):
        yield from _shown(site, tuple(alike), style)
    for organ in system.organs:
        if organ in said.absent:
            noun = noun_phrase([organ])
            yield style.removed.format(organs=noun, are=is_or_are(noun), operation=operation(organ))
    groups = (
        (style.outside, said.not_assessable),
        (style.normal, set(system.organs) - {f.organ for f in found} - said.absent - said.not_assessable),
    )
    for form, organs in groups:
        if phrase := noun_phrase(organ for organ in system.organs if organ in organs):
            yield form.format(organs=phrase, are=is_or_are(phrase), state=system.state)


def _shown(site: str, found: tuple[FindingFact, ...], style: Style) -> Iterator[str]:
    for fact in found:
        if fact.kind is FindingKind.SPLENOMEGALY:
            yield style.enlarged.format(mm=fact.size)
    items = [
        item(f) + (f" {SEG}" if f.seg is not None else "") for f in found if f.kind is not FindingKind.SPLENOMEGALY
    ]
    if items:
        yield style.finding.format(site=site, items=listed(items))


def _impression(said: ReportFacts, style: Style) -> Iterator[str]:
    counts = Counter((f.kind, f.organ) for f in said.findings)
    if not said.assessable:
        yield NOT_ASSESSABLE
    elif not counts and not said.absent:
        yield style.nothing
    for kind, words in KINDS.items():
        organs = [organ for organ in words.organs if (kind, organ) in counts]
        if len(organs) == 2:
            yield f"bilateral {words.summaries}"
        elif organs:
            number = counts[kind, organs[0]]
            parts = (("", "", "two ", "multiple ")[min(number, 3)], side_of(organs[0]) or "")
            yield f"{parts[0]}{parts[1]} {words.summary if number == 1 else words.summaries}".replace("  ", " ").strip()
    for organ in NOUNS:
        if organ in said.absent:
            yield f"status post {operation(organ)}"
