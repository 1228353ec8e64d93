"""The loop of training: seeded by step, resumed to the step."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from medvl.contracts.errors import SetupError
from medvl.training.curves import draw_curves
from medvl.training.loop import SHOWN_EVERY, Loop, Stage, averaged, origin, version

STAGE = Stage("toy", 2 * SHOWN_EVERY, 1e-2, batch=8)


@dataclass(frozen=True)
class Points:
    x: torch.Tensor


class Line:
    """Learns a line from noisy points, and stops when it is told to."""

    def __init__(self, stop_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.module = nn.Linear(1, 1)
        self.stop_at = stop_at
        self.steps: list[int] = []

    def draw(self, step, rng):
        return Points(torch.from_numpy(rng.normal(size=(STAGE.batch, 1)).astype(np.float32)))

    def loss(self, step, drawn):
        if step == self.stop_at:
            raise KeyboardInterrupt
        self.steps.append(step)
        error = (self.module(drawn.x) - 3 * drawn.x - 1 + 0.01 * torch.randn(1)).square().mean()
        return error, {"error": error, "nothing": torch.tensor(float("nan"))}


def run(folder: Path, learner: Line, minutes: float = 1.0, workers: int = 0) -> Loop:
    loop = Loop(STAGE, learner, folder, 1, workers)
    loop.run(minutes, lambda _: None)
    return loop


def test_a_stage_that_was_interrupted_ends_like_one_that_was_not(tmp_path: Path):
    """State is saved, the rest of the steps draw what they would have drawn."""
    whole = Line()
    assert run(tmp_path / "whole", whole).finished
    cut = Line(stop_at=7)
    loop = Loop(STAGE, cut, tmp_path / "cut", seed=1)
    with pytest.raises(KeyboardInterrupt):
        loop.run(1.0, lambda _: None)
    loop.save()
    rest = Line()
    assert run(tmp_path / "cut", rest).finished
    assert rest.steps[0] == 7
    first, second = (averaged(tmp_path / name, "toy") for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(whole.module.weight, rest.module.weight)


def test_whoever_draws_the_steps_are_the_same(tmp_path: Path):
    """Processes that draw ahead change nothing but the time it takes.

    They are forked: from a process of its own, since this one has threads of servers and clients by now.
    """
    run(tmp_path / "alone", Line())
    subprocess.run([sys.executable, __file__, tmp_path / "helped"], check=True, timeout=120)
    alone, helped = (averaged(tmp_path / name, "toy") for name in ("alone", "helped"))
    assert torch.equal(alone["weight"], helped["weight"])


def test_no_time_is_no_step(tmp_path: Path):
    """Pieces can be as short as one likes; what was done stays."""
    learner = Line()
    assert not run(tmp_path, learner, minutes=0.0).finished
    assert learner.steps == []


def test_curves_are_written_down(tmp_path: Path):
    """A line of means for every few steps; what had nothing to show is left out."""
    run(tmp_path, Line())
    lines = [json.loads(line) for line in (tmp_path / "toy.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines] == [SHOWN_EVERY, 2 * SHOWN_EVERY]
    assert all(line["error"] > 0 and line["loss"] > 0 for line in lines)
    assert "nothing" not in lines[0]


def test_curves_are_drawn(tmp_path: Path):
    """One picture of all stages, whatever they have shown so far; none at all is a picture, too."""
    draw_curves(tmp_path, tmp_path / "empty.png")
    run(tmp_path, Line())
    draw_curves(tmp_path, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "curves.png").stat().st_size > (tmp_path / "empty.png").stat().st_size


def test_a_line_that_was_cut_off_is_not_drawn(tmp_path: Path):
    """The disk was full, or the power went; what was learnt since is drawn and becomes a checkpoint."""
    run(tmp_path, Line())
    with (tmp_path / "toy.jsonl").open("a") as file:
        file.write('{"step": 60, "lo{"step": 80, "loss": 0.5}\n')
    draw_curves(tmp_path, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").is_file()


def test_what_is_no_number_is_not_saved(tmp_path: Path):
    """Weights, their average and the optimiser would all be lost; the state before stays, and goes on."""

    class Diverging(Line):
        def loss(self, step, drawn):
            loss, shown = super().loss(step, drawn)
            return loss * (math.nan if step == 5 else 1.0), shown

    with pytest.raises(SetupError, match="no number"):
        run(tmp_path, Diverging())
    assert averaged(tmp_path, "toy")["weight"].isfinite().all()
    assert run(tmp_path, Line()).finished


def test_a_run_of_a_stage_has_a_version(tmp_path: Path):
    """It stays when the run goes on; more steps and another run have other ones. So does what it was begun from."""
    first = Loop(STAGE, Line(), tmp_path, seed=1, begun_from={"other": "1@2"})
    first.save()
    begun = version(tmp_path, "toy")
    again = Loop(STAGE, Line(), tmp_path, seed=1, begun_from={"other": "1@3"})
    again.save()
    assert version(tmp_path, "toy") == begun
    assert origin(tmp_path, "toy") == {"other": "1@2"}
    again.run(1.0, lambda _: None)
    assert version(tmp_path, "toy") != begun
    Loop(STAGE, Line(), tmp_path / "anew", seed=1).save()
    assert version(tmp_path / "anew", "toy") != begun


def test_a_stage_of_an_earlier_version_is_refused(tmp_path: Path):
    """Nobody knows what it was begun from."""
    run(tmp_path, Line(), minutes=0.0)
    state = torch.load(tmp_path / "toy.pt", weights_only=True)
    del state["begun_from"], state["run"]
    torch.save(state, tmp_path / "toy.pt")
    with pytest.raises(SetupError, match="earlier version"):
        run(tmp_path, Line())


def test_the_average_follows_the_weights(tmp_path: Path):
    """It is what becomes the checkpoint."""
    learner = Line()
    run(tmp_path, learner)
    weight = averaged(tmp_path, "toy")["weight"]
    assert 0 < abs(weight - learner.module.weight).item() < 1


def test_a_state_that_does_not_fit_is_refused(tmp_path: Path):
    """Cut off, or of other networks: with the file to remove."""

    class Wider(Line):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(1, 2)

    run(tmp_path, Line())
    with pytest.raises(SetupError, match=r"with other networks .* remove toy\.pt"):
        run(tmp_path, Wider())
    for cut in (b"", (tmp_path / "toy.pt").read_bytes()[:500]):
        (tmp_path / "toy.pt").write_bytes(cut)
        with pytest.raises(SetupError, match=r"toy\.pt cannot be read: remove it"):
            run(tmp_path, Line())


if __name__ == "__main__":
    run(Path(sys.argv[1]), Line(), workers=2)
