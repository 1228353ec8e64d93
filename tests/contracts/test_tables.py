"""The table of tensors in the documentation is the one in the code."""

from __future__ import annotations

from pathlib import Path

from medvl.contracts.tables import insert

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"


def test_the_documented_tensors_are_those_that_are_served() -> None:
    page = PAGE.read_text("utf-8")
    assert insert(page) == page, "run: python -m medvl.contracts.tables docs/architecture.md"
