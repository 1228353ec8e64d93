"""What can be asked about findings: whether, on which side, how many, how large, where."""

from __future__ import annotations

from collections.abc import Iterator

from medvl.embedded.asked import NOT_ASSESSABLE, NUMBERS, Asked, Topic
from medvl.embedded.facts import size_in_words
from medvl.embedded.phrasing import CONCEPTS, Concept, organ_words, place
from medvl.embedded.truth import Coverage, FindingKind, Truth
from medvl.embedded.words import NOUNS, PAIRS, clearly_larger, outside_clause, rounded_mm, side_of

_SEE = "(Is there|Do you see|Can you see|Does the patient have|Does this patient have|Does the (CT|scan) show)"
_THRESHOLD_MM = 5


def ask_findings(truth: Truth) -> Iterator[Asked]:
    """Yield everything to ask about findings."""
    for concept in CONCEPTS:
        yield from _presence(truth, concept)
        if concept.sided:
            yield from _side(truth, concept)
        if concept.many:
            yield from _number(truth, concept)
        if FindingKind.SPLENOMEGALY not in concept.kinds:
            yield from _size(truth, concept)
    yield from _organ(truth)
    yield from _comparison(truth)


def outside_answer(organs: tuple[str, ...]) -> str:
    """Return the answer to what nobody can see."""
    return f"It {NOT_ASSESSABLE}: {outside_clause(organs)}."


def where(concept: Concept, organs: list[str]) -> str:
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
        patterns.append(f"(Are there|Do you see|Can you see|Does the (CT|scan) show) (any|) {concept.many}?")
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
            patterns.append(f"(Are there|Do you see|Can you see) (any|) {concept.bare_many} {at}?")
        if concept.sided:
            some = "" if concept.one.startswith("(hydro") else "a "
            patterns.append(f"{_SEE} {some}{side}(-sided|) {concept.sided}?")
        if not concept.pleural:
            patterns.append(f"Does the {organ_words(organ)} (have|contain|show) {concept.a}?")
        yield from _whether(truth, concept, (organ,), tuple(patterns))


def _whether(truth: Truth, concept: Concept, organs: tuple[str, ...], patterns: tuple[str, ...]) -> Iterator[Asked]:
    """Yield a question for the presence of a concept in any of some organs, when it has one answer."""
    having = _with(truth, concept)
    found = [organ for organ in having if organ in organs]
    outside = _outside(truth, organs)
    patterns = tuple(pattern.replace("(any|) ", "(any |)") for pattern in patterns)
    if found:
        said = "the spleen is enlarged" if FindingKind.SPLENOMEGALY in concept.kinds else where(concept, found)
        yield Asked(patterns, f"Yes, {said}.", Topic.PRESENCE, "yes")
    elif outside == organs:
        yield Asked(patterns, outside_answer(outside), Topic.ASSESSABILITY, NOT_ASSESSABLE)
    elif not outside:
        yield Asked(patterns, _no(truth, concept, organs), Topic.PRESENCE, "no", trap=_is_trap(truth, concept))


def _no(truth: Truth, concept: Concept, organs: tuple[str, ...]) -> str:
    if having := _with(truth, concept):
        return f"No, only {where(concept, having)}."
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
        f"(On which|Which) side has (the|a) {concept.sided}?",
        f"Is the {concept.own} (on the left or (on |)the right|on the right or (on |)the left)?",
        f"Is the {concept.own} (left or right|right or left|left, right or bilateral)?",
        f"Is the {concept.own} left-sided(, right-sided or bilateral| or right-sided)?",
        f"(Where|Which side): {concept.own}, (left, right or both|left or right)?",
        f"(Which|What) side does the {concept.own} lie on?",
        f"(Tell me|What is|Name) the side of the {concept.own}?",
    )
    yield Asked(patterns, f"{expected.capitalize()}.", Topic.SIDE, expected, trap=expected == "both")


def _number(truth: Truth, concept: Concept) -> Iterator[Asked]:
    places: list[tuple[str | None, str, str, str]] = []
    if _settled(truth, concept):
        places.append((None, "", concept.many, concept.own))
    if concept.sided or not places:
        places += [
            (organ, f" {place(concept, organ)}", concept.bare_many, concept.bare)
            for organ in concept.organs
            if truth.seen(organ)
        ]
    for organ, at, many, _ in places:
        number = len(concept.found(truth, organ))
        if number >= len(NUMBERS):
            continue
        patterns = (
            f"How many {many} (are there|are present|are visible|can you see|do you see|are seen){at}?",
            f"(What is|Tell me|Give) the number of {many}{at}?",
            f"(Count|Please count) the {many}{at}.",
            f"Number of {many}{at}?",
        )
        yield Asked(patterns, f"{NUMBERS[number].capitalize()}.", Topic.NUMBER, str(number), trap=number > 1)


def _size(truth: Truth, concept: Concept) -> Iterator[Asked]:
    for organ in concept.organs:
        found = concept.found(truth, organ)
        if not found:
            continue
        finding = truth.findings[found[0]]
        which = "" if len(found) == 1 else "largest "
        name, at = f"{which}{concept.bare}", place(concept, organ)
        patterns = [f"the {name} {at}"]
        if concept.sided:
            patterns.append(f"the {which}{side_of(organ)}(-sided|) {concept.sided}")
        if len(concept.found(truth)) == len(found):
            patterns.append(f"the {which}{concept.own}")
        said = size_in_words(finding)
        answer = f"About {said} mm." if isinstance(said, int) else f"{said.capitalize()}."
        yield Asked(tuple(_how_large(patterns, concept)), answer, Topic.SIZE, str(said), closed=False)
        if not concept.pleural and FindingKind.VERTEBRAL_FRACTURE not in concept.kinds:
            yield from _thresholds(patterns, finding.size_mm)


def _how_large(names: list[str], concept: Concept) -> Iterator[str]:
    for name in names:
        if FindingKind.VERTEBRAL_FRACTURE in concept.kinds:
            yield f"(How much height is lost in|What is the height loss of|How large is the height loss of) {name}?"
            continue
        yield f"How (large|big) is {name}?"
        yield f"What is the size of {name}?"
        yield f"(What size is|Give the size of|Tell me the size of) {name}?"
        if not concept.pleural:
            yield f"(What is the diameter of|What does|Measure|How many mm is) {name}?".replace("|What does", "")


def _thresholds(names: list[str], size_mm: float) -> Iterator[Asked]:
    """Yield comparisons with thresholds that the size is clear of, two below and two above."""
    grid = range(_THRESHOLD_MM, 2 * rounded_mm(size_mm) + 60, _THRESHOLD_MM)
    below = [limit for limit in grid if clearly_larger(size_mm, limit)]
    above = [limit for limit in grid if limit - size_mm > max(0.25 * limit, 4.0)]
    measured = f"about {rounded_mm(size_mm)} mm"
    for limit in {*below[-1:], *below[len(below) // 2 :][:1], *above[:1], *above[len(above) // 4 :][:1]}:
        for words, larger in (("(larger|bigger|more|greater) than", True), ("(smaller|less) than", False)):
            yes = (size_mm > limit) is larger
            patterns = tuple(
                f"(Is {name} {words}|Does {name} measure {'more' if larger else 'less'} than) {_length(limit)}?"
                for name in names
            )
            answer = f"{'Yes' if yes else 'No'}, it measures {measured}."
            yield Asked(patterns, answer, Topic.SIZE, "yes" if yes else "no", trap=not larger)


def _length(size_mm: int) -> str:
    return f"({size_mm} mm|{size_mm} mm|{size_mm / 10:g} cm)"


_NAMED_BY_ORGAN = {
    "cyst": (FindingKind.LIVER_CYST, FindingKind.KIDNEY_CYST),
    "nodule": (FindingKind.LUNG_NODULE,),
    "mass": (FindingKind.LIVER_MASS,),
    "(stone|calculus)": (FindingKind.KIDNEY_STONE,),
    "hydronephrosis": (FindingKind.HYDRONEPHROSIS,),
    "aneurysm": (FindingKind.AORTIC_ANEURYSM,),
    "fracture": (FindingKind.VERTEBRAL_FRACTURE,),
    "enlargement": (FindingKind.SPLENOMEGALY,),
}
"""Nouns that do not say the organ."""


def _organ(truth: Truth) -> Iterator[Asked]:
    for noun, kinds in _NAMED_BY_ORGAN.items():
        organs = {f.organ for f in truth.findings if f.kind in kinds}
        possible = {o for c in CONCEPTS for o in c.organs if c.kinds[0] in kinds and len(c.kinds) == 1}
        if len(organs) > 1 or _outside(truth, tuple(possible)):
            continue
        name = NOUNS[organs.pop()] if organs else None
        patterns = (
            f"Which organ (has|contains|shows) (a|the) {noun}?",
            f"(In which|In what) organ is the {noun}(| located)?",
            f"Where is the {noun}(| located)?",
            f"(What organ|Which structure) (has|contains|shows) (a|the) {noun}?",
            f"(The|A) {noun} is in which organ?",
            f"(Name|Tell me) the organ with the {noun}.",
        )
        answer = f"The {name}." if name else "None."
        yield Asked(
            tuple(p.replace("(a|the) hydro", "(|the )hydro") for p in patterns), answer, Topic.ORGAN, name or "none"
        )


def _comparison(truth: Truth) -> Iterator[Asked]:
    for concept in CONCEPTS:
        found = [(o, concept.found(truth, o)) for o in concept.organs]
        if len(found) < 2 or not all(indices for _, indices in found):
            continue
        sizes = {organ: truth.findings[indices[0]].size_mm for organ, indices in found}
        large = max(sizes, key=lambda organ: sizes[organ])
        if not clearly_larger(sizes[large], min(sizes.values())):
            continue
        organ_noun = "side" if concept.pleural else {"lung_right": "lung"}.get(concept.organs[0], "kidney")
        name = f"The {side_of(large)} {organ_noun}." if organ_noun != "side" else f"The {side_of(large)}."
        larger = "(larger|bigger)"
        patterns = (
            f"Which {organ_noun} has the ({larger}|largest) {concept.bare}?",
            f"(In which|On which) {organ_noun} is the ({larger}|largest) {concept.bare}?".replace(
                "(In which|On which)", "On which" if concept.pleural else "In which"
            ),
            f"(Where|On which side) is the ({larger}|largest) {concept.own}(, left or right|)?",
            f"Is the {larger} {concept.own} (on the left or on the right|on the right or on the left)?",
            f"(Which|What) side has the ({larger}|largest) {concept.own}?",
            f"The ({larger}|largest) {concept.own} is on which side?",
        )
        yield Asked(patterns, name, Topic.COMPARISON, str(side_of(large)))
        for first, second in (concept.organs, concept.organs[::-1]):
            yield from _larger_than(concept, first, second, sizes)


def _larger_than(concept: Concept, first: str, second: str, sizes: dict[str, float]) -> Iterator[Asked]:
    one, other = side_of(first), side_of(second)
    noun = "" if concept.pleural else f" {NOUNS[second].removeprefix(f'{other} ')}"
    for words, yes in (
        ("(larger|bigger)", sizes[first] > sizes[second]),
        ("smaller", sizes[first] < sizes[second]),
    ):
        patterns = (
            f"Is the {concept.bare} {place(concept, first)} {words} than (the one|that) {place(concept, second)}?",
            f"Is the {one}(-sided|) {concept.sided} {words} than the {other}(-sided| one)?",
            f"Is the {concept.own} {words} (on the {one} than on the {other}|on the {one} side than on the {other})?",
            f"(Comparing|Compared) both sides, is the {one} {concept.sided} {words}?",
        )
        side = one if sizes[first] > sizes[second] else other
        answer = f"{'Yes' if yes else 'No'}, the {side} one is larger."
        yield Asked(patterns, answer, Topic.COMPARISON, "yes" if yes else "no", trap=words == "smaller" and bool(noun))
