"""From results to figures: each answer adds to the rows that it speaks to, and each row is one figure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from medvl.embedded.asked import Topic
from medvl.evaluation.items import Answered, Item, Reported, Segmented
from medvl.evaluation.records import Record
from medvl.evaluation.statistics import Estimate, Observation, median, ratio

ALL = "all"
SIZE_TOLERANCE_MM = 5.0
"""Step to which reports and answers round."""
_SECTIONS = {
    "name": "masks by class name",
    "text": "findings by text",
    "report": "findings of reports",
    "point": "points",
    "box": "box",
}


@dataclass(frozen=True, slots=True)
class Row:
    """What a figure is about.

    Attributes
    ----------
    statistic
        A mean or another ratio of sums, a proportion of items, or a median.
    """

    section: str
    metric: str
    group: str
    statistic: Literal["ratio", "proportion", "median"] = "ratio"


@dataclass(frozen=True, slots=True)
class Figure:
    """A row's figure for one subject in one condition."""

    row: Row
    subject: str
    condition: str
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class _Part:
    """What one item adds to a row."""

    row: Row
    numerator: float
    denominator: float = 1.0
    items: int = 1


def figures(records: Iterable[Record]) -> list[Figure]:
    """Return every figure that results support, by subject, condition and row in order of their first appearance."""
    parts: dict[tuple[str, str, Row], list[Observation]] = defaultdict(list)
    for record in records:
        for item in record.items:
            for part in _parts(item, record):
                parts[record.subject, record.condition, part.row].append(
                    Observation(record.case, part.numerator, part.denominator, part.items)
                )
    return [
        Figure(row, subject, condition, _estimate(row, observations))
        for (subject, condition, row), observations in parts.items()
    ]


def _estimate(row: Row, observations: list[Observation]) -> Estimate:
    if row.statistic == "median":
        return median((o.case, o.numerator) for o in observations)
    return ratio(observations, proportion=row.statistic == "proportion")


def _parts(item: Item, record: Record) -> Iterator[_Part]:
    if isinstance(item, Reported):
        yield from _of_report(item)
    elif isinstance(item, Answered):
        yield from _of_answer(item)
    elif record.task.startswith("real"):
        yield from _of_mask(item, f"real CT {record.case}", (item.object,))
    else:
        groups = (ALL, item.object) if item.prompt in {"name", "text", "report"} else (f"{item.kind}s",)
        yield from _of_mask(item, _SECTIONS[item.prompt], groups)


def _of_report(item: Reported) -> Iterator[_Part]:
    for kind in (ALL, *dict.fromkeys((*item.wanted, *item.stated))):
        wanted, stated, matched = (
            sum(counts.values()) if kind == ALL else counts.get(kind, 0)
            for counts in (item.wanted, item.stated, item.matched)
        )
        yield _Part(Row("reports", "finding precision", kind), matched, stated, stated)
        yield _Part(Row("reports", "finding recall", kind), matched, wanted, wanted)
        yield _Part(Row("reports", "finding F1", kind), 2 * matched, stated + wanted)
        if kind == ALL:
            yield _Part(Row("reports", "invented findings per report", ALL), stated - matched)
    yield _Part(Row("reports", "side right, of findings named", ALL), item.side_right, item.sided, item.sided)
    yield _Part(Row("reports", "unreadable sentences per report", ALL), item.unread)
    for error_mm in item.errors_mm:
        yield _Part(Row("reports", "size error, median mm", ALL, "median"), error_mm)


def _of_answer(item: Answered) -> Iterator[_Part]:
    metric = "closed, accuracy" if item.closed else "open, share right"
    for group in (ALL, item.topic, *([f"{item.topic}, of several"] if item.several else [])):
        yield _Part(Row("questions", metric, group, "proportion"), item.right)
    if item.closed and item.topic == Topic.SIDE.value:
        yield _Part(Row("questions", "laterality, accuracy", ALL, "proportion"), item.right)
        yield _Part(Row("questions", "left and right confused", ALL, "proportion"), item.mirrored)
    if item.topic == Topic.SIZE.value and not item.closed:
        near = item.right or (item.error_mm is not None and item.error_mm <= SIZE_TOLERANCE_MM)
        yield _Part(Row("questions", f"size within {SIZE_TOLERANCE_MM:g} mm", ALL, "proportion"), near)


def _of_mask(item: Segmented, section: str, groups: tuple[str, ...]) -> Iterator[_Part]:
    prompted = f", {_way(item)}" if item.prompt in {"point", "box"} else ""
    for group in groups:
        if item.dice is None:
            yield _Part(Row(section, f"absent, not found{prompted}", group, "proportion"), not item.found)
            continue
        yield _Part(Row(section, f"Dice{prompted}", group), item.dice)
        if item.hd95_mm is not None:
            yield _Part(Row(section, f"HD95 mm{prompted}", group), item.hd95_mm)
        if not prompted:
            yield _Part(Row(section, "present, found", group, "proportion"), item.found)


def _way(item: Segmented) -> str:
    if item.prompt == "box":
        return "box"
    return "1 click" if item.clicks == 1 else f"{item.clicks} clicks"
