"""Bad input gets one clear sentence, the right code and exit, and the system goes on serving."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from pydicom import dcmread

from medvl.client import Box, Client, ObjectPrompt, Point
from medvl.client.exits import Exit
from medvl.contracts.errors import InvalidRequest, PromptOutsideVolume, UnknownLabel
from medvl.imaging.series import LoadedSeries
from medvl.runtime.system import EmbeddedSystem
from medvl.wire.codec import geometry_to_wire
from medvl.wire.v1 import medvl_pb2 as pb
from medvl.wire.v1 import medvl_pb2_grpc as pb_grpc


@pytest.fixture(autouse=True)
def still_serving(client: Client, series: LoadedSeries):
    """Whatever a test did, the system answers afterwards."""
    yield
    assert client.ask(series.volume, "Is it there?", max_tokens=1).collect().done


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        (ObjectPrompt(label="left_wing"), UnknownLabel),
        (ObjectPrompt(points=(Point((9999.0, 0.0, 0.0)),)), PromptOutsideVolume),
        (ObjectPrompt(boxes=(Box((1.0, 2.0, 3.0), (1.0, 2.0, 3.0)),)), InvalidRequest),
    ],
    ids=["unknown class", "point outside", "box of zero size"],
)
def test_prompts_that_cannot_be_answered(client: Client, series: LoadedSeries, prompt: ObjectPrompt, error: type):
    """They are refused by the service with an error of their own and one sentence."""
    with pytest.raises(error) as refused:
        client.segment(series.volume, [prompt]).collect()
    assert str(refused.value).count(". ") == 0


def test_an_empty_question(client: Client, series: LoadedSeries):
    """A question of blanks is no question."""
    with pytest.raises(InvalidRequest, match="question"):
        client.ask(series.volume, "  ").collect()


def test_a_header_that_claims_four_gigabytes(embedded_system: EmbeddedSystem, series: LoadedSeries):
    """It is refused on the header, before a byte is reserved."""
    geometry = geometry_to_wire(series.volume.geometry)
    geometry.shape[:] = [8192, 512, 512]
    header = pb.PutSeriesRequest(header=pb.SeriesHeader(geometry=geometry, digest="0" * 64))
    with grpc.insecure_channel(embedded_system.endpoint) as channel, pytest.raises(grpc.RpcError) as refused:
        pb_grpc.MedVLStub(channel).PutSeries(iter([header]), timeout=10)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def medvl(system: EmbeddedSystem, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "medvl.client.cli", *arguments, "--endpoint", system.endpoint]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.dcm"))


def rewritten(source: Path, folder: Path, **change: object) -> None:
    """Copy the DICOM files of a folder with other values in their headers."""
    folder.mkdir()
    for path in files_of(source):
        dataset = dcmread(path)
        for name, value in change.items():
            setattr(dataset, name, value)
        dataset.save_as(folder / path.name)


def empty(source: Path, folder: Path) -> None:
    folder.mkdir()


def mixed(source: Path, folder: Path) -> None:
    folder.mkdir()
    rewritten(source, folder / "one")
    rewritten(source, folder / "two", SeriesInstanceUID="2.25.42")


def localizer(source: Path, folder: Path) -> None:
    rewritten(source, folder, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])


def magnetic(source: Path, folder: Path) -> None:
    rewritten(source, folder, Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")


def truncated(source: Path, folder: Path) -> None:
    rewritten(source, folder)
    damaged = files_of(folder)[3]
    damaged.write_bytes(damaged.read_bytes()[:-1000])


def single(source: Path, folder: Path) -> None:
    rewritten(source, folder)
    for path in files_of(folder)[1:]:
        path.unlink()


@pytest.mark.parametrize("make", [empty, mixed, localizer, magnetic, truncated, single])
def test_files_that_are_not_one_ct_series(make, embedded_system: EmbeddedSystem, series_folder: Path, tmp_path: Path):
    """The command line says in one sentence what is wrong, without a traceback, and exits non-zero."""
    make(series_folder, tmp_path / "series")
    done = medvl(embedded_system, "report", str(tmp_path / "series"))
    assert done.returncode in {Exit.SERIES, Exit.USAGE}
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_checkpoint_with_a_wrong_shape_is_never_served(phantom_checkpoint: Path, tmp_path: Path):
    """The build refuses it by name and leaves nothing behind."""
    folder = shutil.copytree(phantom_checkpoint, tmp_path / "checkpoint")
    fields = json.loads((folder / "checkpoint.json").read_text("utf-8"))
    fields["vision"]["dims"][0] += 16
    (folder / "checkpoint.json").write_text(json.dumps(fields), "utf-8")
    out = tmp_path / "repository"
    command = [sys.executable, "-m", "medvl.export.cli", "build", "--checkpoint", str(folder), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "vision_encoder.safetensors: " in done.stderr
    assert "expected" in done.stderr
    assert not out.exists()
