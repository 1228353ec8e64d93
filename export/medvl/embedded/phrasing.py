"""Many ways to write one thing: patterns with alternatives, and the words that people use in questions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from medvl.embedded.truth import FindingKind, Truth
from medvl.embedded.words import KINDS, NOUNS, side_of

_CHOICE = re.compile(r"\(([^()]*)\)")


def expand(pattern: str) -> Iterator[str]:
    """Yield every text of a pattern such as ``a (kidney|renal) cyst``; parentheses may be nested."""
    found = _CHOICE.search(pattern)
    if found is None:
        yield pattern
        return
    for option in found[1].split("|"):
        yield from expand(pattern[: found.start()] + option + pattern[found.end() :])


def pick(pattern: str, rng: np.random.Generator) -> str:
    """Return one text of a pattern; each alternative is as likely as its neighbours."""
    while found := _CHOICE.search(pattern):
        options = found[1].split("|")
        pattern = pattern[: found.start()] + options[int(rng.integers(len(options)))] + pattern[found.end() :]
    return pattern


@dataclass(frozen=True, slots=True)
class Concept:
    """What a question asks about: a kind of finding, or two that share a name. All words are patterns.

    Attributes
    ----------
    kinds
        The kinds it means.
    one
        With its article where it has one, when no place is named: ``a (kidney|renal) cyst``.
    a
        The same when a place is named: ``a cyst``.
    own, bare
        As ``one`` and ``a`` without article.
    many, bare_many
        Plurals of ``own`` and ``bare``; empty when it is not counted.
    sided
        After ``a left`` or ``left``: ``(kidney|renal) cyst``; empty for what has no side.
    state
        What an organ with it is: ``(enlarged|too large)``; empty when there is no such word.
    """

    kinds: tuple[FindingKind, ...]
    one: str
    a: str
    own: str
    bare: str
    many: str = ""
    bare_many: str = ""
    sided: str = ""
    state: str = ""

    @property
    def organs(self) -> tuple[str, ...]:
        """Where it can be."""
        return KINDS[self.kinds[0]].organs

    @property
    def pleural(self) -> bool:
        """Whether it lies around the lung; then its size is a grade."""
        return KINDS[self.kinds[0]].pleural

    def found(self, truth: Truth, organ: str | None = None) -> tuple[int, ...]:
        """Return indices into ``truth.findings``, in one organ or in all, the largest first."""
        indices = (i for i, f in enumerate(truth.findings) if f.kind in self.kinds and organ in {None, f.organ})
        return tuple(sorted(indices, key=lambda i: -truth.findings[i].size_mm))


def _counted(kind: FindingKind, adjectives: str, nouns: str, plurals: str) -> Concept:
    own, many = f"({adjectives}){nouns}", f"({adjectives}){plurals}"
    sided = own if KINDS[kind].paired else ""
    return Concept((kind,), f"a {own}", f"a {nouns}", own, nouns, many, plurals, sided)


_LESION = (FindingKind.LIVER_CYST, FindingKind.LIVER_MASS)
CONCEPTS = (
    _counted(FindingKind.LUNG_NODULE, "lung |pulmonary |", "nodule", "nodules"),
    Concept(
        (FindingKind.PLEURAL_EFFUSION,),
        one="(a pleural effusion|an effusion|pleural fluid|fluid in the pleural space)",
        a="(a pleural effusion|an effusion|pleural fluid)",
        own="(pleural effusion|effusion|pleural fluid)",
        bare="(pleural effusion|effusion)",
        sided="(pleural effusion|effusion)",
    ),
    Concept(
        (FindingKind.PNEUMOTHORAX,),
        one="(a pneumothorax|air in the pleural space|free pleural air)",
        a="(a pneumothorax|free pleural air)",
        own="pneumothorax",
        bare="pneumothorax",
        sided="pneumothorax",
    ),
    Concept(
        (FindingKind.AORTIC_ANEURYSM,),
        one="(an aortic aneurysm|an aneurysm of the aorta|an aneurysm|a dilated aorta)",
        a="an aneurysm",
        own="(aortic aneurysm|aneurysm of the aorta|aneurysm)",
        bare="aneurysm",
        state="(dilated|aneurysmal|widened|too wide)",
    ),
    _counted(FindingKind.LIVER_MASS, "liver |hepatic |", "mass", "masses"),
    _counted(FindingKind.LIVER_CYST, "liver |hepatic ", "cyst", "cysts"),
    Concept(
        _LESION,
        one="a (liver|hepatic|focal liver) lesion",
        a="(a lesion|a focal lesion)",
        own="(liver|hepatic) lesion",
        bare="lesion",
        many="(liver|hepatic) lesions",
        bare_many="lesions",
    ),
    Concept(
        (FindingKind.SPLENOMEGALY,),
        one="(splenomegaly|an enlarged spleen|enlargement of the spleen|splenic enlargement)",
        a="enlargement",
        own="(splenomegaly|enlargement of the spleen|splenic enlargement)",
        bare="enlargement",
        state="(enlarged|too large|larger than normal|bigger than normal)",
    ),
    Concept(
        (FindingKind.HYDRONEPHROSIS,),
        one="(hydronephrosis|a dilated renal pelvis|a dilated collecting system|obstruction of a kidney)",
        a="(hydronephrosis|a dilated renal pelvis)",
        own="hydronephrosis",
        bare="hydronephrosis",
        sided="hydronephrosis",
        state="(hydronephrotic|obstructed)",
    ),
    _counted(FindingKind.KIDNEY_STONE, "kidney |renal |", "(stone|calculus)", "(stones|calculi)"),
    _counted(FindingKind.KIDNEY_CYST, "kidney |renal ", "cyst", "cysts"),
    Concept(
        (FindingKind.VERTEBRAL_FRACTURE,),
        one="(a vertebral fracture|a spinal fracture|a compression fracture|a fractured vertebra|a spine fracture)",
        a="(a fracture|a compression fracture)",
        own="(vertebral |spinal |compression |vertebral compression |)fracture",
        bare="fracture",
        many="(vertebral |spinal |compression |)fractures",
        bare_many="fractures",
        state="(fractured|broken)",
    ),
)

ORGAN_WORDS = {
    "vertebral_column": "(spine|vertebral column)",
    "urinary_bladder": "(bladder|urinary bladder)",
    "gallbladder": "(gallbladder|gall bladder)",
    "trachea": "(trachea|windpipe)",
    "lung_left": "left lung",
    "lung_right": "right lung",
}
"""Patterns of organs in questions where they are called other than in reports."""


def organ_words(organ: str) -> str:
    """Return the pattern of an organ in questions, without article."""
    return ORGAN_WORDS.get(organ, NOUNS[organ])


def place(concept: Concept, organ: str) -> str:
    """Return the pattern of where a finding is: ``in the left kidney``, ``on the left``."""
    side = side_of(organ)
    if concept.pleural:
        return f"(on the {side}|on the {side} side|in the {side} pleural space|around the {side} lung)"
    inside = f"(in|within) the {organ_words(organ)}"
    # The liver is on the right as well: a cyst "on the right" could be its own.
    by_side = side and concept.kinds != (FindingKind.KIDNEY_CYST,)
    return f"({inside}|{inside}|on the {side})" if by_side else inside
