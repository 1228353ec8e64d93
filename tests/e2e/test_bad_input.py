"""Bad input gets one clear sentence, the right code and exit, and the system goes on serving."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
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


PROMPTS = {
    "unknown class": (["--label", "left_wing"], "left_wing"),
    "point outside": (["--point", "9999,0,0"], "A point lies outside the volume: give LPS millimetres"),
    "box outside": (["--box", "9000,0,0,9999,10,10"], "A box does not touch the volume: give LPS millimetres"),
    "box of zero size": (["--box", "1,2,3,1,2,3"], "no size"),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_prompts_that_cannot_be_answered(case, embedded_system: EmbeddedSystem, series_folder: Path, tmp_path: Path):
    """Whether the client or the service refuses them, it is one sentence and the exit code of a wrong request."""
    arguments, sentence = PROMPTS[case]
    out = tmp_path / "mask.nii.gz"
    refused(medvl(embedded_system, "segment", str(series_folder), *arguments, "-o", str(out)), Exit.USAGE, sentence)
    assert not out.exists()


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        (ObjectPrompt(label="left_wing"), UnknownLabel),
        (ObjectPrompt(points=(Point((9999.0, 0.0, 0.0)),)), PromptOutsideVolume),
        (ObjectPrompt(boxes=(Box((1.0, 2.0, 3.0), (1.0, 2.0, 3.0)),)), InvalidRequest),
    ],
    ids=["unknown class", "point outside", "box of zero size"],
)
def test_the_service_itself_refuses_prompts(client: Client, series: LoadedSeries, prompt: ObjectPrompt, error: type):
    """With an error of their own, which the library raises again."""
    with pytest.raises(error) as found:
        client.segment(series.volume, [prompt]).collect()
    assert str(found.value).count(". ") == 0


def test_an_empty_question(client: Client, embedded_system: EmbeddedSystem, series: LoadedSeries, series_folder: Path):
    """A question of blanks is no question, for the command line and for the service."""
    refused(medvl(embedded_system, "ask", str(series_folder), "  "), Exit.USAGE, "question")
    with pytest.raises(InvalidRequest, match="question"):
        client.ask(series.volume, "  ").collect()


def test_a_header_that_claims_four_gigabytes(embedded_system: EmbeddedSystem, series: LoadedSeries):
    """It is refused on the header, before a byte is reserved."""
    geometry = geometry_to_wire(series.volume.geometry)
    geometry.shape[:] = [8192, 512, 512]
    header = pb.PutSeriesRequest(header=pb.SeriesHeader(geometry=geometry, digest="0" * 64))
    with grpc.insecure_channel(embedded_system.endpoint) as channel, pytest.raises(grpc.RpcError) as found:
        pb_grpc.MedVLStub(channel).PutSeries(iter([header]), timeout=10)
    assert found.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def medvl(system: EmbeddedSystem, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "medvl.client.cli", *arguments, "--endpoint", system.endpoint]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def refused(done: subprocess.CompletedProcess[str], code: Exit, sentence: str) -> None:
    """Check that a command ended with one sentence, and that it is this one."""
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("medvl: ")
    assert done.stderr.count("\n") == 1
    assert done.stderr.count(". ") == 0
    assert sentence in done.stderr


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


def truncated(source: Path, folder: Path, kept: slice = slice(-1000)) -> None:
    rewritten(source, folder)
    damaged = files_of(folder)[3]
    damaged.write_bytes(damaged.read_bytes()[kept])


def cut_in_its_header(source: Path, folder: Path) -> None:
    truncated(source, folder, slice(600))


def single(source: Path, folder: Path) -> None:
    rewritten(source, folder)
    for path in files_of(folder)[1:]:
        path.unlink()


def gigantic(source: Path, folder: Path) -> None:
    rewritten(source, folder, Rows=32768, Columns=65535)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (empty, "The folder is empty: name a folder"),
        (mixed, "belong to 2 CT series: keep one"),
        (localizer, "only localizers: name the folder"),
        (magnetic, "The files are MR, not CT: name the folder"),
        (truncated, "cut off or in an encoding that cannot be read: fetch it again"),
        (cut_in_its_header, "ends before its pixels: fetch the series again"),
        (single, "this series has 1: name a whole series"),
        (gigantic, "of 32768 x 65535, more than"),
    ],
)
def test_files_that_are_not_one_ct_series(
    make: Callable[[Path, Path], None],
    sentence: str,
    embedded_system: EmbeddedSystem,
    series_folder: Path,
    tmp_path: Path,
):
    """The command line says in one sentence what is wrong and what to do, and has the exit code of a bad series."""
    make(series_folder, tmp_path / "series")
    refused(medvl(embedded_system, "report", str(tmp_path / "series")), Exit.SERIES, sentence)


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
