"""Figures are what they should be for subjects that are known: all right, nothing, and one that stops half-way."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import count

import numpy as np
import pytest

from medvl.contracts.errors import BackendUnavailable
from medvl.embedded.facts import seg_targets
from medvl.evaluation import evaluate as evaluate_module
from medvl.evaluation.comparison import compare
from medvl.evaluation.evaluate import Participant, Plan, evaluate
from medvl.evaluation.figures import Figure, figures
from medvl.evaluation.goals import GOALS
from medvl.evaluation.masks import of_report
from medvl.evaluation.records import Record, Records
from medvl.evaluation.table import markdown, plain, table

SEEDS = range(2, 8)
PLAN = Plan(seeds=SEEDS, mask_cases=5, control_cases=2, objects=1, texts=2)
LOWER_IS_BETTER = ("HD95", "invented", "unreadable", "size error", "left and right confused")


def results(tmp_path, contract, case, *subjects, plan: Plan = PLAN, told: list[str] | None = None) -> list[Record]:
    participants = [Participant(subject, "test", len(plan.seeds)) for subject in subjects]
    lines = [] if told is None else told
    with Records(tmp_path) as records:
        return evaluate(plan, participants, contract, records, make=case, tell=lines.append)


def values(found: Iterable[Figure], condition: str) -> dict[tuple[str, str, str], float]:
    return {
        (f.row.section, f.row.metric, f.row.group): f.estimate.value
        for f in found
        if f.condition == condition and f.estimate.value is not None
    }


def test_a_perfect_subject_is_right_everywhere(tmp_path, contract, case, perfect):
    """1 for every share and every Dice, 0 for every error; a size is as far off as reports round it."""
    found = figures(results(tmp_path, contract, case, perfect))
    own = values(found, "own")
    for (section, metric, group), value in own.items():
        if metric.startswith("size error"):
            assert value <= 2.5
        else:
            expected = 0.0 if metric.startswith(LOWER_IS_BETTER) else 1.0
            assert value == expected, (section, metric, group)
    sections = {section for section, _, _ in own}
    assert sections == {
        "reports",
        "questions",
        "masks by class name",
        "findings of reports",
        "findings by text",
        "points",
        "box",
    }
    for metric in ("finding F1", "size error, median mm"):
        assert ("reports", metric, "all") in own
    assert {goal.row for goal in GOALS} <= {figure.row for figure in found}
    assert {key for key in own if key[0] == "points" and key[1].startswith("Dice")} == {
        ("points", f"Dice, {clicks}", kind)
        for clicks in ("1 click", "2 clicks", "3 clicks", "4 clicks")
        for kind in ("organs", "findings")
    }


def test_its_answers_follow_from_the_image(tmp_path, contract, case, perfect):
    """Shown another volume it knows nothing of this case, so the controls stand apart from the figure."""
    found = figures(results(tmp_path, contract, case, perfect))
    for condition in ("empty", "shuffled"):
        control = values(found, condition)
        assert control["masks by class name", "Dice", "all"] == 0.0
        assert control["questions", "closed, accuracy", "all"] == 0.0
        assert control["reports", "finding recall", "all"] == 0.0


def test_a_silent_subject_is_right_about_what_is_absent_only(tmp_path, contract, case, silent):
    """No mask, no finding, no invention; every absent object is answered "not found"."""
    own = values(figures(results(tmp_path, contract, case, silent)), "own")
    for (section, metric, group), value in own.items():
        if metric.startswith("absent"):
            assert value == 1.0, (section, group)
        elif metric.startswith(("Dice", "present", "closed", "open", "laterality", "size within", "finding recall")):
            assert value == 0.0, (section, metric, group)
    assert own["reports", "invented findings per report", "all"] == 0.0
    assert ("reports", "finding precision", "all") not in own
    assert ("masks by class name", "HD95 mm", "all") not in own


def test_numbers_of_cases_are_kept(tmp_path, contract, case, perfect):
    """Language on all cases, masks on the first, their controls on fewer."""
    records = results(tmp_path, contract, case, perfect)
    for task, condition, cases in (
        ("report", "own", 6),
        ("report", "shuffled", 6),
        ("masks by name", "own", 5),
        ("masks by name", "empty", 2),
    ):
        assert len({r.case for r in records if r.task == task and r.condition == condition}) == cases


def test_a_second_run_asks_for_nothing(tmp_path, contract, case, perfect):
    """It gives the same results and does no work; more cases cost only the new ones."""
    first = results(tmp_path, contract, case, perfect)
    calls, told = perfect.calls, []
    assert results(tmp_path, contract, case, perfect, told=told) == first
    assert perfect.calls == calls
    assert told == []
    longer = Plan(seeds=range(2, 9), mask_cases=5, control_cases=2, objects=1, texts=2)
    results(tmp_path, contract, case, perfect, plan=longer, told=told)
    assert told
    assert all(line.startswith("case 8,") for line in told)


def test_a_service_that_ends_and_starts_again_costs_time_only(tmp_path, contract, case, perfect, monkeypatch):
    """Also in the middle of a task: that is done again. One that stays away ends the evaluation."""
    undisturbed = results(tmp_path / "undisturbed", contract, case, perfect)
    monkeypatch.setattr(evaluate_module, "_PAUSE_S", 0.0)
    ask, calls, left = perfect.ask, count(), [7, 8, 40]

    def breaking(*given):
        if next(calls) in left:
            raise BackendUnavailable("The connection ended.", retry_after_s=0.0)
        return ask(*given)

    monkeypatch.setattr(perfect, "ask", breaking)
    assert results(tmp_path / "disturbed", contract, case, perfect) == undisturbed
    left.extend(range(next(calls), 10_000))
    with pytest.raises(BackendUnavailable):
        results(tmp_path / "ended", contract, case, perfect)


def test_the_truth_stays_here(tmp_path, contract, case, perfect, monkeypatch):
    """A subject is given volumes and words, never a case."""
    given = []
    for name in ("report", "report_masks", "ask", "segment_label", "segment_text", "segment_points", "segment_box"):
        original = getattr(perfect, name)
        monkeypatch.setattr(perfect, name, lambda *a, original=original: (given.extend(a), original(*a))[1])
    results(tmp_path, contract, case, perfect)
    assert {type(a).__name__ for a in given} == {"Volume", "str", "list", "VoxelBox"}


def test_masks_of_a_report_belong_to_what_it_names(case, perfect):
    """The larger one named is the larger one that is there, in any order; what is not there is not to be found."""
    one = case(100)
    liver, *kidney = (one.findings((number,)) for number in seg_targets(one.truth))
    said = (
        "Findings: The liver shows a 40 mm mass [SEG] and a 40 mm cyst [SEG]. "
        "The right kidney shows a 25 mm cyst [SEG] and a 45 mm cyst [SEG].\nImpression: Normal study."
    )
    perfect.report_masks = lambda volume: (said, [liver, liver, kidney[1], kidney[0]])
    items = of_report(one, one.volume, perfect)
    assert {item.asked[: len("finding 0")]: (item.object, item.dice) for item in items} == {
        "finding 0": ("liver_mass", 1.0),
        "finding 1": ("liver_cyst", None),
        "finding 2": ("kidney_cyst", 1.0),
        "finding 3": ("kidney_cyst", 1.0),
    }
    perfect.report_masks = lambda volume: (f"{said} ", [liver, liver, kidney[1], kidney[0]])
    assert not {i.asked for i in items} & {i.asked for i in of_report(one, one.volume, perfect)}, "another report's"


def test_served_and_reference_are_compared(tmp_path, contract, case, perfect, silent):
    """A subject agrees with its twin to the letter, and with a silent one only on masks that neither finds."""

    class Twin(type(perfect)):
        name = "twin"

    twin = Twin(map(case, SEEDS))
    records = results(tmp_path, contract, case, perfect, twin, silent)
    same = compare(records, "perfect", "twin")
    assert same.cases == len(SEEDS)
    assert same.identical_texts == same.texts > len(SEEDS)
    assert same.found_alike == same.masks > 0
    assert (same.mean_dice, same.least_dice) == (1.0, 1.0)
    assert same.agrees
    other = compare(records, "perfect", "silent")
    assert other.texts == same.texts
    assert 0 < other.masks < same.masks  # of reports that name nothing there is none
    assert other.identical_texts == 0
    assert other.least_dice == 0.0
    assert 0 < other.found_alike < other.masks
    assert other.mean_dice == pytest.approx(other.found_alike / other.masks)
    assert not other.agrees


def test_a_comparison_of_nothing_has_no_figure(tmp_path, contract, case, perfect):
    """No mean of no masks."""
    records = results(tmp_path, contract, case, perfect)
    nothing = compare(records, "perfect", "served")
    assert (nothing.cases, nothing.texts, nothing.masks, nothing.mean_dice) == (0, 0, 0, None)
    assert nothing.agrees


@pytest.mark.parametrize("layout", [plain, markdown])
def test_the_table_shows_every_figure_beside_its_controls(layout, tmp_path, contract, case, perfect):
    """One line for each, the figure over all before those of its groups."""
    found = figures(results(tmp_path, contract, case, perfect))
    lines = [re.split(r" \| |\s{2,}", line.strip("| ")) for line in table(found, layout).splitlines()]
    own = [f.row for f in found if f.condition == "own"]
    shown = [line for line in lines if len(line) == 8 and line[0] not in {"figure", "---"}]
    assert sorted(line[:2] for line in shown) == sorted([row.metric, row.group] for row in own)
    body = [line for line in shown if line[0] == "closed, accuracy"]
    assert body[0][1:3] == ["all", "1.000"]
    assert body[0][-2:] == ["0.000", "0.000"]


def test_a_masks_voxels_come_back(tmp_path, contract, case, perfect):
    """From the file, so that two subjects can be compared later."""
    (record, *_) = [r for r in results(tmp_path, contract, case, perfect) if r.task == "masks by name"]
    again = [r for r in results(tmp_path, contract, case, perfect) if r.key == record.key]
    item = next(i for i in again[0].items if i.asked == "spleen")
    assert np.array_equal(item.voxels(), case(int(record.case)).organ("spleen"))


def test_only_masks_that_are_compared_are_kept(tmp_path, contract, case, perfect):
    """Those of the case itself after one prompt; they are most of what a result weighs."""
    for record in results(tmp_path, contract, case, perfect):
        for item in record.items:
            if item.type == "mask" and item.found:
                assert (item.mask is not None) == (record.condition == "own" and item.clicks <= 1)
