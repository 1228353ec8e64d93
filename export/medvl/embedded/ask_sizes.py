"""What can be asked about sizes: how large a finding is, whether it exceeds a threshold, which of two is larger.

Nothing is asked whose answer would hang on a few millimetres.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

from medvl.embedded.asked import Asked, Topic
from medvl.embedded.facts import size_in_words
from medvl.embedded.phrasing import CONCEPTS, Concept, place
from medvl.embedded.truth import FindingKind, Truth
from medvl.embedded.words import KINDS, clearly_larger, rounded_mm, side_of

_STEP_MM = 5
_LARGER, _SMALLER = "(larger|bigger)", "smaller"
_COMPARED = (
    *(FindingKind.LUNG_NODULE, FindingKind.AORTIC_ANEURYSM, FindingKind.LIVER_MASS, FindingKind.LIVER_CYST),
    *(FindingKind.KIDNEY_STONE, FindingKind.KIDNEY_CYST),
)
"""Kinds that are things of their own, whose diameters can be compared."""
_MEASURED = (*_COMPARED, FindingKind.HYDRONEPHROSIS)
"""Kinds whose size is a diameter in millimetres."""


def ask_sizes(truth: Truth) -> Iterator[Asked]:
    """Yield everything to ask about sizes."""
    for concept in CONCEPTS:
        for organ in concept.organs:
            yield from _size(truth, concept, organ)
        if concept.sided:
            yield from _sides(truth, concept)
    compared = [c for c in CONCEPTS if len(c.kinds) == 1 and c.kinds[0] in _COMPARED and c.found(truth)]
    for one, other in permutations(compared, 2):
        yield from _across(truth, one, other)


def _size(truth: Truth, concept: Concept, organ: str) -> Iterator[Asked]:
    found = concept.found(truth, organ)
    if not found:
        return
    said = size_in_words(truth.findings[found[0]])
    answer = f"About {said} mm." if isinstance(said, int) else f"{said.capitalize()}."
    names = _names(truth, concept, organ)
    patterns = tuple(p for name in names for p in _how_large(concept, name))
    yield Asked(patterns, answer, Topic.SIZE, str(said), closed=False)
    if concept.kinds[0] in _MEASURED:
        yield from _thresholds(names, truth.findings[found[0]].size_mm)


def _names(truth: Truth, concept: Concept, organ: str) -> list[str]:
    """Return patterns of the largest finding of a concept in an organ."""
    if FindingKind.SPLENOMEGALY in concept.kinds:
        return ["the (enlarged |)spleen"]
    found = concept.found(truth, organ)
    which = "" if len(found) == 1 else "largest "
    names = [f"the {which}{concept.bare} {place(concept, organ)}"]
    if concept.sided:
        names.append(f"the {which}{side_of(organ)}(-sided|) {concept.sided}")
    if len(concept.found(truth)) == len(found):
        names.append(f"the {which}{concept.own}")
    return names


def _how_large(concept: Concept, name: str) -> Iterator[str]:
    if FindingKind.VERTEBRAL_FRACTURE in concept.kinds:
        yield f"(How much height is lost in|What is the height loss of|How large is the height loss of) {name}?"
        return
    yield f"How (large|big) is {name}?"
    yield f"(What is|Give|Tell me) the size of {name}?"
    if FindingKind.SPLENOMEGALY in concept.kinds:
        yield f"(How long is|What is the length of) {name}?"
    elif not concept.pleural:
        yield f"(What is the diameter of|How many (mm|millimetres) is) {name}?"
        yield f"What does {name} measure?"


def _thresholds(names: list[str], size_mm: float) -> Iterator[Asked]:
    """Yield comparisons with thresholds that the size is clear of, two below and two above."""
    grid = range(_STEP_MM, 2 * rounded_mm(size_mm) + 60, _STEP_MM)
    below = [limit for limit in grid if clearly_larger(size_mm, limit)]
    above = [limit for limit in grid if limit - size_mm > max(0.25 * limit, 4.0)]
    limits = {*below[-1:], *below[len(below) // 2 :][:1], *above[:1], *above[len(above) // 4 :][:1]}
    for limit in sorted(limits):
        length = f"({limit} mm|{limit} mm|{limit / 10:g} cm)"
        for words, more in (("(larger|bigger|more|greater)", True), ("(smaller|less)", False)):
            yes = (size_mm > limit) is more
            verb = f"measure {'more' if more else 'less'}"
            yield Asked(
                tuple(p for n in names for p in (f"Is {n} {words} than {length}?", f"Does {n} {verb} than {length}?")),
                f"{'Yes' if yes else 'No'}, it measures about {rounded_mm(size_mm)} mm.",
                Topic.SIZE,
                "yes" if yes else "no",
                trap=not more,
            )


def _sides(truth: Truth, concept: Concept) -> Iterator[Asked]:
    """Yield comparisons of both sides: the larger finding, and the side with more of them."""
    right, left = (concept.found(truth, organ) for organ in concept.organs)
    noun = "side" if concept.pleural else concept.organs[0].split("_", maxsplit=1)[0]
    if concept.bare_many and len(right) != len(left):
        side = "right" if len(right) > len(left) else "left"
        patterns = (
            f"Which {noun} has more {concept.bare_many}?",
            f"(Which|What) side (has|shows) more {concept.many}?",
            f"(Are there|Do you see) more {concept.many} on the left or on the right?",
        )
        yield Asked(patterns, _side_answer(side, noun), Topic.COMPARISON, side, trap=True)
    if not right or not left:
        return
    sizes = {organ: truth.findings[concept.found(truth, organ)[0]].size_mm for organ in concept.organs}
    small, large = sorted(concept.organs, key=sizes.__getitem__)
    if clearly_larger(sizes[large], sizes[small]):
        yield _which_side(concept, str(side_of(large)), noun)
        for first, second in permutations(concept.organs):
            yield from _larger_than(concept, first, second, large)


def _side_answer(side: str, noun: str) -> str:
    return f"The {side}{'' if noun == 'side' else f' {noun}'}."


def _which_side(concept: Concept, side: str, noun: str) -> Asked:
    most = f"({_LARGER}|largest|biggest)"
    patterns = (
        f"(Which|What) {noun} has the {most} {concept.bare}?",
        f"{'On' if concept.pleural else 'In'} which {noun} is the {most} {concept.bare}?",
        f"On which side is the {most} {concept.own}?",
        f"Is the {_LARGER} {concept.own} (on the left or on the right|on the right or on the left)?",
        f"(Which|What) side has the {most} {concept.own}?",
        f"The {most} {concept.own} is on which side?",
        f"Where is the {most} {concept.own}, (left or right|right or left)?",
    )
    return Asked(patterns, _side_answer(side, noun), Topic.COMPARISON, side)


def _larger_than(concept: Concept, first: str, second: str, large: str) -> Iterator[Asked]:
    """Yield whether the finding of one side is larger, or smaller, than that of the other."""
    one, other = side_of(first), side_of(second)
    for words, yes in ((_LARGER, first == large), (_SMALLER, first != large)):
        patterns = (
            f"Is the {concept.bare} {place(concept, first)} {words} than (the one|that) {place(concept, second)}?",
            f"Is the {one}(-sided|) {concept.sided} {words} than the (one on the {other}|{other} one)?",
            f"Is the {concept.own} {words} on the {one}( side|) than on the {other}( side|)?",
            f"Comparing both sides, is the {one} {concept.sided} {words}?",
        )
        yield Asked(
            patterns,
            f"{'Yes' if yes else 'No'}, the {side_of(large)} one is larger.",
            Topic.COMPARISON,
            "yes" if yes else "no",
            trap=words == _SMALLER,
        )


def _across(truth: Truth, one: Concept, other: Concept) -> Iterator[Asked]:
    """Yield comparisons of the largest findings of two kinds."""
    mine, others = (truth.findings[c.found(truth)[0]].size_mm for c in (one, other))
    if not clearly_larger(max(mine, others), min(mine, others)):
        return
    first, second = (f"{'largest ' if len(c.found(truth)) > 1 else ''}{c.own}" for c in (one, other))
    large = KINDS[(one if mine > others else other).kinds[0]].summary
    for words, yes in ((_LARGER, mine > others), (_SMALLER, mine < others)):
        yield Asked(
            (
                f"Is the {first} {words} than the {second}?",
                f"(Compared with|Compared to) the {second}, is the {first} {words}?",
            ),
            f"{'Yes' if yes else 'No'}, the {large} is larger.",
            Topic.COMPARISON,
            "yes" if yes else "no",
            trap=words == _SMALLER,
        )
    yield Asked(
        (
            f"(Which|What) is {_LARGER}, the {first} or the {second}?",
            f"Which of the two is {_LARGER}: the {first} or the {second}?",
            f"Is the {first} or the {second} {_LARGER}?",
        ),
        f"The {large}.",
        Topic.COMPARISON,
        large,
        trap=mine < others,
    )
