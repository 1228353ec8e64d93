"""What ``make demo`` shows: a phantom about which all is right, or a series of somebody's own."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from medvl.client import AsyncClient
from medvl.contracts.disclaimer import DISCLAIMER
from medvl.imaging.series import LoadedSeries, read_series
from medvl.runtime.system import EmbeddedSystem

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("demo")


async def test_what_is_said_of_the_phantom_is_right(
    demo: ModuleType, embedded_system: EmbeddedSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Findings, answers and masks, as the README shows them, each beside the truth and with a picture."""
    demo.clear(tmp_path)
    folder, case = demo.write_phantom(tmp_path / "phantom")
    async with AsyncClient(embedded_system.endpoint) as client:
        summary = await demo.use_system(client, read_series(folder), case, tmp_path, demo.Account())
    findings = summary["truth"]["findings"]
    assert findings["true"] == findings["stated"] == findings["matched"]
    assert sum(findings["true"].values()) == 3
    assert [answer["right"] for answer in summary["answers"]] == [True] * demo.QUESTIONS
    assert len(summary["masks"]) == 3 + 4
    assert min(mask["dice"] for mask in summary["masks"]) > 0.85
    pictures = {f"{picture.stem}.nii.gz" for picture in (tmp_path / "overlays").iterdir()}
    assert pictures == {Path(mask["path"]).name for mask in summary["masks"]}
    demo.show(summary, tmp_path / "summary.json")
    printed = capsys.readouterr().out
    assert "3 of 3 findings right, 0 of 3 that are not there" in printed
    assert all(f"{a['answer']} (right; the truth: {a['truth']})" in printed for a in summary["answers"])
    assert printed.endswith(f"{DISCLAIMER}\n")


async def test_a_series_of_ones_own_has_no_truth(
    demo: ModuleType, embedded_system: EmbeddedSystem, series: LoadedSeries, tmp_path: Path
):
    """One question and a mask of each kind, by prompts that fit any series; nothing says that it is right."""
    demo.clear(tmp_path)
    async with AsyncClient(embedded_system.endpoint) as client:
        summary = await demo.use_system(client, series, None, tmp_path, demo.Account())
    assert summary["truth"] is None
    assert [answer["question"] for answer in summary["answers"]] == [demo.QUESTION]
    assert "right" not in summary["answers"][0]
    assert {"liver", demo.TEXT, "1 point", "1 box"} <= {mask["prompt"] for mask in summary["masks"]}
    assert {mask["dice"] for mask in summary["masks"]} == {None}
