"""The preset ``med3dvlm-7b`` at full size, random weights, two layers of language model: exported, gated, served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import psutil
import pytest

from medvl.client import Box, Client, ObjectPrompt, Point
from medvl.contracts.checkpoint import load_checkpoint
from medvl.contracts.manifest import load_manifest
from medvl.contracts.paths import data_folder
from medvl.embedded.files import write_phantom_series
from medvl.imaging.series import LoadedSeries, read_series
from medvl.network.model import ReferenceModel
from medvl.network.modules import Modules
from medvl.network.prompts import BOX_FIRST, BOX_SECOND, POSITIVE
from medvl.network.prompts import ObjectPrompt as Prompted
from medvl.runtime.repairs import SupervisionPolicy
from medvl.runtime.system import EmbeddedSystem, SystemOptions

from ..conftest import in_background  # noqa: TID252 - tests are no installed package
from .conftest import Steps
from .random_checkpoint import Size

pytestmark = pytest.mark.timeout(5400)

SLICES = 8


def command(*arguments: object) -> tuple[str, float]:
    """Run ``medvl-export`` and return what it said and how long it took."""
    started_s = perf_counter()
    argv = [sys.executable, "-m", "medvl.export.cli", *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, perf_counter() - started_s


def test_export(size: Size, checkpoint: Path, repository: Path, steps: Steps):
    """Every part passes the FP32 gate; no step of the export holds the weights twice; a second run does nothing.

    What a step may take above the imports is twice the largest part; at 1024 that is missed, docs/export.md says by how
    much. The comparison is not the export: it holds
    activations of three volumes or slices besides.
    """
    said, _ = command("build", "--checkpoint", checkpoint, "--out", repository, "--json")
    done = json.loads(said)
    for step in done["steps"]:
        steps.add(size, step["part"], step["kind"], step["cost"]["elapsed_s"], step["cost"]["peak_bytes"])
    files = load_manifest(repository).files
    largest = max(record.bytes for name, record in files.items() if name.endswith(".onnx.data"))
    for step in done["steps"]:
        if step["kind"] == "build" and size.side <= 512:
            assert step["cost"]["peak_bytes"] <= 2 * largest, step
    said, elapsed_s = command("build", "--checkpoint", checkpoint, "--out", repository, "--json")
    steps.add(size, "repository", "again", elapsed_s)
    assert not json.loads(said)["built"]
    assert elapsed_s < 5.0


def test_language(size: Size, checkpoint: Path, steps: Steps):
    """vLLM reads the folder and holds the gate of bfloat16 to transformers."""
    if size.name != "t-512":
        pytest.skip("the same language model as at t-512")
    _, elapsed_s = command("check", "--vllm", checkpoint)
    steps.add(size, "llm", "check --vllm", elapsed_s)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data folder of the system."""
    return tmp_path_factory.mktemp("system")


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> LoadedSeries:
    """A small phantom: the networks' sizes are the checkpoint's, whatever the series has."""
    folder = tmp_path_factory.mktemp("phantom") / "series"
    write_phantom_series(folder, seed=11, slices=SLICES, side=128)
    return read_series(folder)


@pytest.fixture
def prepared(size: Size, checkpoint: Path, repository: Path) -> tuple[Size, Path, Path]:
    """What a test of a size needs."""
    return size, checkpoint, repository


def test_serving(prepared: tuple[Size, Path, Path], series: LoadedSeries, steps: Steps, home: Path):
    """Report, answer, point and box through gRPC; masks are the torch reference's."""
    size, checkpoint, repository = prepared
    # Nothing is repaired that is only slow: the machine may be a small one.
    policy = SupervisionPolicy(probe_timeout_s=120.0, stall_s=900.0)
    options = SystemOptions(repository=repository, triton_folder=data_folder() / "runtime", policy=policy)
    started_s = perf_counter()
    with in_background(EmbeddedSystem(home, options)) as system, Client(system.endpoint) as client:
        steps.add(size, "system", "start", perf_counter() - started_s)
        served = {kind: _timed(size, steps, kind, client, series) for kind in ("report", "ask", "point", "box")}
        resident = sum(p.memory_info().rss for p in psutil.Process(os.getpid()).children(recursive=True))
        steps.add(size, "system", "resident", 0.0, resident)
    assert served["report"].text
    assert served["report"].done.completion_tokens == 16
    assert served["ask"].text
    reference = ReferenceModel(load_checkpoint(checkpoint), Modules.load(checkpoint, load_checkpoint(checkpoint)), None)
    for kind in ("point", "box"):
        (mask,) = served[kind].masks
        started_s = perf_counter()
        expected = reference.segment(series.volume, _prompted(reference, series, kind)).mask
        steps.add(size, kind, "torch reference", perf_counter() - started_s)
        assert 0 < mask.array.sum() < mask.array.size
        both = np.count_nonzero(mask.array & expected)
        assert 2 * both / (mask.array.sum() + expected.sum()) >= 0.99


def _timed(size: Size, steps: Steps, kind: str, client: Client, series: LoadedSeries):
    started_s = perf_counter()
    if kind == "report":
        result = client.report(series.volume, max_tokens=16).collect()
    elif kind == "ask":
        result = client.ask(series.volume, "Is there a lesion in the liver?", max_tokens=16).collect()
    else:
        result = client.segment(series.volume, [_asked(series, kind)]).collect()
    steps.add(size, kind, "served", perf_counter() - started_s)
    return result


def _asked(series: LoadedSeries, kind: str) -> ObjectPrompt:
    if kind == "point":
        return ObjectPrompt(points=(Point(_at(series, 4, 58, 38)),))
    return ObjectPrompt(boxes=(Box(_at(series, 3, 38, 26), _at(series, 5, 77, 64)),))


def _at(series: LoadedSeries, *index: int) -> tuple[float, float, float]:
    x, y, z = series.volume.geometry.index_to_lps(np.array(index))
    return float(x), float(y), float(z)


def _prompted(reference: ReferenceModel, series: LoadedSeries, kind: str) -> Prompted:
    volume = series.volume
    if kind == "point":
        return Prompted(0, {4: (reference.point(volume, 58, 38, POSITIVE),)})
    corners = (reference.point(volume, 38, 26, BOX_FIRST), reference.point(volume, 77, 64, BOX_SECOND))
    return replace(Prompted(0, {4: corners}), first_slice=3, last_slice=5)
