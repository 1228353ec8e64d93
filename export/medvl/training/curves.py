"""The curves of a training run as one picture."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

_SMOOTHED = 15
"""Lines of a curve file that one point of the drawn curve is the mean of."""


def draw_curves(folder: Path, out: Path) -> None:
    """Draw what every stage of a run has shown so far; a row for each stage, a panel for each figure.

    Parameters
    ----------
    folder
        Where :class:`medvl.training.loop.Loop` wrote.
    out
        The PNG.
    """
    stages = {path.stem: _curves(path) for path in sorted(folder.glob("*.jsonl"))}
    width = max((len(c) for c in stages.values()), default=1)
    height = max(1, len(stages))
    figure = Figure(figsize=(2.6 * width, 2.2 * height), layout="tight")
    panels = figure.subplots(height, width, squeeze=False)
    for row, (stage, curves) in zip(panels, stages.items(), strict=False):
        for panel, (name, (steps, values)) in zip(row, curves.items(), strict=False):
            panel.plot(steps, _smooth(values), linewidth=1.2)
            panel.set_title(f"{stage}: {name}", fontsize=8)
            panel.tick_params(labelsize=7)
        for panel in row[len(curves) :]:
            panel.set_axis_off()
    figure.savefig(out, dpi=110)


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
