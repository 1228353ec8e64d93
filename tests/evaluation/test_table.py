"""Tables say of each figure what it is."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from medvl.evaluation.comparison import Comparison
from medvl.evaluation.figures import Figure, Row
from medvl.evaluation.statistics import Estimate
from medvl.evaluation.table import Line, comparison_table, markdown, number, plain, table

HEAD = "figure | of | value | 95 % interval | n | cases | empty | shuffled"


def piped(lines: Sequence[Line]) -> str:
    return "\n".join(" | ".join(line) for line in lines)


def figure(row: Row, value: float | None, condition: str = "own", subject: str = "one") -> Figure:
    low, high = (None, None) if value is None else (value - 0.1, value + 0.2)
    return Figure(row, subject, condition, Estimate(value, low, high, 12, 7, None if value is None else "bootstrap"))


def test_every_figure_is_a_line_beside_its_controls():
    """By subject and section; that over all before those of its groups, by name; nothing is a dash."""
    dice = {group: Row("points", "Dice", group) for group in ("all", "adrenal", "zz", "liver")}
    distance = Row("points", "HD95 mm", "all")
    f1 = Row("reports", "finding F1", "all")
    found = [
        figure(dice["zz"], 0.5),
        figure(distance, 12.34),
        figure(dice["adrenal"], 0.25),
        figure(dice["all"], 0.375, "shuffled"),
        figure(dice["all"], 0.75),
        figure(dice["all"], 0.125, "empty"),
        figure(f1, None),
        figure(dice["liver"], 0.9, "empty"),
        figure(f1, 0.8, subject="two"),
    ]
    assert table(found, piped).splitlines() == [
        "one: points",
        "",
        HEAD,
        "Dice | all | 0.750 | 0.650 to 0.950 | 12 | 7 | 0.125 | 0.375",
        "Dice | adrenal | 0.250 | 0.150 to 0.450 | 12 | 7 | - | -",
        "Dice | zz | 0.500 | 0.400 to 0.700 | 12 | 7 | - | -",
        "HD95 mm | all | 12.3 | 12.2 to 12.5 | 12 | 7 | - | -",
        "",
        "one: reports",
        "",
        HEAD,
        "finding F1 | all | - | - | 12 | 7 | - | -",
        "",
        "two: reports",
        "",
        HEAD,
        "finding F1 | all | 0.800 | 0.700 to 1.000 | 12 | 7 | - | -",
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.12345, "0.123"), (10.0, "10.0"), (9.9996, "10.0"), (-12.34, "-12.3"), (3, "3"), (0.0, "0.000")],
)
def test_numbers_as_they_are_shown(value: float | None, shown: str):
    assert number(value) == shown


def test_both_layouts_say_the_same():
    """Columns side by side for people, bars for Markdown."""
    lines = [("figure", "of"), ("Dice", "all"), ("a longer name", "x")]
    assert plain(lines).splitlines() == [
        "figure         of",
        "------------------",
        "Dice           all",
        "a longer name  x",
    ]
    assert markdown(lines).splitlines() == [
        "| figure | of |",
        "| --- | --- |",
        "| Dice | all |",
        "| a longer name | x |",
    ]


def test_a_comparison_is_told_whole():
    same = Comparison("a", "b", 2, texts=5, identical_texts=4, masks=3, found_alike=2, mean_dice=0.75, least_dice=None)
    assert comparison_table(same, piped).splitlines() == [
        "a against b",
        "",
        "what | value",
        "cases | 2",
        "texts | 5",
        "identical texts | 4",
        "masks | 3",
        "found alike | 2",
        "mean dice | 0.750",
        "least dice | -",
    ]
