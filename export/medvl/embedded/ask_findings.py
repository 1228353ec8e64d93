"""What can be asked about findings: whether there are any, on which side, how many, in which organ."""

from __future__ import annotations

from collections.abc import Iterator

from medvl.embedded.asked import NOT_ASSESSABLE, NUMBERS, Asked, Topic, outside_answer
from medvl.embedded.phrasing import CONCEPTS, Concept, organ_words, place
from medvl.embedded.truth import Coverage, FindingKind, Truth
from medvl.embedded.words import KINDS, NOUNS, PAIRS, article, side_of

_SEE = "(Is there|Do you see|Can you see|Does the patient have|Does this patient have|Does the (CT|scan) show)"


def ask_findings(truth: Truth) -> Iterator[Asked]:
    """Yield everything to ask about findings."""
    for concept in CONCEPTS:
        yield from _presence(truth, concept)
        if concept.sided:
            yield from _side(truth, concept)
        if concept.many:
            yield from _number(truth, concept)
    yield from _organ(truth)


def _where(concept: Concept, organs: list[str]) -> str:
    """Return where findings are, as answers say it: ``in the liver``, ``on both sides``."""
    if len(organs) == 2:
        plural = next(noun for noun, pair in PAIRS.items() if organs[0] in pair)
        return "on both sides" if concept.pleural else f"in both {plural}"
    return f"on the {side_of(organs[0])}" if concept.pleural else f"in the {NOUNS[organs[0]]}"


def _with(truth: Truth, concept: Concept) -> list[str]:
    return [organ for organ in concept.organs if concept.found(truth, organ)]


def _outside(truth: Truth, organs: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(organ for organ in organs if truth.organs[organ] is Coverage.OUTSIDE)


def _settled(truth: Truth, concept: Concept) -> bool:
    """Whether what is known of a concept is all that there is: nothing of its organs is beyond the field of view."""
    return not _outside(truth, concept.organs)


def _presence(truth: Truth, concept: Concept) -> Iterator[Asked]:
    patterns = [
        f"{_SEE} {concept.one}?",
        f"Is {concept.one} (present|visible|seen)?",
        f"(Is there any (sign|evidence) of|Any (sign|evidence) of|Any|Is there any) {concept.own}?",
    ]
    if concept.many:
        patterns.append(f"(Are there|Do you see|Can you see|Does the (CT|scan) show) (any |){concept.many}?")
    if not concept.sided:
        patterns += _as_state(concept, concept.organs[0])
    yield from _whether(truth, concept, concept.organs, tuple(patterns))
    if FindingKind.SPLENOMEGALY in concept.kinds:
        return
    for organ in concept.organs:
        at, side = place(concept, organ), side_of(organ)
        patterns = [
            f"{_SEE} {concept.a} {at}?",
            f"Is {concept.a} (present|visible|seen) {at}?",
            f"(Any|Is there any) {concept.bare} {at}?",
        ]
        if concept.many:
            patterns.append(f"(Are there|Do you see|Can you see) (any |){concept.bare_many} {at}?")
        if concept.sided:
            some = "" if concept.one.startswith("(hydro") else "a "
            patterns.append(f"{_SEE} {some}{side}(-sided|) {concept.sided}?")
            patterns += _as_state(concept, organ)
        if not concept.pleural:
            patterns.append(f"Does the {organ_words(organ)} (have|contain|show) {concept.a}?")
        yield from _whether(truth, concept, (organ,), tuple(patterns))


def _as_state(concept: Concept, organ: str) -> list[str]:
    """Return patterns that ask for a finding as a state of its organ."""
    if not concept.state:
        return []
    noun = organ_words(organ)
    return [f"Is the {noun} {concept.state}?", f"Does the {noun} (look|appear|seem) {concept.state}?"]


def _whether(truth: Truth, concept: Concept, organs: tuple[str, ...], patterns: tuple[str, ...]) -> Iterator[Asked]:
    """Yield a question for the presence of a concept in any of some organs, when it has one answer."""
    having = _with(truth, concept)
    found = [organ for organ in having if organ in organs]
    outside = _outside(truth, organs)
    if found:
        said = "the spleen is enlarged" if FindingKind.SPLENOMEGALY in concept.kinds else _where(concept, found)
        yield Asked(patterns, f"Yes, {said}.", Topic.PRESENCE, "yes")
    elif outside == organs:
        yield Asked(patterns, outside_answer(outside), Topic.ASSESSABILITY, NOT_ASSESSABLE)
    elif not outside:
        yield Asked(patterns, _no(truth, concept, organs), Topic.PRESENCE, "no", trap=_is_trap(truth, concept))


def _no(truth: Truth, concept: Concept, organs: tuple[str, ...]) -> str:
    if having := _with(truth, concept):
        return f"No, only {_where(concept, having)}."
    removed = [organ for organ in organs if truth.organs[organ] is Coverage.REMOVED]
    if len(removed) == len(organs) and not concept.pleural:
        return f"No, the {NOUNS[removed[0]]} is absent."
    return "No."


def _is_trap(truth: Truth, concept: Concept) -> bool:
    """Whether something of that name is elsewhere in this phantom."""
    return any(other.found(truth) for other in CONCEPTS if other.bare == concept.bare)


def _side(truth: Truth, concept: Concept) -> Iterator[Asked]:
    if not _settled(truth, concept):
        return
    sides = [str(side_of(organ)) for organ in _with(truth, concept)]
    expected = ("neither", *sides)[-1] if len(sides) < 2 else "both"
    patterns = (
        f"(On which|On what|Which|What) side is the {concept.own}?",
        f"(On which|Which) side has the {concept.sided}?",
        f"Is the {concept.own} (on the left or (on |)the right|on the right or (on |)the left)?",
        f"Is the {concept.own} (left or right|right or left|left, right or bilateral)?",
        f"Is the {concept.own} left-sided(, right-sided or bilateral| or right-sided)?",
        f"(Where|Which side): {concept.own}, (left, right or both|left or right)?",
        f"(Which|What) side does the {concept.own} lie on?",
        f"(Tell me|What is|Name) the side of the {concept.own}?",
    )
    yield Asked(patterns, f"{expected.capitalize()}.", Topic.SIDE, expected, trap=expected == "both")


def _number(truth: Truth, concept: Concept) -> Iterator[Asked]:
    if _settled(truth, concept):
        yield from _how_many(len(concept.found(truth)), concept.many, "")
    if concept.sided:
        for organ in filter(truth.seen, concept.organs):
            yield from _how_many(len(concept.found(truth, organ)), concept.bare_many, f" {place(concept, organ)}")


def _how_many(number: int, many: str, at: str) -> Iterator[Asked]:
    if number >= len(NUMBERS):
        return
    patterns = (
        f"How many {many} (are there|are present|are visible|can you see|do you see|are seen){at}?",
        f"(What is|Tell me|Give) the number of {many}{at}?",
        f"(Count|Please count) the {many}{at}.",
        f"(Number of|How many) {many}{at}?",
    )
    yield Asked(patterns, f"{NUMBERS[number].capitalize()}.", Topic.NUMBER, str(number), trap=number > 1)


_NAMED_BY_ORGAN = {
    "cyst": (FindingKind.LIVER_CYST, FindingKind.KIDNEY_CYST),
    "nodule": (FindingKind.LUNG_NODULE,),
    "mass": (FindingKind.LIVER_MASS,),
    "stone": (FindingKind.KIDNEY_STONE,),
    "hydronephrosis": (FindingKind.HYDRONEPHROSIS,),
    "aneurysm": (FindingKind.AORTIC_ANEURYSM,),
    "fracture": (FindingKind.VERTEBRAL_FRACTURE,),
}
"""Nouns that do not say the organ."""


def _organ(truth: Truth) -> Iterator[Asked]:
    for noun, kinds in _NAMED_BY_ORGAN.items():
        some = noun if noun == "hydronephrosis" else f"({article(noun)}|the) {noun}"
        patterns = (
            f"(Which|What) (organ|structure) (has|contains|shows) {some}?",
            f"(In which|In what) organ is the {noun}(| located)?",
            f"Where is the {noun}(| located)?",
            f"Where (is there|do you see|can you see) {some}?",
            f"The {noun} is in (which|what) organ?",
            f"(Name|Tell me) the organ with the {noun}.",
        )
        yield from _which(truth, patterns, kinds)
    yield from _which(
        truth,
        (
            "(Which|What) organ is (enlarged|too large|too big)?",
            "(Name|Tell me) the enlarged organ.",
            "What is enlarged?",
        ),
        (FindingKind.SPLENOMEGALY,),
    )


def _which(truth: Truth, patterns: tuple[str, ...], kinds: tuple[FindingKind, ...]) -> Iterator[Asked]:
    """Yield which organ has findings of some kinds, when it is one, or none and all were seen."""
    organs = {f.organ for f in truth.findings if f.kind in kinds}
    outside = _outside(truth, tuple(organ for kind in kinds for organ in KINDS[kind].organs))
    if len(organs) > 1 or outside:
        return
    name = NOUNS[organs.pop()] if organs else None
    yield Asked(patterns, f"The {name}." if name else "None.", Topic.ORGAN, name or "none")
