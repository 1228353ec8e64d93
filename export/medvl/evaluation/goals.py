"""What the phantom checkpoint is to reach on held-out phantoms, beside what it reaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medvl.evaluation.cases import Condition
from medvl.evaluation.figures import ALL, Figure, Row
from medvl.evaluation.table import Layout, Line, number


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on one figure, from below unless it is the ``most`` that is wanted."""

    what: str
    row: Row
    bound: float
    most: bool = False

    def missed_by(self, value: float) -> float:
        """Return how far a value is from the goal, 0 where it is reached."""
        return max(0.0, value - self.bound if self.most else self.bound - value)


def _share(section: str, metric: str) -> Row:
    return Row(section, metric, ALL, "proportion")


GOALS = (
    Goal("organs by class name, mean Dice", Row("masks by class name", "Dice", ALL), 0.90),
    Goal("findings by referring text, mean Dice", Row("findings by text", "Dice", ALL), 0.75),
    Goal("one point, organ Dice", Row("points", "Dice, 1 click", "organs"), 0.85),
    Goal("one point, lesion Dice", Row("points", "Dice, 1 click", "findings"), 0.75),
    Goal("one box, organ Dice", Row("box", "Dice, box", "organs"), 0.90),
    Goal("three corrective clicks, organ Dice", Row("points", "Dice, 4 clicks", "organs"), 0.93),
    Goal("closed questions, accuracy", _share("questions", "closed, accuracy"), 0.95),
    Goal("laterality, accuracy", _share("questions", "laterality, accuracy"), 1.0),
    Goal("report, finding F1", Row("reports", "finding F1", ALL), 0.90),
    Goal("invented findings per report", Row("reports", "invented findings per report", ALL), 0.05, most=True),
    Goal("absent organ answered not found", _share("masks by class name", "absent, not found"), 0.95),
    Goal("present organ found", _share("masks by class name", "present, found"), 0.98),
)


def goal_table(figures: Sequence[Figure], layout: Layout) -> str:
    """Return one table for each subject: goal, figure with its interval, by how much it is missed, and the controls."""
    blocks = []
    for subject in dict.fromkeys(figure.subject for figure in figures):
        found = {(f.condition, f.row): f.estimate for f in figures if f.subject == subject}
        lines: list[Line] = [("figure", "goal", "measured", "95 % interval", "missed by", "empty", "shuffled")]
        for goal in GOALS:
            own = found.get((Condition.OWN.value, goal.row))
            if own is None or own.value is None:
                continue
            missed = goal.missed_by(own.value)
            beside = (found.get((c.value, goal.row)) for c in (Condition.EMPTY, Condition.SHUFFLED))
            lines.append(
                (
                    goal.what,
                    f"{'<=' if goal.most else '>='} {goal.bound:.2f}",
                    number(own.value),
                    f"{number(own.low)} to {number(own.high)}",
                    number(missed) if missed else "reached",
                    *(number(estimate.value) if estimate else "-" for estimate in beside),
                )
            )
        blocks.append(f"{subject}: goals of the phantom checkpoint\n\n{layout(lines)}\n")
    return "\n".join(blocks)
