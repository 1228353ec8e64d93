"""The served system is evaluated as the torch reference is, and agrees with it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from medvl.embedded.scanner import Protocol
from medvl.evaluation.cases import Case
from medvl.export.cli import main
from medvl.runtime.system import EmbeddedSystem

TINY = Protocol(slices=(8, 8), side=64, spacing_mm=(20.0, 45.0))


def test_served_equals_reference(
    embedded_system: EmbeddedSystem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """On one small case: the same texts, the same masks for the report, every class, words, points and boxes."""
    monkeypatch.setattr(Case, "make", partial(Case.make, protocol=TINY))
    out = tmp_path / "served.json"
    which = ["--cases", "1", "--seed", "2", "--control-cases", "0", "--objects", "1", "--texts", "1"]
    where = ["--served", embedded_system.endpoint, "--json", str(out)]
    assert main(["evaluate", "--checkpoint", "phantom", *which, *where]) == 0
    assert "served against reference" in capsys.readouterr().out
    compared = json.loads(out.read_text("utf-8"))["comparison"]
    assert compared["cases"] == 1
    assert compared["identical_texts"] == compared["texts"] > 1
    assert compared["found_alike"] == compared["masks"] > 20
    assert compared["least_dice"] >= 0.99
