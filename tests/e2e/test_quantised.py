"""A language model in INT8: gated by the build, served by the real Triton and vLLM, named by every result."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from tests.conftest import in_background

from medvl.client import Answer, Client, ObjectPrompt
from medvl.contracts.manifest import sha256_of
from medvl.contracts.paths import data_folder
from medvl.embedded.files import write_series
from medvl.embedded.phantom import Phantom, make_phantom
from medvl.embedded.report_reader import parse_report
from medvl.evaluation.metrics import dice
from medvl.export.build import BuildResult, build_repository
from medvl.export.quantise import write_int8
from medvl.imaging.series import LoadedSeries, read_series
from medvl.runtime.system import EmbeddedSystem, SystemOptions

pytestmark = pytest.mark.heavy

HELD_OUT = 5024
"""A patient that no training has seen."""
UP_TO_DATE_S = 5.0


@pytest.fixture(scope="module")
def int8(phantom_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantised") / "int8"
    folder.mkdir()
    write_int8(phantom_checkpoint, folder)
    return folder


@pytest.fixture(scope="module")
def built(
    phantom_repository: Path, phantom_checkpoint: Path, int8: Path, tmp_path_factory: pytest.TempPathFactory
) -> BuildResult:
    """The phantom repository, built again with the quantised model: its networks are there already."""
    out = tmp_path_factory.mktemp("repositories") / "phantom-int8"
    shutil.copytree(phantom_repository, out)
    return build_repository(phantom_checkpoint, "cpu", out, lambda _: None, quantised=int8)


@pytest.fixture(scope="module")
def client(built: BuildResult, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    options = SystemOptions(repository=built.repository, triton_folder=data_folder() / "runtime")
    with (
        in_background(EmbeddedSystem(tmp_path_factory.mktemp("system"), options)) as system,
        Client(system.endpoint) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(HELD_OUT)


@pytest.fixture(scope="module")
def patient(phantom: Phantom, tmp_path_factory: pytest.TempPathFactory) -> LoadedSeries:
    folder = tmp_path_factory.mktemp("patient")
    write_series(folder, phantom)
    return read_series(folder)


def test_the_networks_are_taken_over(built: BuildResult, phantom_checkpoint: Path, int8: Path):
    """Only the language model is another; and a second build has nothing to do."""
    assert built.built
    assert built.steps == ()
    started_s = perf_counter()
    again = build_repository(phantom_checkpoint, "cpu", built.repository, lambda _: None, quantised=int8)
    assert not again.built
    assert perf_counter() - started_s < UP_TO_DATE_S


def test_words_and_what_comes_of_them_are_served(
    client: Client, patient: LoadedSeries, phantom: Phantom, built: BuildResult, int8: Path
):
    """A report that reads as one, an answer, and masks by a class and by words where the truth has them."""
    report = client.report(patient.volume).collect()
    assert parse_report(report.text)
    answer = client.ask(patient.volume, "Is the liver enlarged?").collect()
    assert answer.text
    by_label = client.segment(patient.volume, [ObjectPrompt(label="liver")]).collect()
    by_text = client.segment(patient.volume, [ObjectPrompt(text="the liver")]).collect()
    wanted = np.isin(phantom.labels, phantom.truth.values_of("liver"))
    for masks in (by_label, by_text):
        assert dice(masks.masks[0].array, wanted) > 0.8
    for result in (report, answer, by_label, by_text):
        says_so(result, built, int8)


def says_so(result: Answer, built: BuildResult, int8: Path) -> None:
    """Look whether a result names the model that it comes from, the files that are served, and their origin."""
    source, told = result.done.provenance, built.manifest.quantisation
    assert told is not None
    assert source.quantisation is not None
    assert source.quantisation.digest == told.digest
    assert str(source.quantisation) == "weights in 8 bits, activations in 8 bits (compressed-tensors int-quantized)"
    assert source.file_sha256["llm/model.safetensors"] == sha256_of(int8 / "model.safetensors")
    assert source.checkpoint_digest == built.manifest.checkpoint_digest
