"""``make bench-gpu``: each network at real size on one NVIDIA GPU, beside what the GPU could reach and the error.

Needs torch, transformers, numpy, this repository and, of its dependencies, those of ``docs/performance.md``; no
network. Each row is the median of CUDA events over calls after a warm-up, the caches warm. The floor is the greater of
operations over the measured rate of a large product in that precision and bytes (parameters, inputs, outputs, once
each) over the measured rate of a large copy: both ceilings are of the same run. Errors are against float64 on the CPU,
of the first of a batch of equal entries. Weights are random: they change no time.

``graph`` replays the same kernels from a CUDA graph, ``compiled`` is ``torch.compile`` in its default mode. Half
precision is the whole network's for the language model, and autocast with matrices stored in half elsewhere.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from bench_gpu_engines import ENGINES, EngineMissing, Engines, check
from bench_gpu_measure import (
    PRECISIONS,
    Call,
    Ceilings,
    Converter,
    Count,
    Outputs,
    Precision,
    as_tuple,
    captured,
    count,
    error_of,
    floor_of,
    measure_ceilings,
    median_ms,
    reference,
)
from bench_gpu_parts import PARTS, REAL, TINY, Piece, build
from torch import nn

EAGER, GRAPH, COMPILED, COMPILED_GRAPH = "eager", "graph", "compiled", "compiled graph"
VARIANTS = (EAGER, GRAPH, COMPILED, COMPILED_GRAPH, *ENGINES)
LARGEST = "image_encoder_large"
BUDGET_S = 0.2
"""Of one row's repeats."""


@dataclass(frozen=True)
class Job:
    """One row to measure."""

    piece: Piece
    batch: int
    precision: Precision
    variant: str

    @property
    def family(self) -> tuple[str, str, str]:
        """What it has in common with other batches."""
        return self.piece.name, self.precision.name, self.variant

    @property
    def importance(self) -> int:
        """What comes first when the time is short: single calls as they are, then batches, then what tuning gives."""
        single, half = self.batch == 1, self.precision.dtype != torch.float32
        usual = single or self.batch == 8
        if self.variant == EAGER:
            return 0 if single and self.precision.name != "tf32" else 2 if usual else 6
        if self.variant == GRAPH:
            return 1 if single and half else 4 if usual else 8
        if self.variant in ENGINES:
            return 5 if usual else 9
        return 3 if single and half else 7 if usual else 10

    @property
    def words(self) -> str:
        """Its name in one line."""
        return f"{self.piece.name}, {self.precision.name}, {self.variant}, batch {self.batch}"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    part: str
    batch: int
    precision: str
    variant: str
    ms: float
    floor_ms: float
    bound: str
    ratio: float
    """Of ``ms`` to ``floor_ms``."""
    max_abs: float
    relative: float
    cosine: float
    gflop: float
    megabytes: float
    peak_mib: float | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = options_of(arguments)
    if options.render:
        print("\n".join(lines(json.loads(options.render.read_text("utf-8")))))
        return 0
    # Whoever ends the run once rows are measured gets the table of what there is.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("bench-gpu: torch finds no GPU on this machine.", file=sys.stderr)
        return 1
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    deadline_s = time.monotonic() + 60 * options.minutes
    warnings.filterwarnings("ignore")
    torch.backends.cudnn.benchmark = True
    result = measure(options, device, deadline_s)
    if options.json:
        keep(options.json, result)
    print("\n".join(lines(result)))
    return 0


def keep(path: Path, result: Mapping[str, Any]) -> None:
    """Write what was measured, whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    part.replace(path)


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="no row is begun after them (default: 10)")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--variants", default=",".join(VARIANTS), help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--precisions", default="fp32,tf32,half", help="of fp32, tf32, half, fp16, bf16")
    parser.add_argument("--batches", default="", help="only these")
    parser.add_argument("--json", type=Path, help="file for everything that was measured")
    parser.add_argument("--render", type=Path, metavar="JSON", help="only print the table of such a file")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small networks, to try the script: figures mean nothing")
    options = parser.parse_args(arguments)
    for name, known in (("parts", PARTS), ("variants", VARIANTS), ("precisions", (*PRECISIONS, "half"))):
        chosen = getattr(options, name).split(",")
        setattr(options, name, chosen)
        if unknown := set(chosen) - set(known):
            parser.error(f"--{name}: there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    options.batches = [int(b) for b in options.batches.split(",") if b]
    return options


def measure(options: argparse.Namespace, device: torch.device, deadline_s: float) -> dict[str, Any]:
    """Return everything that was measured; also written after every row: the run may be cut short."""
    note("ceilings")
    ceilings = measure_ceilings(device)
    note(f"building {', '.join(options.parts)}")
    pieces = build(options.parts, TINY if options.tiny else REAL, device)
    session = Session(device, ceilings)
    notes = drop_impossible(options, device)
    waiting = plan(pieces, options)
    result = {"machine": machine(device), "ceilings": asdict(ceilings), "rows": [], "notes": notes}
    result["missing"] = [job.words for job in waiting]
    rows: list[Row] = []
    while waiting and time.monotonic() < deadline_s:
        job = waiting.pop(0)
        try:
            rows.append(session.row(job))
            note(f"{job.words}: {rows[-1].ms:.3f} ms")
        except KeyboardInterrupt:
            notes.append(f"{job.words}: interrupted.")
            deadline_s = 0.0
        # One network or compiler that fails must not cost the others.
        except Exception as error:
            notes.append(f"{job.words} and more: {_reason(error)}.")
            waiting = [j for j in waiting if j.family != job.family]
        result |= {"rows": [asdict(r) for r in rows], "notes": notes}
        result |= {"missing": [j.words for j in waiting], "references_s": session.references_s}
        if options.json:
            keep(options.json, result)
    return result


def plan(pieces: Sequence[Piece], options: argparse.Namespace) -> list[Job]:
    """Return what is to be measured, the most important first."""
    jobs = [
        Job(piece, batch, PRECISIONS[name], variant)
        for piece in pieces
        for variant in options.variants
        for name in precisions_of(piece, options.precisions)
        for batch in piece.batches
        if (not options.batches or batch in options.batches)
        # Engines are built of the contract's networks, which are FP32; the language model is vLLM's.
        and (variant not in ENGINES or (name == "fp32" and piece.model))
    ]
    order = {name: number for number, name in enumerate(PARTS)}

    def key(job: Job) -> tuple[int, bool, int, str, int]:
        # To compile the largest network takes minutes, in which all others can be.
        last = job.variant in {COMPILED, COMPILED_GRAPH} and job.piece.name == LARGEST
        return job.importance, last, order[job.piece.name], job.precision.name, job.batch

    return sorted(jobs, key=key)


def drop_impossible(options: argparse.Namespace, device: torch.device) -> list[str]:
    """Leave out the variants that this machine cannot run; return a line for each."""
    notes = []
    for variant in list(options.variants):
        try:
            if variant in ENGINES:
                check(variant, device)
            elif variant in {GRAPH, COMPILED_GRAPH} and device.type != "cuda":
                raise EngineMissing("CUDA graphs need a GPU")
        except EngineMissing as missing:
            options.variants.remove(variant)
            notes.append(f"{variant}: {missing}.")
    return notes


def precisions_of(piece: Piece, names: Iterable[str]) -> list[str]:
    """Return the precisions that were asked for, ``half`` being the piece's own, each once."""
    own = next(p.name for p in PRECISIONS.values() if p.dtype == piece.half)
    return list(dict.fromkeys(own if name == "half" else name for name in names))


@dataclass
class Session:
    """Measures rows; keeps what several rows share."""

    device: torch.device
    ceilings: Ceilings
    references_s: dict[str, float] = field(default_factory=dict)
    _converter: Converter = field(default_factory=Converter)
    _engines: Engines = field(default_factory=Engines)
    _counts: dict[str, Count] = field(default_factory=dict)
    _expected: dict[str, Outputs] = field(default_factory=dict)
    _compiled: tuple[tuple[str, str, int], Call] | None = None
    """The last one, which is measured as it is and from a graph."""

    @torch.inference_mode()
    def row(self, job: Job) -> Row:
        """Measure a row."""
        try:
            with job.precision.active():
                return self._measured(job)
        finally:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _measured(self, job: Job) -> Row:
        piece = job.piece
        if piece.name not in self._counts:
            self._counts[piece.name] = count(piece)
            begun_s = time.monotonic()
            self._expected[piece.name] = reference(piece)
            self.references_s[piece.name] = round(time.monotonic() - begun_s, 2)
        module = self._converter.module(piece, job.precision)
        inputs = self._converter.inputs(piece, job.precision, job.batch)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        call = self._call(job, module, inputs)
        ms = median_ms(call, self.device, BUDGET_S)
        outputs = call()
        work = self._counts[piece.name].work(module, inputs, outputs, job.batch)
        floor = floor_of(work, job.precision.name, self.ceilings)
        return Row(
            part=piece.name,
            batch=job.batch,
            precision=job.precision.name,
            variant=job.variant,
            ms=ms,
            floor_ms=floor.ms,
            bound=floor.bound,
            ratio=ms / floor.ms,
            **asdict(error_of(outputs, self._expected[piece.name])),
            gflop=work.flops / 1e9,
            megabytes=work.moved_bytes / 1e6,
            peak_mib=torch.cuda.max_memory_allocated() / 2**20 if self.device.type == "cuda" else None,
        )

    def _call(self, job: Job, module: nn.Module, inputs: Outputs) -> Call:
        if job.variant in ENGINES:
            return self._engines.call(job.variant, job.piece, inputs, self.device)

        def calling(function: Callable[..., Any]) -> Call:
            def call() -> Outputs:
                with self._converter.context(job.piece, job.precision, self.device):
                    return as_tuple(function(*inputs))

            return call

        if job.variant == EAGER:
            return calling(module)
        if job.variant == GRAPH:
            return captured(calling(module))
        key = (job.piece.name, job.precision.name, job.batch)
        if self._compiled is None or self._compiled[0] != key:
            torch.compiler.reset()
            self._compiled = key, calling(torch.compile(module, dynamic=False))
        return captured(self._compiled[1]) if job.variant == COMPILED_GRAPH else self._compiled[1]


def _reason(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first:.200}"


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the figures were taken on."""
    facts: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version()}
    if device.type != "cuda":
        return facts | {"gpu": "none", "driver": "none"}
    properties = torch.cuda.get_device_properties(device)
    return facts | {
        "gpu": properties.name,
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cpu_threads": torch.get_num_threads(),
    }


def _driver() -> str:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


HEADER = ("part", "batch", "precision", "variant", "ms", "floor, ms", "bound", "ratio", "max abs", "cosine")


def lines(result: Mapping[str, Any]) -> list[str]:
    """Return machine, ceilings, table and what is missing, in Markdown."""
    facts, ceilings = result["machine"], result["ceilings"]
    rates = ", ".join(f"{name} {rate / 1e12:.4g}" for name, rate in ceilings["flops"].items())
    yielded = [
        f"{facts['gpu']}, driver {facts['driver']}, torch {facts['torch']}, Python {facts['python']}.",
        f"Ceilings: {rates} TFLOP/s; {ceilings['bytes_per_s'] / 1e9:.4g} GB/s.",
        "",
        f"| {' | '.join(HEADER)} |",
        "|" + " --- |" * len(HEADER),
    ]
    measured = sorted(
        result["rows"], key=lambda r: (PARTS.index(r["part"]), VARIANTS.index(r["variant"]), r["precision"], r["batch"])
    )
    return [*yielded, *map(_line, measured), "", *result["notes"], *_missing(result["missing"])]


def _line(row: Mapping[str, Any]) -> str:
    cells = [row["part"], row["batch"], row["precision"], row["variant"], *map(short, (row["ms"], row["floor_ms"]))]
    cells += [row["bound"], short(row["ratio"]), f"{row['max_abs']:.1e}", f"{row['cosine']:.7f}"]
    return f"| {' | '.join(map(str, cells))} |"


def short(value: float) -> str:
    """Return three digits that count, without an exponent."""
    digits = max(0, 2 - int(f"{value:e}".split("e")[1])) if value else 0
    return f"{value:.{digits}f}"


def _missing(words: Sequence[str]) -> Iterator[str]:
    """Yield a line for every network and variant whose rows the time did not allow."""
    if words:
        yield f"Not measured, because the time was over ({len(words)} rows):"
    split = [w.rpartition(", batch ") for w in words]
    for name, group in groupby(sorted(split, key=lambda s: (s[0], int(s[2]))), key=lambda s: s[0]):
        yield f"- {name}, batch {', '.join(batch for _, _, batch in group)}"


def note(words: str) -> None:
    """Say on standard error what is going on."""
    print(f"bench-gpu: {words}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
