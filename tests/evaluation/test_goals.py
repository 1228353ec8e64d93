"""Each goal is about the figure that its words name, and says what is missing to it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from medvl.evaluation.figures import Figure, Row
from medvl.evaluation.goals import GOALS, Goal, goal_table
from medvl.evaluation.statistics import Estimate
from medvl.evaluation.table import Line

BY_WORDS = {goal.what: goal for goal in GOALS}
F1, INVENTED = BY_WORDS["report, finding F1"], BY_WORDS["invented findings per report"]


def test_every_goal_is_about_the_figure_that_it_names():
    """Section, metric and group, and the bound that users are told; one of them is from above."""
    assert {g.what: (g.row.section, g.row.metric, g.row.group, g.bound) for g in GOALS} == {
        "organs by class name, mean Dice": ("masks by class name", "Dice", "all", 0.90),
        "findings by referring text, mean Dice": ("findings by text", "Dice", "all", 0.75),
        "one point, organ Dice": ("points", "Dice, 1 click", "organs", 0.85),
        "one point, lesion Dice": ("points", "Dice, 1 click", "findings", 0.75),
        "one box, organ Dice": ("box", "Dice, box", "organs", 0.90),
        "three corrective clicks, organ Dice": ("points", "Dice, 4 clicks", "organs", 0.93),
        "closed questions, accuracy": ("questions", "closed, accuracy", "all", 0.95),
        "laterality, accuracy": ("questions", "laterality, accuracy", "all", 1.0),
        "report, finding F1": ("reports", "finding F1", "all", 0.90),
        "invented findings per report": ("reports", "invented findings per report", "all", 0.05),
        "absent organ answered not found": ("masks by class name", "absent, not found", "all", 0.95),
        "present organ found": ("masks by class name", "present, found", "all", 0.98),
    }
    assert [g.what for g in GOALS if g.most] == ["invented findings per report"]


@pytest.mark.parametrize(
    ("most", "value", "missed_by"),
    [(False, 0.4, 0.1), (False, 0.5, 0.0), (False, 0.7, 0.0), (True, 0.7, 0.2), (True, 0.5, 0.0), (True, 0.4, 0.0)],
)
def test_a_goal_is_missed_on_one_side_only(most: bool, value: float, missed_by: float):
    """From below, or, where it is the most that is wanted, from above; the bound itself reaches it."""
    assert Goal("half", F1.row, 0.5, most).missed_by(value) == pytest.approx(missed_by)


def figure(row: Row, value: float | None, condition: str = "own", subject: str = "one") -> Figure:
    spread = 0.01
    low, high = (None, None) if value is None else (value - spread, value + spread)
    return Figure(row, subject, condition, Estimate(value, low, high, 9, 3, "bootstrap"))


def piped(lines: Sequence[Line]) -> str:
    return "\n".join(" | ".join(line) for line in lines)


def test_the_table_says_what_is_missing():
    """Each goal with the subject's own figure, then what it says of the empty and of the shuffled volume."""
    found = [
        figure(INVENTED.row, 0.04),
        figure(F1.row, 0.8),
        figure(F1.row, 0.2, "shuffled"),
        figure(F1.row, 0.1, "empty"),
        figure(F1.row, 0.95, subject="two"),
        figure(INVENTED.row, 0.25, subject="two"),
        figure(BY_WORDS["one box, organ Dice"].row, None),
    ]
    head = "figure | goal | measured | 95 % interval | missed by | empty | shuffled"
    assert goal_table(found, piped).splitlines() == [
        "one: goals of the phantom checkpoint",
        "",
        head,
        "report, finding F1 | >= 0.90 | 0.800 | 0.790 to 0.810 | 0.100 | 0.100 | 0.200",
        "invented findings per report | <= 0.05 | 0.040 | 0.030 to 0.050 | reached | - | -",
        "",
        "two: goals of the phantom checkpoint",
        "",
        head,
        "report, finding F1 | >= 0.90 | 0.950 | 0.940 to 0.960 | reached | - | -",
        "invented findings per report | <= 0.05 | 0.250 | 0.240 to 0.260 | 0.200 | - | -",
    ]
