"""TensorRT-RTX parses and builds every graph of every preset, each in a process of its own."""

from __future__ import annotations

import json

import pytest

from medvl.contracts.models import MODELS, Kind
from medvl.export.cli import main
from medvl.export.presets import MED3DVLM_7B

NETWORKS = {name for name, model in MODELS.items() if model.kind is Kind.NETWORK}


def proven(capsys, *arguments):
    status = main(["prove-rtx", *map(str, arguments), "--json"])
    said = capsys.readouterr()
    assert status == 0, said.err
    return json.loads(said.out)


def complete(report):
    """Whether every graph became an engine, with everything told that the report promises."""
    for row in report["rows"]:
        facts = row["facts"]
        assert row["refused"] is None
        assert facts["layers"] > 0 < facts["build_s"]
        assert min(facts["engine_bytes"], row["graph_bytes"], facts["peak_bytes"]) > 0
        assert row["profile"]
    return {row["graph"] for row in report["rows"]}


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_every_graph_of_the_phantom_builds(capsys, phantom_repository):
    """The graphs that this suite serves, as they are."""
    report = proven(capsys, "--repository", phantom_repository)
    assert complete(report) == NETWORKS
    assert (report["checkpoint"], report["precision"]) == ("phantom", "fp32")


@pytest.mark.heavy
def test_autocast_writes_graphs_that_build(capsys, phantom_repository):
    """One of them here; all in FP16 at full size."""
    report = proven(capsys, "--repository", phantom_repository, "--graphs", "projector", "--precision", "fp16")
    (row,) = report["rows"]
    assert complete(report) == {"projector"}
    assert row["facts"]["engine_bytes"] < 3 * row["graph_bytes"]


def test_the_report_is_a_table(capsys, phantom_repository):
    """One line for every graph, below a line that names checkpoint, precision and version."""
    assert main(["prove-rtx", "--repository", str(phantom_repository), "--graphs", "sam2_memory_encoder"]) == 0
    title, head, row = capsys.readouterr().out.splitlines()
    assert title.startswith("phantom, fp32, TensorRT-RTX 1.")
    assert head.split()[:3] == ["graph", "layers", "profile"]
    assert row.startswith("sam2_memory_encoder  ")
    assert "N 1..16 (2)" in row


def test_a_graph_that_is_refused_does_not_hide_the_others(capsys, phantom_repository):
    """With a limit that the smallest keeps and others do not, the status is 1 and the table whole."""
    graphs = ("--graphs", "projector,sam2_memory_encoder", "--memory-limit-gib", "0.02")
    assert main(["prove-rtx", "--repository", str(phantom_repository), *graphs]) == 1
    said = capsys.readouterr()
    assert said.out.count("refused") == 2
    assert said.err.count("took more than 0.02 GiB of memory") >= 2


def test_a_network_that_does_not_exist_is_told(capsys, phantom_repository):
    """With those that do."""
    assert main(["prove-rtx", "--repository", str(phantom_repository), "--graphs", "llm"]) == 1
    assert "There is no network 'llm': the networks are vision_encoder, projector," in capsys.readouterr().err


@pytest.mark.real_size
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_graph_of_full_size_builds(capsys, precision):
    """Random weights in the sizes of Med3DVLM and SAM2.1 tiny at 512 pixels."""
    report = proven(capsys, "--checkpoint", MED3DVLM_7B, "--precision", precision)
    assert complete(report) == NETWORKS
