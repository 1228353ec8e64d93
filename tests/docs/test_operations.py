"""The tables of ``docs/operations.md`` are what the code has, and its examples are taken."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from medvl.client.endpoint import ENDPOINT_VARIABLE
from medvl.contracts.paths import HOME_VARIABLE
from medvl.orchestrator.config import OrchestratorConfig, load_config
from medvl.orchestrator.metrics import Metrics
from medvl.orchestrator.service import MedVLService

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text("utf-8")


def section(title: str) -> str:
    """The text below a heading, up to the next one."""
    return re.split(r"^#+ ", PAGE.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def rows(title: str) -> list[list[str]]:
    """The cells of a section's table, its head left out."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[re.sub("^`([^`]*)`$", r"\1", cell.strip()) for cell in line.split("|")[1:-1]] for line in lines[2:]]


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            default = "required" if field.is_required() else field.default
            yield prefix + name, "none" if default is None else str(default)


def test_every_field_of_the_configuration_is_there_with_its_default():
    assert [tuple(row[:2]) for row in rows("The orchestrator's configuration")] == list(fields(OrchestratorConfig))


def test_the_configuration_of_the_example_is_read(tmp_path: Path):
    (example,) = re.findall(r"^```json\n(.*?)```", section("Serving without Kubernetes"), re.MULTILINE | re.DOTALL)
    path = tmp_path / "orchestrator.json"
    path.write_text(example)
    assert load_config(path).metrics_port == 8502


def test_every_setting_of_tritons_models_is_there():
    schema = json.loads((ROOT / "helm" / "medvl" / "values.schema.json").read_text("utf-8"))
    known = schema["properties"]["triton"]["properties"]["settings"]["properties"]
    assert sorted(row[0] for row in rows("Settings of Triton's models")) == sorted(known)


def test_every_metric_is_there(monkeypatch: pytest.MonkeyPatch):
    """By its exposed name, type and labels."""
    registered = {}
    register = CollectorRegistry.register

    def noted(registry, collector):
        (family,) = collector.describe()
        total = "_total" if family.type == "counter" else ""
        registered[family.name + total] = (family.type, set(collector._labelnames))
        register(registry, collector)

    monkeypatch.setattr(CollectorRegistry, "register", noted)
    MedVLService(OrchestratorConfig(listen="localhost:1", triton="localhost:2"), Mock(), Mock(), Metrics())
    documented = {name: (kind, set(re.findall(r"\w+", labels))) for name, kind, labels, _ in rows("Metrics")}
    assert documented == registered


def test_every_stage_is_there():
    """Of the histogram's label."""
    text = "".join(p.read_text("utf-8") for p in (ROOT / "orchestrator" / "medvl" / "orchestrator").glob("*.py"))
    stages = set(re.findall(r'stages\.(?:measure|add)\("(\w+)"', text))
    (documented,) = [meaning for name, _, _, meaning in rows("Metrics") if name == "medvl_stage_seconds"]
    assert set(re.findall(r"`(\w+)`", documented)) == stages


def test_every_extra_is_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = {e for m in re.findall(r"\.\[([a-z,]+)\]", section("Which extra for which command")) for e in m.split(",")}
    # What others are made of, and what make setup alone brings.
    assert named == project["optional-dependencies"].keys() - {"imaging", "network", "dev"}
    assert f"medvl_sam2-{project['version']}-py3" in PAGE


def test_the_variables_are_those_that_are_read():
    assert [row[0] for row in rows("Environment")] == [HOME_VARIABLE, ENDPOINT_VARIABLE]
