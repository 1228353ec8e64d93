"""How organs and findings are called in reports, and how sizes are put into words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from medvl.embedded.truth import FindingKind, Side

SEG = "[SEG]"
"""Stands in a text where a mask belongs."""
OUTSIDE = "outside the field of view"

PAIRS = {"lungs": ("lung_right", "lung_left"), "kidneys": ("kidney_right", "kidney_left")}
"""Plural noun of two organs."""
NOUNS = {
    "lung_right": "right lung",
    "lung_left": "left lung",
    "trachea": "trachea",
    "heart": "heart",
    "aorta": "aorta",
    "liver": "liver",
    "gallbladder": "gallbladder",
    "spleen": "spleen",
    "stomach": "stomach",
    "kidney_right": "right kidney",
    "kidney_left": "left kidney",
    "urinary_bladder": "bladder",
    "vertebral_column": "spine",
    "rib": "ribs",
}
"""The noun of each organ, in the order of a report; an organ is called by the name of its label. The body has none."""
OPERATIONS = {
    "lung_right": "right pneumonectomy",
    "lung_left": "left pneumonectomy",
    "gallbladder": "cholecystectomy",
    "spleen": "splenectomy",
    "stomach": "gastrectomy",
    "kidney_right": "right nephrectomy",
    "kidney_left": "left nephrectomy",
    "urinary_bladder": "cystectomy",
}
"""What removes an organ; :func:`operation` names the others."""


class Grade(StrEnum):
    """Size of air or fluid around a lung, which is not given in millimetres."""

    SMALL = "small"
    MODERATE = "moderate"
    LARGE = "large"


MODERATE_FROM_MM, LARGE_FROM_MM = 20.0, 40.0
"""Depths of effusion and pneumothorax at which the grade changes."""


@dataclass(frozen=True, slots=True)
class System:
    """Organs that a report describes together.

    Attributes
    ----------
    state
        What they are called when nothing is wrong with them.
    """

    organs: tuple[str, ...]
    state: str


SYSTEMS = (
    System(("lung_right", "lung_left", "trachea"), "clear"),
    System(("heart", "aorta"), "normal"),
    System(("liver", "gallbladder"), "normal"),
    System(("spleen", "stomach"), "normal"),
    System(("kidney_right", "kidney_left", "urinary_bladder"), "normal"),
    System(("vertebral_column", "rib"), "intact"),
)
"""In the order of a report."""


@dataclass(frozen=True, slots=True)
class KindWords:
    """How a report speaks of a kind of finding.

    Attributes
    ----------
    organs
        Where it can be; two when it has sides, the right one first.
    item
        As one of a list of what an organ shows, with ``{size}`` in millimetres or as a grade; ``{a}`` is the article.
    summary, summaries
        As the impression names one or several, without their side.
    pleural
        Whether it lies around the lung instead of in it.
    """

    organs: tuple[str, ...]
    item: str
    summary: str
    summaries: str
    pleural: bool = False

    @property
    def paired(self) -> bool:
        """Whether it has a side."""
        return len(self.organs) == 2


_LUNGS, _KIDNEYS = PAIRS["lungs"], PAIRS["kidneys"]
KINDS = {
    FindingKind.LUNG_NODULE: KindWords(_LUNGS, "{a}{size} mm nodule", "lung nodule", "lung nodules"),
    FindingKind.PLEURAL_EFFUSION: KindWords(
        _LUNGS, "{a}{size} effusion", "pleural effusion", "pleural effusions", pleural=True
    ),
    FindingKind.PNEUMOTHORAX: KindWords(
        _LUNGS, "{a}{size} pneumothorax", "pneumothorax", "pneumothoraces", pleural=True
    ),
    FindingKind.AORTIC_ANEURYSM: KindWords(("aorta",), "{a}{size} mm aneurysm", "aortic aneurysm", "aortic aneurysms"),
    FindingKind.LIVER_MASS: KindWords(("liver",), "{a}{size} mm mass", "liver mass", "liver masses"),
    FindingKind.LIVER_CYST: KindWords(("liver",), "{a}{size} mm cyst", "liver cyst", "liver cysts"),
    FindingKind.SPLENOMEGALY: KindWords(("spleen",), "", "splenomegaly", "splenomegaly"),
    FindingKind.HYDRONEPHROSIS: KindWords(_KIDNEYS, "hydronephrosis of {size} mm", "hydronephrosis", "hydronephrosis"),
    FindingKind.KIDNEY_STONE: KindWords(_KIDNEYS, "{a}{size} mm stone", "kidney stone", "kidney stones"),
    FindingKind.KIDNEY_CYST: KindWords(_KIDNEYS, "{a}{size} mm cyst", "kidney cyst", "kidney cysts"),
    FindingKind.VERTEBRAL_FRACTURE: KindWords(
        ("vertebral_column",), "{a}fracture with {size} mm height loss", "vertebral fracture", "vertebral fractures"
    ),
}
"""In the order of a report. A missing organ is not described as a finding; :data:`OPERATIONS` speak of it."""


def side_of(organ: str) -> Side | None:
    """Return the patient's side of one of two organs."""
    if organ.endswith("_left"):
        return "left"
    return "right" if organ.endswith("_right") else None


def operation(organ: str) -> str:
    """Return the name of the operation that removes an organ."""
    return OPERATIONS.get(organ, f"{NOUNS[organ]} resection")


def rounded_mm(size_mm: float) -> int:
    """Return a size as reports give it: rounded to 5 mm, at least 5."""
    return max(5, 5 * math.floor(size_mm / 5 + 0.5))


def grade(depth_mm: float) -> Grade:
    """Return the grade of an effusion or pneumothorax."""
    if depth_mm < MODERATE_FROM_MM:
        return Grade.SMALL
    return Grade.MODERATE if depth_mm < LARGE_FROM_MM else Grade.LARGE


def clearly_larger(size_mm: float, than_mm: float) -> bool:
    """Whether a size exceeds another by so much that rounding and partial volume do not matter."""
    return size_mm > 1.25 * than_mm and size_mm - than_mm > 4.0


def noun_phrase(organs: Iterable[str]) -> str:
    """Return organs as a list without article: ``lungs and trachea``; two of a pair become their plural."""
    given = set(organs)
    nouns: list[str] = []
    for organ, noun in NOUNS.items():
        if organ not in given:
            continue
        plural = next((p for p, pair in PAIRS.items() if organ in pair and given.issuperset(pair)), noun)
        if plural not in nouns:
            nouns.append(plural)
    return listed(nouns)


def is_or_are(phrase: str) -> str:
    """Return the verb that goes with a noun phrase."""
    return "are" if " and " in phrase or phrase.endswith(("lungs", "kidneys", "ribs")) else "is"


def outside_clause(organs: Iterable[str]) -> str:
    """Return ``the lungs are outside the field of view``."""
    phrase = noun_phrase(organs)
    return f"the {phrase} {is_or_are(phrase)} {OUTSIDE}"


def listed(words: Iterable[str]) -> str:
    """Return ``a, b and c``."""
    given = tuple(words)
    return " and ".join(filter(None, (", ".join(given[:-1]), *given[-1:])))


def article(following: str) -> str:
    """Return ``a`` or ``an`` before a word or number."""
    vowel = following[0] in "aeio" or following.startswith("8") or following in {"11", "18"}
    return "an" if vowel else "a"


def capitalised(sentence: str) -> str:
    """Return a sentence with its first letter large and the others as they are."""
    return sentence[:1].upper() + sentence[1:]
