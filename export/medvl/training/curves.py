"""The curves of a training run as one picture."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

_SMOOTHED = 15
"""Lines of a curve file that one point of the drawn curve is the mean of."""
_COLUMNS = 10


def draw_curves(folder: Path, out: Path) -> None:
    """Draw what every stage of a run has shown so far: a panel for each figure, stage by stage, each in its colour.

    Parameters
    ----------
    folder
        Where :class:`medvl.training.loop.Loop` wrote.
    out
        The PNG.
    """
    stages = {path.stem: _curves(path) for path in sorted(folder.glob("*.jsonl"))}
    rows = max(1, math.ceil(sum(map(len, stages.values())) / _COLUMNS))
    figure = Figure(figsize=(2.2 * _COLUMNS, 1.9 * rows), layout="tight")
    panels = iter(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    for number, (stage, curves) in enumerate(stages.items()):
        for name, (steps, values) in curves.items():
            panel = next(panels)
            panel.plot(steps, _smooth(values), linewidth=1.2, color=f"C{number % 10}")
            panel.set_title(f"{stage}: {name}", fontsize=8)
            panel.tick_params(labelsize=7)
    for panel in panels:
        panel.set_axis_off()
    figure.savefig(out, dpi=80)


def _curves(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Return steps and values of every figure; where a piece was cut off, what was done again counts."""
    lines = {line["step"]: line for line in map(_read, path.read_text("utf-8").splitlines()) if line}
    curves: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    for step, line in sorted(lines.items()):
        for name, value in line.items():
            if name not in {"step", "s"}:
                curves[name][0].append(step)
                curves[name][1].append(value)
    return curves


def _read(text: str) -> dict[str, Any] | None:
    """Return a line; None for one that was cut off."""
    try:
        line: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError:
        return None
    return line


def _smooth(values: list[float]) -> list[float]:
    return [float(np.mean(values[max(0, i - _SMOOTHED + 1) : i + 1])) for i in range(len(values))]
