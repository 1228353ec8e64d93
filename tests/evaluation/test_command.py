"""``medvl-export evaluate`` as it is typed: what it refuses, prints and writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medvl.contracts.disclaimer import DISCLAIMER
from medvl.contracts.errors import InvalidRequest
from medvl.evaluation import command
from medvl.evaluation.cases import Case
from medvl.evaluation.table import number
from medvl.export import cli
from medvl.training.cases import FIRST_SEED


@pytest.fixture
def checkpoint(tmp_path: Path, contract) -> Path:
    """A folder of which only what it says of itself is read."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "checkpoint.json").write_text(contract.model_dump_json())
    return folder


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, case, perfect) -> None:
    """Small cases, and a subject that answers from the truth in place of the torch reference."""
    monkeypatch.setattr(command, "ReferenceSubject", lambda folder: perfect)
    monkeypatch.setattr(Case, "make", case)


def run(checkpoint: Path, work: Path, *more: str) -> int:
    return cli.main(["evaluate", "--checkpoint", str(checkpoint), "--work", str(work), *more])


def test_seeds_of_training_are_refused(checkpoint, tmp_path, capsys):
    """Before anything is loaded, with status 1 and a sentence."""
    assert run(checkpoint, tmp_path / "work", "--cases", "3", "--seed", str(FIRST_SEED - 2)) == 1
    assert "reach into those of training" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_negative_numbers_are_refused(checkpoint, tmp_path, capsys):
    """Of cases and objects alike."""
    assert run(checkpoint, tmp_path / "work", "--mask-cases", "-1") == 1
    assert "not negative" in capsys.readouterr().err


@pytest.mark.usefixtures("known")
def test_figures_are_written_for_machines_and_people(checkpoint, tmp_path, capsys, contract):
    """JSON with intervals and what figures came from, the same in every folder; each in the table; progress apart."""
    settings = ("--cases", "3", "--seed", "2", "--mask-cases", "2", "--control-cases", "1", "--objects", "1")
    written = []
    for name in ("a", "b"):
        out = tmp_path / name / "figures.json"
        assert run(checkpoint, tmp_path / name, *settings, "--json", str(out), "--markdown") == 0
        written.append(out.read_text())
        printed = capsys.readouterr()
        assert DISCLAIMER in printed.out
        assert "| figure | of | value |" in printed.out
        assert "case 2, perfect, own: report" in printed.err
        assert "case " not in printed.out
    assert written[0] == written[1]
    assert str(tmp_path) not in written[0]
    document = json.loads(written[0])
    assert document["disclaimer"] == DISCLAIMER
    assert document["checkpoint"]["digest"] == contract.digest
    assert document["parameters"]["first_seed"] == 2
    assert document["parameters"]["control_cases"] == 1
    assert document["comparison"] is None
    own = [f for f in document["figures"] if f["condition"] == "own" and f["value"] is not None]
    assert all(f"| {f['metric']} | {f['group']} | {number(f['value'])} |" in printed.out for f in own)
    row = next(f for f in document["figures"] if f["metric"] == "closed, accuracy" and f["group"] == "all")
    assert row.keys() == {
        *("section", "metric", "group", "statistic", "subject", "condition"),
        *("value", "low", "high", "n", "cases", "interval"),
    }
    assert (row["value"], row["cases"], row["condition"]) == (1.0, 3, "own")


@pytest.mark.usefixtures("known")
def test_a_run_that_fails_leaves_no_file(checkpoint, tmp_path, monkeypatch, capsys):
    """Nor touches one that is there: figures are written whole, when there are some."""
    monkeypatch.setattr(command, "evaluate", lambda *args, **more: (_ for _ in ()).throw(InvalidRequest("No.")))
    out = tmp_path / "out" / "figures.json"
    assert run(checkpoint, tmp_path / "work", "--json", str(out)) == 1
    assert list(out.parent.iterdir()) == []
    out.write_text("figures of before")
    assert run(checkpoint, tmp_path / "work", "--json", str(out)) == 1
    assert [path.read_text() for path in out.parent.iterdir()] == ["figures of before"]
    assert capsys.readouterr().err.count("No.") == 2


def test_a_path_that_cannot_be_written_is_told_before_the_hours(checkpoint, tmp_path, capsys):
    """A folder in the place of the file, a file in the place of its folder, and the place of what is kept."""
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.touch()
    for out in (folder, file / "figures.json", tmp_path / "work"):
        assert run(checkpoint, tmp_path / "work", "--json", str(out)) == 1
        assert str(tmp_path) in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


@pytest.mark.usefixtures("known")
def test_a_link_leads_to_the_figures(checkpoint, tmp_path):
    """It is not replaced by them."""
    link, target = tmp_path / "latest.json", tmp_path / "figures.json"
    link.symlink_to(target)
    small = ("--cases", "1", "--seed", "2", "--mask-cases", "0")
    assert run(checkpoint, tmp_path / "work", *small, "--json", str(link)) == 0
    assert link.is_symlink()
    assert json.loads(target.read_text())["disclaimer"] == DISCLAIMER


@pytest.mark.usefixtures("known")
def test_real_ct_comes_with_its_caveat(checkpoint, tmp_path, capsys, test_data):
    """In the table and in the JSON: the masks are another model's output."""
    out = tmp_path / "figures.json"
    settings = ("--cases", "1", "--seed", "2", "--mask-cases", "0", "--real", str(test_data), "--json", str(out))
    assert run(checkpoint, tmp_path / "work", *settings) == 0
    printed = capsys.readouterr().out
    assert "not human ground truth" in printed
    assert "real CT ts_example_ct_dicom_j2k" in printed
    document = json.loads(out.read_text())
    assert any("TotalSegmentator" in caveat for caveat in document["caveats"])
    real = [f for f in document["figures"] if f["section"] == "real CT ts_example_ct"]
    assert {(f["metric"], f["group"]) for f in real} >= {
        ("Dice, 1 click", "liver"),
        ("Dice, 3 clicks", "vertebrae"),
        ("Dice, box", "aorta"),
    }
    assert {f["condition"] for f in real} == {"own", "empty", "shuffled"}
