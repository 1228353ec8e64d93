"""Reads a report back into facts, sentence by sentence; the inverse of the writer for every style."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from medvl.embedded.facts import FindingFact, ReportFacts
from medvl.embedded.report import FINDINGS, IMPRESSION, NOT_ASSESSABLE, STYLES
from medvl.embedded.truth import FindingKind
from medvl.embedded.words import KINDS, NOUNS, PAIRS, SEG, Grade, operation, side_of

_SLOTS = {
    "{organs}": r"(?P<organs>[a-z ,]+)",
    "{are}": "(?:is|are)",
    "{state}": "(?:clear|normal|intact)",
    "{site}": "(?P<site>[a-z ]+)",
    "{items}": "(?P<items>.+)",
    "{mm}": r"(?P<mm>\d+)",
    "{operation}": "(?P<operation>[a-z ]+)",
}
_ORGANS = {noun: (organ,) for organ, noun in NOUNS.items()} | PAIRS
_OPERATIONS = {operation(organ): organ for organ in NOUNS}
_SITES = {noun: (organ, False) for organ, noun in NOUNS.items()} | {
    f"{side_of(organ)} pleural space": (organ, True) for organ in PAIRS["lungs"]
}
"""Place that shows findings: its organ, and whether it is around it instead of in it."""
_ITEM_SLOTS = {"{a}": "(?:an? )?", "{size}": "(?P<size>[a-z]+|[0-9]+)"}
_SEG = SEG.lower()


def _compiled(form: str, slots: dict[str, str]) -> re.Pattern[str]:
    pattern = re.escape(form.lower())
    for slot, expression in slots.items():
        pattern = pattern.replace(re.escape(slot), expression)
    return re.compile(pattern)


_FORMS = {
    name: tuple(_compiled(getattr(style, name), _SLOTS) for style in STYLES)
    for name in ("normal", "finding", "enlarged", "removed", "outside", "nothing")
}
_ITEMS = {kind: _compiled(words.item, _ITEM_SLOTS) for kind, words in KINDS.items() if words.item}
_SUMMARY = re.compile("(?:(?:two|multiple) )?(?:(?P<side>left|right|bilateral) )?(?P<noun>[a-z ]+)")
_SUMMARIES = {noun: kind for kind, words in KINDS.items() for noun in (words.summary, words.summaries)}


@dataclass
class _Said:
    """What has been read so far."""

    findings: list[FindingFact] = field(default_factory=list)
    normal: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    not_assessable: set[str] = field(default_factory=set)
    impression: set[tuple[FindingKind, str]] = field(default_factory=set)
    unread: list[str] = field(default_factory=list)
    segs: int = 0


def parse_report(text: str) -> ReportFacts:
    """Return what a report says; what cannot be read is listed, and nothing is raised.

    ``seg`` of a finding is the number of the [SEG] that follows it among all of the text, those of sentences that
    could not be read included.
    """
    findings, found, impression = text.partition(IMPRESSION.strip())
    said = _Said()
    for sentence in _sentences(findings.removeprefix(FINDINGS.strip())):
        if not _read_finding_sentence(sentence.lower(), said):
            said.unread.append(sentence)
        said.segs += sentence.count(SEG)
    for sentence in _sentences(impression):
        if not _read_impression(sentence.lower(), said):
            said.unread.append(sentence)
    if not found or not text.startswith(FINDINGS.strip()):
        said.unread.append("")
    return ReportFacts(
        findings=tuple(said.findings),
        normal=frozenset(said.normal),
        absent=frozenset(said.absent),
        not_assessable=frozenset(said.not_assessable),
        impression=frozenset(said.impression),
        unread=tuple(said.unread),
    )


def _sentences(section: str) -> Iterator[str]:
    return (s for part in re.split(r"[.\n]", section) if (s := part.strip()))


def _read_finding_sentence(sentence: str, said: _Said) -> bool:
    """Take in a sentence of the findings; return whether it could be read, as a whole or not at all."""
    if match := _match("enlarged", sentence):
        said.findings.append(FindingFact(FindingKind.SPLENOMEGALY, "spleen", int(match["mm"])))
        return True
    if match := _match("removed", sentence):
        organ = _OPERATIONS.get(match["operation"])
        if organ is None or _organs(match["organs"]) != {organ}:
            return False
        said.absent.add(organ)
        return True
    # Outside stands before normal: both begin with organs.
    for name, into in (("outside", said.not_assessable), ("normal", said.normal)):
        if (match := _match(name, sentence)) and (organs := _organs(match["organs"])):
            into.update(organs)
            return True
    match = _match("finding", sentence)
    found = _items(match["site"], match["items"], said.segs) if match else None
    said.findings.extend(found or ())
    return bool(found)


def _match(name: str, sentence: str) -> re.Match[str] | None:
    return next((m for form in _FORMS[name] if (m := form.fullmatch(sentence))), None)


def _organs(phrase: str) -> set[str]:
    """Return the organs of a noun phrase; none when one of its words is no organ."""
    nouns = re.split(", | and ", phrase)
    known = [organ for noun in nouns for organ in _ORGANS.get(noun, ())]
    return set(known) if all(noun in _ORGANS for noun in nouns) else set()


def _items(site: str, items: str, seg: int) -> list[FindingFact] | None:
    """Return the findings that a site shows, numbering their [SEG] from ``seg``; None when one cannot be read."""
    if site not in _SITES:
        return None
    organ, pleural = _SITES[site]
    found = []
    for words in re.split(", | and ", items):
        has_seg = words.endswith(_SEG)
        fact = _item(words.removesuffix(_SEG).strip(), organ, pleural, seg if has_seg else None)
        if fact is None:
            return None
        found.append(fact)
        seg += has_seg
    return found


def _item(words: str, organ: str, pleural: bool, seg: int | None) -> FindingFact | None:
    for kind, form in _ITEMS.items():
        possible = organ in KINDS[kind].organs and KINDS[kind].pleural is pleural
        if possible and (match := form.fullmatch(words)) and (size := _size(match["size"], pleural)):
            return FindingFact(kind, organ, size, seg)
    return None


def _size(words: str, graded: bool) -> int | Grade | None:
    if graded:
        return Grade(words) if words in tuple(Grade) else None
    # Numbers of more digits than any body needs are nonsense.
    return int(words) if words.isdecimal() and len(words) <= 4 else None


def _read_impression(sentence: str, said: _Said) -> bool:
    if sentence == NOT_ASSESSABLE or _match("nothing", sentence):
        return True
    if sentence.startswith("status post "):
        organ = _OPERATIONS.get(sentence.removeprefix("status post "))
        said.impression.update({(FindingKind.MISSING_ORGAN, organ)} if organ else ())
        return organ is not None
    match = _SUMMARY.fullmatch(sentence)
    kind = _SUMMARIES.get(match["noun"]) if match else None
    if match is None or kind is None:
        return False
    side, words = match["side"], KINDS[kind]
    if words.paired is (side is None):
        return False
    organs = words.organs if side in {None, "bilateral"} else [o for o in words.organs if side_of(o) == side]
    said.impression.update((kind, organ) for organ in organs)
    return True
