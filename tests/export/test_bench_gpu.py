"""``make bench-gpu``: its arithmetic, and the script itself on small networks without a GPU."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import bench_gpu  # noqa: E402
from bench_gpu_measure import (  # noqa: E402
    PRECISIONS,
    Ceilings,
    Converter,
    Work,
    as_tuple,
    count,
    error_of,
    floor_of,
    reference,
)
from bench_gpu_parts import PARTS, TINY, Piece, build  # noqa: E402

CPU = torch.device("cpu")


def piece(module: nn.Module, *inputs: Tensor, name: str = "projector") -> Piece:
    axes = tuple(0 for _ in inputs)
    return Piece(name, module.eval(), inputs, axes, (1, 2), torch.float16, False, None, {})


def test_the_floor_is_the_slower_of_arithmetic_and_memory():
    ceilings = Ceilings({"fp32": 2e12, "fp16": 8e12}, 1e11)
    work = Work(flops=4e9, moved_bytes=1e8)
    assert floor_of(work, "fp32", ceilings).ms == pytest.approx(2.0)
    assert floor_of(work, "fp32", ceilings).bound == "compute"
    assert floor_of(work, "fp16", ceilings).ms == pytest.approx(1.0)
    assert floor_of(work, "fp16", ceilings).bound == "memory"


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Conv3d(4, 6, (3, 1, 1), padding=(1, 0, 0)), (1, 4, 5, 6, 7), 2 * 6 * 4 * 3 * (5 * 6 * 7)),
        (nn.Conv3d(8, 8, (1, 7, 1), padding=(0, 3, 0), groups=8), (1, 8, 4, 4, 4), 2 * 8 * 7 * 4**3),
        (nn.Conv3d(1, 4, 7, stride=4, padding=3), (1, 1, 8, 8, 8), 2 * 4 * 7**3 * 2**3),
        (nn.ConvTranspose2d(4, 2, 2, stride=2), (1, 4, 3, 3), 2 * 4 * 2 * 2**2 * 3**2),
        (nn.Linear(5, 7), (1, 2, 3, 4, 5), 2 * 5 * 7 * 2 * 3 * 4),
    ],
)
def test_convolutions_of_every_kind_are_counted(module: nn.Module, shape: tuple[int, ...], expected: int):
    """Also those along one axis and those of single channels, which the vision encoder is made of."""
    assert count(piece(module, torch.randn(shape))).one == expected


def test_attention_is_counted_on_every_device():
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    assert count(piece(Attention(), torch.randn(1, 2, 10, 8))).one == 2 * (2 * 2 * 10 * 10 * 8)


def test_bytes_are_those_of_what_is_used():
    """A module that is held and not run costs nothing; half precision halves the matrices."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle, self.norm = nn.Linear(8, 4), nn.Linear(100, 100), nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm(self.used(x))
            return y

    part = piece(Part(), torch.randn(1, 8))
    counted, x, y = count(part), torch.empty(3, 8), torch.empty(3, 4)
    assert counted.work(part.module, (x,), (y,), 3).moved_bytes == 4 * (8 * 4 + 4 + 4 + 4) + x.nbytes + y.nbytes
    half = Converter().module(part, PRECISIONS["fp16"])
    assert counted.work(half, (x,), (y,), 3).moved_bytes == 2 * (8 * 4 + 4) + 4 * (4 + 4) + x.nbytes + y.nbytes


@pytest.fixture(scope="module")
def pieces() -> dict[str, Piece]:
    return {p.name: p for p in build(PARTS, TINY, CPU)}


def test_every_part_is_there(pieces: dict[str, Piece]):
    assert tuple(pieces) == PARTS


@pytest.mark.parametrize("name", ["vision_encoder", "track_step", "decode"])
def test_a_batch_is_counted_as_if_it_were_run(pieces: dict[str, Piece], name: str):
    one = pieces[name]
    five = replace(one, inputs=one.batched(5))
    counted = count(one)
    assert counted.one + 4 * (counted.two - counted.one) == count(five).one


@pytest.mark.parametrize("name", PARTS)
@torch.inference_mode()
def test_a_part_agrees_with_its_float64_reference(pieces: dict[str, Piece], name: str):
    """In float64 throughout: FP32 is off by its own rounding only, at every entry of a batch."""
    expected = reference(pieces[name])
    found = as_tuple(pieces[name].module(*pieces[name].batched(2)))
    error = error_of(found, expected)
    assert all(len(f) == 2 and torch.isfinite(f).all() for f in found)
    assert error.relative < 1e-5
    assert error.cosine > 0.9999999
    assert max(float(e.abs().max()) for e in expected) > 0.01


def test_what_is_not_finite_shows():
    error = error_of((torch.tensor([[1.0, math.nan]]), torch.ones(1, 2)), (torch.ones(1, 2), torch.ones(1, 2)))
    assert math.isnan(error.max_abs)
    assert math.isnan(error.cosine)


def test_what_matters_most_is_measured_first(pieces: dict[str, Piece]):
    options = bench_gpu.options_of([])
    jobs = bench_gpu.plan(list(pieces.values()), options)
    assert len({job.words for job in jobs}) == len(jobs)
    first = jobs[: 2 * len(PARTS)]
    assert {(j.piece.name, j.precision.name) for j in first} == {
        (name, precision)
        for name in PARTS
        for precision in ("fp32", "bf16" if name in {"prefill", "decode"} else "fp16")
    }
    assert {(j.batch, j.variant) for j in first} == {(1, "eager")}
    assert {j.precision.name for j in jobs if j.variant in {"onnxruntime", "tensorrt"}} == {"fp32"}


@pytest.mark.parametrize(
    ("value", "expected"), [(1234.5, "1234"), (12.345, "12.3"), (0.012345, "0.0123"), (9.996, "10.00"), (0, "0")]
)
def test_figures_have_three_digits(value: float, expected: str):
    assert bench_gpu.short(value) == expected


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """The script is a process of its own elsewhere and may set what it likes."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, dict]:
    path = tmp_path / "gpu.json"
    assert bench_gpu.main(["--device", "cpu", "--tiny", "--json", str(path), *arguments]) == 0
    return capsys.readouterr().out, json.loads(path.read_text("utf-8"))


def test_the_script_measures_and_says_what_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    printed, result = run(
        tmp_path,
        capsys,
        "--parts",
        "decode",
        "--variants",
        "eager,graph",
        "--precisions",
        "fp32,half",
        "--batches",
        "1,4",
    )
    assert {(r["precision"], r["batch"]) for r in result["rows"]} == {
        ("fp32", 1),
        ("fp32", 4),
        ("bf16", 1),
        ("bf16", 4),
    }
    for row in result["rows"]:
        assert row["ms"] > 0
        assert row["ratio"] == row["ms"] / row["floor_ms"]
        assert row["cosine"] > 0.999
        assert f"| decode | {row['batch']} | {row['precision']} | eager |" in printed
    assert result["notes"] == ["graph: CUDA graphs need a GPU."]
    assert result["missing"] == []
    assert bench_gpu.main(["--render", str(tmp_path / "gpu.json")]) == 0
    assert capsys.readouterr().out == printed


def test_an_engine_computes_what_torch_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Among its inputs are feature maps, which torch keeps channels last."""
    arguments = ("--parts", "memory_encoder", "--variants", "onnxruntime", "--precisions", "fp32")
    _, result = run(tmp_path, capsys, *arguments)
    assert [(r["batch"], r["max_abs"] < 1e-4, r["cosine"] > 0.99999) for r in result["rows"]] == [
        (1, True, True),
        (8, True, True),
    ]


def test_no_row_is_begun_when_the_time_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    printed, result = run(
        tmp_path, capsys, "--minutes", "0", "--parts", "prefill", "--variants", "eager", "--precisions", "fp32"
    )
    assert result["rows"] == []
    assert len(result["missing"]) == 6
    assert "- prefill, fp32, eager, batch 1, 2, 4, 8, 16, 32" in printed


def test_a_run_that_is_ended_prints_what_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """SIGTERM while a row is measured, as a limit on the whole command sends it."""
    measured = bench_gpu.Session.row

    def row(session: bench_gpu.Session, job: bench_gpu.Job) -> bench_gpu.Row:
        if job.batch == 2:
            signal.raise_signal(signal.SIGTERM)
        return measured(session, job)

    monkeypatch.setattr(bench_gpu.Session, "row", row)
    printed, result = run(
        tmp_path, capsys, "--parts", "decode", "--variants", "eager", "--precisions", "fp32", "--batches", "1,2,4"
    )
    assert "| decode | 1 | fp32 | eager |" in printed
    assert result["notes"] == ["decode, fp32, eager, batch 2: interrupted."]
    assert result["missing"] == ["decode, fp32, eager, batch 4"]


def test_a_network_that_fails_costs_its_own_rows_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    measured = bench_gpu.Session.row

    def row(session: bench_gpu.Session, job: bench_gpu.Job) -> bench_gpu.Row:
        if job.piece.name == "prefill":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmuch")
        return measured(session, job)

    monkeypatch.setattr(bench_gpu.Session, "row", row)
    _, result = run(
        tmp_path, capsys, "--parts", "prefill,decode", "--variants", "eager", "--precisions", "fp32", "--batches", "1,2"
    )
    assert result["notes"] == ["prefill, fp32, eager, batch 1 and more: out of memory."]
    assert {r["part"] for r in result["rows"]} == {"decode"}


def test_the_script_needs_only_what_is_carried():
    """A GPU host without network has no DICOM, Triton, ONNX or server packages."""
    absent = (
        "pydicom highdicom nibabel onnx onnxscript onnxruntime vllm tritonclient structlog pynetdicom psutil "
        "grpc_status grpc_health zstandard cv2 matplotlib rich"
    )
    block = f"import sys; sys.modules.update(dict.fromkeys({absent.split()}))"
    subprocess.run(
        [sys.executable, "-c", f"{block}; sys.path.insert(0, {str(SCRIPTS)!r}); import bench_gpu"], check=True
    )
