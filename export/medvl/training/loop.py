"""The loop of every stage: seeded by step, saved on the way, resumed to the step, its curves written down.

Networks and losses are on torch's default device; what a step needs is drawn on the CPU, ahead of it by other processes
where there are any.

::

    <out>/<stage>.pt      weights, their moving average, optimiser and step; which run of the stage they are of, and
                          what that was begun from
    <out>/<stage>.jsonl   one line of means for every :data:`SHOWN_EVERY` steps; drawn by :mod:`medvl.training.curves`
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from medvl.contracts.errors import SetupError

SHOWN_EVERY = 20
_SAVED_EVERY_S = 120.0
_WARMUP = 200
_FINAL_SHARE = 0.05
"""Of the learning rate, at the end of its cosine."""
_DECAY = 0.05
_AVERAGE = 0.998
"""Share of the old value that the moving average of the weights keeps each step."""
_LARGEST_GRADIENT = 1.0
_FINITE = ("loss", "gradient")
"""Of what is shown: numbers, or nothing of a step is worth keeping."""
_DRAWN_AHEAD = 4
"""Steps that each process draws ahead."""


@dataclass(frozen=True, slots=True)
class Stage:
    """How long and how fast a stage learns.

    Attributes
    ----------
    name
        Names its files.
    steps
        In all.
    learning_rate
        Its peak.
    batch
        Samples of a step: volumes, slices or clips.
    first_cases, more_cases
        How many are known at first, and become known with each step, so that nobody waits for all of them; by default
        all are known after the first step.
    """

    name: str
    steps: int
    learning_rate: float
    batch: int
    first_cases: int = 60
    more_cases: int = 1_000_000


class Learner(Protocol):
    """What a stage trains."""

    @property
    def module(self) -> nn.Module:
        """Everything that is saved; frozen parameters do not require gradients."""

    def draw(self, step: int, rng: np.random.Generator) -> Any:  # noqa: ANN401 - what its own loss takes
        """Return what a step needs, a dataclass of tensors on the CPU; other processes may call it."""

    def loss(self, step: int, drawn: Any) -> tuple[Tensor, Mapping[str, Tensor]]:  # noqa: ANN401
        """Return the loss of one step and what is shown of it, scalars; NaN stands for nothing to show."""


class Loop:
    """One stage in a folder.

    Parameters
    ----------
    stage
        What to do.
    learner
        What learns.
    folder
        Where state and curves go; a state that is there is taken up again.
    seed
        Of everything that is drawn; a step draws the same whenever it is done.
    workers
        Processes that draw; with none, this one does.
    begun_from
        What a stage that has not begun will have been begun from; see :func:`origin`.
    """

    def __init__(  # noqa: PLR0917 - what it is made of
        self,
        stage: Stage,
        learner: Learner,
        folder: Path,
        seed: int,
        workers: int = 0,
        begun_from: Mapping[str, str] | None = None,
    ) -> None:
        self._stage = stage
        self._learner = learner
        self._folder = folder
        self._seed = seed
        self._workers = workers
        self._run, self._begun_from = secrets.token_hex(4), dict(begun_from or {})
        self._parameters = [p for p in learner.module.parameters() if p.requires_grad]
        self._optimiser = torch.optim.AdamW(
            [
                {"params": [p for p in self._parameters if p.ndim > 1], "weight_decay": _DECAY},
                {"params": [p for p in self._parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=stage.learning_rate,
            betas=(0.9, 0.98),
            fused=True,
        )
        self._average = {k: v.detach().clone() for k, v in learner.module.state_dict().items()}
        self._step = 0
        folder.mkdir(parents=True, exist_ok=True)
        if self._state.is_file():
            self._load()

    @property
    def finished(self) -> bool:
        """Whether every step is done."""
        return self._step >= self._stage.steps

    def run(self, minutes: float, tell: Callable[[str], None]) -> float:
        """Go on for so long, or to the end of the stage, and save; return the minutes that it took."""
        begun_s = start_s = saved_s = time.monotonic()
        end_s = begun_s + 60 * minutes
        shown: dict[str, list[Tensor]] = defaultdict(list)
        draws = self._draws()
        self.save()
        while not self.finished and time.monotonic() < end_s:
            for name, value in self._advance(next(draws)).items():
                shown[name].append(value.detach().float())
            if self._step % SHOWN_EVERY == 0:
                self._check(shown)
                means = {name: torch.stack(values).nanmean().item() for name, values in shown.items()}
                seconds = (time.monotonic() - start_s) / SHOWN_EVERY
                start_s = time.monotonic()
                self._show({name: mean for name, mean in means.items() if not math.isnan(mean)}, seconds, tell)
                shown.clear()
                if time.monotonic() - saved_s > _SAVED_EVERY_S:
                    self.save()
                    saved_s = time.monotonic()
        self._check(shown)
        self.save()
        return (time.monotonic() - begun_s) / 60

    def save(self) -> None:
        """Write the state; one that is cut off leaves the last one."""
        state = {
            "step": self._step,
            "module": self._learner.module.state_dict(),
            "average": self._average,
            "optimiser": self._optimiser.state_dict(),
            "run": self._run,
            "begun_from": self._begun_from,
        }
        part = self._state.with_suffix(".part")
        torch.save(state, part)
        part.replace(self._state)

    @property
    def _state(self) -> Path:
        return self._folder / f"{self._stage.name}.pt"

    def _load(self) -> None:
        state = _state(self._folder, self._stage.name)
        self._step = state["step"]
        try:
            self._learner.module.load_state_dict(state["module"])
            self._optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError) as error:
            raise SetupError(
                f"The stage {self._stage.name} was begun in {self._folder} with other networks than are there now: "
                f"remove {self._state.name} to begin it again."
            ) from error
        self._average = state["average"]
        self._run, self._begun_from = state["run"], state["begun_from"]

    def _check(self, shown: Mapping[str, Sequence[Tensor]]) -> None:
        """Refuse to save what has come of a loss or a gradient that is no number."""
        if not all(value.isfinite() for name in _FINITE for value in shown.get(name, ())):
            raise SetupError(
                f"The stage {self._stage.name} has come to a loss that is no number, by step {self._step}. What is "
                "saved is older: the same command goes on from there."
            )

    def _draws(self) -> Iterator[Any]:
        """Yield what the steps need, one after another."""
        with torch.device("cpu"):
            loader: DataLoader[Any] = DataLoader(
                _Draws(self._learner, self._seed),
                batch_size=None,
                sampler=range(self._step, self._stage.steps),
                num_workers=self._workers,
                collate_fn=_as_drawn,
                worker_init_fn=_begin_worker,
                prefetch_factor=_DRAWN_AHEAD if self._workers else None,
            )
            drawn = iter(loader)
        for _ in range(self._step, self._stage.steps):
            with torch.device("cpu"):
                one = next(drawn)
            yield one

    def _advance(self, drawn: Any) -> Mapping[str, Tensor]:  # noqa: ANN401
        torch.manual_seed(_seed_of(self._seed, self._step))
        rate = self._stage.learning_rate * _share(self._step, self._stage.steps)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        loss, shown = self._learner.loss(self._step, on_device(drawn))
        loss.backward()  # type: ignore[no-untyped-call]
        gradient = nn.utils.clip_grad_norm_(self._parameters, _LARGEST_GRADIENT)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self._step += 1
        self._follow()
        return {"loss": loss, "gradient": gradient, **shown}

    @torch.no_grad()
    def _follow(self) -> None:
        keep = min(_AVERAGE, (1 + self._step) / (10 + self._step))
        own = self._learner.module.state_dict()
        moving = [name for name, value in own.items() if value.dtype.is_floating_point]
        torch._foreach_lerp_([self._average[n] for n in moving], [own[n] for n in moving], 1.0 - keep)
        for name in own.keys() - set(moving):
            self._average[name].copy_(own[name])

    def _show(self, means: Mapping[str, float], seconds: float, tell: Callable[[str], None]) -> None:
        line = {"step": self._step, "s": round(seconds, 3), **{k: round(v, 4) for k, v in means.items()}}
        with (self._folder / f"{self._stage.name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        tell(" ".join(f"{k} {v}" for k, v in line.items()))


class _Draws(Dataset[Any]):
    """What each step needs, by its number."""

    def __init__(self, learner: Learner, seed: int) -> None:
        self._draw = learner.draw
        self._seed = seed

    def __getitem__(self, step: int) -> Any:  # noqa: ANN401
        return self._draw(step, np.random.default_rng([self._seed, step]))


def _as_drawn(drawn: Any) -> Any:  # noqa: ANN401
    return drawn


def _begin_worker(_: int) -> None:
    torch.set_default_device("cpu")
    cv2.setNumThreads(1)


def _seed_of(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


def on_device(drawn: Any) -> Any:  # noqa: ANN401 - a dataclass
    """Return a dataclass with its tensors, and those of dataclasses that it holds, on torch's default device."""
    moved = {f.name: getattr(drawn, f.name) for f in fields(drawn)}
    for name, value in moved.items():
        if isinstance(value, Tensor):
            moved[name] = value.to(torch.get_default_device(), non_blocking=True)
        elif is_dataclass(value):
            moved[name] = on_device(value)
    return replace(drawn, **moved)


def averaged(folder: Path, stage: str) -> dict[str, Tensor]:
    """Return the averaged weights that a stage has come to."""
    weights: dict[str, Tensor] = _state(folder, stage)["average"]
    return weights


def steps_done(folder: Path, stage: str) -> int:
    """Return how many steps a stage has come to."""
    step: int = _state(folder, stage)["step"]
    return step


def version(folder: Path, stage: str) -> str:
    """Return what names the weights that a stage has come to: another run of it has other ones, as have more steps."""
    state = _state(folder, stage)
    return f"{state['run']}@{state['step']}"


def origin(folder: Path, stage: str) -> dict[str, str]:
    """Return what a stage was begun from: versions of others, by name."""
    begun_from: dict[str, str] = _state(folder, stage)["begun_from"]
    return begun_from


def _state(folder: Path, stage: str) -> dict[str, Any]:
    path = folder / f"{stage}.pt"
    try:
        state: dict[str, Any] = torch.load(path, map_location=torch.get_default_device(), weights_only=True, mmap=True)
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise SetupError(f"{path} cannot be read: remove it to begin the stage {stage} again.") from error
    if "begun_from" not in state:
        raise SetupError(f"An earlier version began the stage {stage} in {folder}: name another folder with --out.")
    return state


def _share(step: int, steps: int) -> float:
    """Return the share of the peak learning rate at a step: linear warm-up, then a cosine."""
    if step < _WARMUP:
        return (step + 1) / _WARMUP
    progress = (step - _WARMUP) / max(1, steps - _WARMUP)
    return _FINAL_SHARE + (1 - _FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
