"""Whether what is served equals the torch reference: the same questions and prompts, answered by both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from medvl.evaluation.cases import Condition
from medvl.evaluation.items import Answered, Item, Reported, Segmented
from medvl.evaluation.metrics import dice
from medvl.evaluation.records import Record

LEAST_ALIKE = 0.99
"""Share of texts that are the same and of masks that both find, and mean Dice of masks, of two subjects that agree."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two subjects agree.

    Attributes
    ----------
    cases
        That both answered.
    texts, identical_texts
        Reports and answers, and how many of them are the same to the letter.
    masks, mean_dice, least_dice
        Masks of the same prompt, and the Dice between the two; two that are empty agree. None without any.
    found_alike
        Masks of which both say that there is one, or that there is none.
    """

    first: str
    second: str
    cases: int
    texts: int
    identical_texts: int
    masks: int
    found_alike: int
    mean_dice: float | None
    least_dice: float | None

    @property
    def agrees(self) -> bool:
        """Whether texts, what is found and masks are alike as far as :data:`LEAST_ALIKE`; so is nothing to compare."""
        found = self.identical_texts >= LEAST_ALIKE * self.texts and self.found_alike >= LEAST_ALIKE * self.masks
        return found and (self.mean_dice is None or self.mean_dice >= LEAST_ALIKE)


def compare(records: Iterable[Record], first: str, second: str) -> Comparison:
    """Compare two subjects by name on the cases that both have seen; what stands in for a case is left out."""
    own: dict[str, dict[tuple[str, str], Record]] = {first: {}, second: {}}
    for record in records:
        if record.subject in own and record.condition == Condition.OWN.value:
            own[record.subject][record.case, record.task] = record
    both = [key for key in own[first] if key in own[second]]
    pairs = [pair for key in both for pair in _pairs(own[first][key].items, own[second][key].items)]
    texts = [_text(a) == _text(b) for a, b in pairs if not isinstance(a, Segmented)]
    masks = [(a, b) for a, b in pairs if isinstance(a, Segmented) and isinstance(b, Segmented)]
    overlaps = [dice(a.voxels(), b.voxels()) for a, b in masks]
    return Comparison(
        first=first,
        second=second,
        cases=len({case for case, _ in both}),
        texts=len(texts),
        identical_texts=sum(texts),
        masks=len(masks),
        found_alike=sum(a.found == b.found for a, b in masks),
        mean_dice=sum(overlaps) / len(overlaps) if overlaps else None,
        least_dice=min(overlaps, default=None),
    )


def is_compared(item: Item) -> bool:
    """Whether two subjects are asked this alike: a second click follows from the first mask."""
    return not isinstance(item, Segmented) or item.clicks <= 1


def _pairs(first: Iterable[Item], second: Iterable[Item]) -> Iterator[tuple[Item, Item]]:
    """Yield what both were asked alike."""
    others = {_asked(item): item for item in second}
    for item in first:
        if is_compared(item) and (other := others.get(_asked(item))) is not None:
            yield item, other


def _asked(item: Item) -> tuple[str, ...]:
    if isinstance(item, Segmented):
        return item.type, item.prompt, str(item.clicks), item.asked
    return (item.type, item.question) if isinstance(item, Answered) else (item.type,)


def _text(item: Item) -> str:
    return item.text if isinstance(item, Reported) else item.answer if isinstance(item, Answered) else ""
