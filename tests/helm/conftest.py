"""The chart, rendered by Helm's own engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import yaml

CHART = Path(__file__).parents[2] / "helm" / "medvl"

Resources = dict[tuple[str, str], dict[str, Any]]
Render = Callable[[dict[str, Any]], Resources]


@pytest.fixture(scope="session")
def chart() -> Iterator[helm.Chart]:
    with helm.Chart.load(CHART) as chart:
        yield chart


@pytest.fixture
def render(chart) -> Render:
    """Resources of a release named ``demo`` by (kind, name), from values laid over the defaults."""

    def rendered(values: dict[str, Any]) -> Resources:
        files = chart.render(values, name="demo", namespace="radiology")
        documents = [d for name, text in files.items() if name.endswith(".yaml") for d in yaml.safe_load_all(text) if d]
        return {(d["kind"], d["metadata"]["name"]): d for d in documents}

    return rendered


@pytest.fixture(params=["none", "whole"])
def resources(request, render) -> Resources:
    """Resources of the default values under each GPU profile."""
    return render({"gpu": {"profile": request.param}})
