"""Figures as a table for people: plain text or Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

from medvl.evaluation.cases import Condition
from medvl.evaluation.comparison import Comparison
from medvl.evaluation.figures import ALL, Figure, Row
from medvl.evaluation.statistics import Estimate

_HEAD = ("figure", "of", "value", "95 % interval", "n", "cases", "empty", "shuffled")
_NOTHING = "-"

Line = tuple[str, ...]
Layout = Callable[[Sequence[Line]], str]


def plain(lines: Sequence[Line]) -> str:
    """Return lines of cells with aligned columns, the first line as head."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    aligned = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    ]
    return "\n".join([aligned[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *aligned[1:]])


def markdown(lines: Sequence[Line]) -> str:
    """Return lines of cells as a Markdown table, the first line as head."""
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, f"|{' --- |' * len(lines[0])}", *body])


def table(figures: Sequence[Figure], layout: Layout) -> str:
    """Return one table for each subject and section, each figure beside its controls."""
    blocks = []
    for subject in dict.fromkeys(figure.subject for figure in figures):
        estimates = {(f.condition, f.row): f.estimate for f in figures if f.subject == subject}
        rows = ordered(row for condition, row in estimates if condition == Condition.OWN.value)
        for section in dict.fromkeys(row.section for row in rows):
            lines = [_line(row, estimates) for row in rows if row.section == section]
            blocks.append(f"{subject}: {section}\n\n{layout([_HEAD, *lines])}\n")
    return "\n".join(blocks)


def comparison_table(comparison: Comparison, layout: Layout) -> str:
    """Return how two subjects agree."""
    values = asdict(comparison)
    first, second = values.pop("first"), values.pop("second")
    lines = [(name.replace("_", " "), number(value)) for name, value in values.items()]
    return f"{first} against {second}\n\n{layout([('what', 'value'), *lines])}\n"


def ordered(rows: Iterable[Row]) -> list[Row]:
    """Return rows by section and metric in order of appearance; the figure over all before those of its groups."""
    given = list(rows)
    sections = list(dict.fromkeys(row.section for row in given))
    metrics = list(dict.fromkeys((row.section, row.metric) for row in given))
    return sorted(
        given,
        key=lambda r: (sections.index(r.section), metrics.index((r.section, r.metric)), r.group != ALL, r.group),
    )


def _line(row: Row, estimates: dict[tuple[str, Row], Estimate]) -> Line:
    own = estimates[Condition.OWN.value, row]
    interval = f"{number(own.low)} to {number(own.high)}" if own.low is not None else _NOTHING
    controls = (estimates.get((condition.value, row)) for condition in (Condition.EMPTY, Condition.SHUFFLED))
    beside = (number(control.value) if control else _NOTHING for control in controls)
    return (row.metric, row.group, number(own.value), interval, str(own.n), str(own.cases), *beside)


def number(value: float | None) -> str:
    """Return a number as tables show it."""
    if value is None:
        return _NOTHING
    return str(value) if isinstance(value, int) else f"{value:.3f}" if abs(value) < 9.9995 else f"{value:.1f}"
