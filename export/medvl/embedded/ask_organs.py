"""What can be asked about organs: whether they are normal, there, removed, within the scan; what they show."""

from __future__ import annotations

from collections.abc import Iterator

from medvl.embedded.asked import NOT_ASSESSABLE, NUMBERS, Asked, Topic, outside_answer
from medvl.embedded.facts import ReportFacts, facts
from medvl.embedded.phrasing import organ_words
from medvl.embedded.report import describe_organs
from medvl.embedded.truth import Coverage, FindingKind, Truth
from medvl.embedded.words import (
    KINDS,
    NOUNS,
    OPERATIONS,
    PAIRS,
    SYSTEMS,
    article,
    is_or_are,
    listed,
    noun_phrase,
    operation,
    outside_clause,
)


def ask_organs(truth: Truth) -> Iterator[Asked]:
    """Yield everything to ask about organs."""
    said = facts(truth)
    for organ in NOUNS:
        yield from _normality(truth, said, (organ,))
        yield from _assessability(truth, organ)
        if organ in OPERATIONS:
            yield from _surgery(truth, organ)
    for pair in PAIRS.values():
        yield from _normality(truth, said, pair)
    yield from _whole(said)
    yield from _how_many_kidneys(truth)
    yield from _which_removed(truth)


def _normality(truth: Truth, said: ReportFacts, organs: tuple[str, ...]) -> Iterator[Asked]:
    coverages = {truth.organs[organ] for organ in organs}
    noun = organ_words(organs[0]) if len(organs) == 1 else noun_phrase(organs)
    is_are = is_or_are(noun_phrase(organs))
    do = "Do" if is_are == "are" else "Does"
    closed = (
        f"{is_are.capitalize()} the {noun} (normal|unremarkable|healthy|okay|{_state(organs)})?",
        f"{do} the {noun} (look|appear|seem) (normal|unremarkable|healthy)?",
        f"Would you call the {noun} normal?",
        f"The {noun}: normal?",
    )
    asked_abnormal = (
        f"{is_are.capitalize()} the {noun} (abnormal|diseased)?",
        f"(Is there|Do you see|Can you see) (an abnormality|anything abnormal|any abnormality) (in|of) the {noun}?",
        f"(Is anything|Is something) wrong with the {noun}?",
        f"Does the (scan|CT) show (an abnormality|anything abnormal) in the {noun}?",
    )
    opened = (
        f"(Describe|Please describe|Report on|Comment on|Assess) the {noun}.",
        f"What (do you see|is seen|can be seen) in the {noun}?",
        f"(What is|What's) (abnormal|wrong) (in|with) the {noun}?",
        f"What about the {noun}?",
        f"How {do.lower()} the {noun} (look|appear)?",
        f"What are the findings in the {noun}?",
        f"What does the (CT|scan) show (in|of) the {noun}?",
    )
    if coverages == {Coverage.OUTSIDE}:
        answer = outside_answer(organs)
        yield Asked((*closed, *asked_abnormal, *opened), answer, Topic.ASSESSABILITY, NOT_ASSESSABLE)
        return
    if Coverage.OUTSIDE in coverages:
        return
    description = describe_organs(said, organs)
    wrong = _what(said, organs)
    absent = Coverage.REMOVED in coverages
    yield Asked(opened, description, Topic.DESCRIPTION, description, closed=False, trap=absent or bool(wrong))
    if absent:
        return
    state = f"the {noun_phrase(organs)} {is_are} normal"
    yes, no = ("No", "no") if wrong else ("Yes", "yes"), ("Yes", "yes") if wrong else ("No", "no")
    for patterns, (word, expected) in ((closed, yes), (asked_abnormal, no)):
        reason = f"there is {wrong}" if wrong else state
        yield Asked(patterns, f"{word}, {reason}.", Topic.NORMALITY, expected)


def _state(organs: tuple[str, ...]) -> str:
    return next(system.state for system in SYSTEMS if organs[0] in system.organs)


def _what(said: ReportFacts, organs: tuple[str, ...]) -> str:
    """Return the kinds of what some organs show: ``a kidney cyst and a kidney stone``; empty for nothing."""
    kinds = {f.kind for f in said.findings if f.organ in organs}
    uncounted = {FindingKind.SPLENOMEGALY, FindingKind.HYDRONEPHROSIS}
    return listed(
        words.summary if kind in uncounted else f"{article(words.summary)} {words.summary}"
        for kind, words in KINDS.items()
        if kind in kinds
    )


def _assessability(truth: Truth, organ: str) -> Iterator[Asked]:
    noun, coverage = organ_words(organ), truth.organs[organ]
    is_are = is_or_are(NOUNS[organ]).capitalize()
    patterns = (
        f"Can the {noun} be (assessed|evaluated|seen|judged)?",
        f"{is_are} the {noun} (visible|assessable|included|shown|covered)?",
        f"{is_are} the {noun} (in|within|inside) the (field of view|scan|image|scanned region)?",
        f"(Can you see|Do you see|Can you assess|Can you evaluate) the {noun}?",
        f"Does the (scan|CT) (include|cover|show) the {noun}?",
        f"{'Were' if is_are == 'Are' else 'Was'} the {noun} (scanned|imaged|included)?",
    )
    if coverage is Coverage.OUTSIDE:
        yield Asked(patterns, f"No, {outside_clause([organ])}.", Topic.ASSESSABILITY, "no")
    elif coverage is Coverage.REMOVED:
        yield Asked(patterns, f"No, the {NOUNS[organ]} is absent.", Topic.ASSESSABILITY, "no", trap=True)
    else:
        yield Asked(patterns, "Yes.", Topic.ASSESSABILITY, "yes")


def _surgery(truth: Truth, organ: str) -> Iterator[Asked]:
    noun, coverage = organ_words(organ), truth.organs[organ]
    patterns = (
        f"Has the {noun} been (removed|resected|taken out)?",
        f"Is the {noun} (absent|missing|gone|removed)?",
        f"(Is there|Do you see) (a status after|evidence of|signs of) {operation(organ)}?",
        f"(Did the patient have|Has the patient had) a {operation(organ)}?",
        f"Status post {operation(organ)}?",
        f"(Was|Is) the {noun} (removed|surgically removed)?",
        f"Is the {noun} (still there|still present|present)?",
    )
    removed = coverage is Coverage.REMOVED
    if coverage is Coverage.OUTSIDE:
        yield Asked(patterns, outside_answer((organ,)), Topic.ASSESSABILITY, NOT_ASSESSABLE)
        return
    post = f"status post {operation(organ)}"
    yield Asked(patterns[:-1], f"Yes, {post}." if removed else "No.", Topic.SURGERY, "yes" if removed else "no")
    still = f"No, {post}." if removed else "Yes."
    yield Asked(patterns[-1:], still, Topic.SURGERY, "no" if removed else "yes", trap=True)


def _which_removed(truth: Truth) -> Iterator[Asked]:
    """Yield which organ was removed, when it is one or none."""
    removed = [organ for organ in NOUNS if truth.organs[organ] is Coverage.REMOVED]
    outside = [organ for organ in OPERATIONS if truth.organs[organ] is Coverage.OUTSIDE]
    if len(removed) > 1 or (outside and not removed):
        return
    patterns = (
        "(Which|What) organ (is missing|is absent|has been removed|was removed)?",
        "(Which|What) organ (was taken out|is gone)?",
        "Name the (missing|absent|removed) organ.",
        "(Which|What) organ (can no longer be seen|was resected)?",
    )
    name = NOUNS[removed[0]] if removed else None
    yield Asked(patterns, f"The {name}." if name else "None.", Topic.ORGAN, name or "none")


def _how_many_kidneys(truth: Truth) -> Iterator[Asked]:
    kidneys = PAIRS["kidneys"]
    if any(truth.organs[kidney] is Coverage.OUTSIDE for kidney in kidneys):
        return
    number = sum(truth.seen(kidney) for kidney in kidneys)
    patterns = (
        "How many kidneys (are there|are present|are visible|can you see|do you see|does the patient have)?",
        "(What is|Tell me) the number of kidneys?",
        "(Count|Please count) the kidneys.",
    )
    yield Asked(patterns, f"{NUMBERS[number].capitalize()}.", Topic.NUMBER, str(number), trap=number < 2)


def _whole(said: ReportFacts) -> Iterator[Asked]:
    """Yield questions about the whole study."""
    normal = (
        "Is (this|the) (CT|scan|study|examination) (normal|unremarkable)?",
        "Does the (CT|scan) look normal?",
        "(Everything|All) normal?",
    )
    abnormal = (
        "(Are there|Do you see|Can you see) any (abnormalities|findings|abnormal findings)?",
        "Is there (any abnormality|anything abnormal|something wrong)?",
        "Is (this|the) (CT|scan|study) abnormal?",
        "Does (this|the) (CT|scan) show any (abnormality|pathology)?",
    )
    if not said.assessable:
        yield Asked((*normal, *abnormal), f"It {NOT_ASSESSABLE}.", Topic.ASSESSABILITY, NOT_ASSESSABLE)
        return
    found = _what(said, tuple(NOUNS))
    missing = listed(f"status post {operation(organ)}" for organ in NOUNS if organ in said.absent)
    reason = f"there is {found}" if found else missing
    for patterns, yes in ((normal, not reason), (abnormal, bool(reason))):
        answer = f"{'Yes' if yes else 'No'}{', ' if reason else ''}{reason}."
        yield Asked(patterns, answer, Topic.NORMALITY, "yes" if yes else "no")
