"""``make bench``: what serving costs over the networks that it serves, for one series of 128 x 512 x 512.

Served figures are taken by the client, on loopback, from a running embedded system; "models" is the time that Triton's
models report for their own work; "one process" is the torch reference on the same volume and prompts, without any
server (``bench_model.py``, in a process of its own, before the system starts). Medians of fresh rounds, with the least
and the most; nothing is asserted. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from medvl.client import AsyncClient, Done, Mask, ObjectPrompt, Point, SlicePreview, TextDelta
from medvl.client.exits import Exit, exit_of
from medvl.client.stream import EventStream
from medvl.contracts.errors import MedvlError, SetupError
from medvl.imaging.series import read_series
from medvl.imaging.volume import Volume
from medvl.runtime.system import EmbeddedSystem

QUESTION = "Is there a lesion in the liver?"
WARM_REQUESTS = 200
"""CPU time of a process is counted in steps of 10 ms: short requests are measured together."""
MEGABYTES_17 = 17e6

Samples = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Row:
    """One line of the table, in milliseconds; an empty sample was not measured."""

    name: str
    served: Sequence[float]
    models: Sequence[float] = ()
    one_process: Sequence[float] = ()


def main() -> int:
    """Run the benchmark; every failure is one sentence."""
    return benchmark(__doc__ or "", bench, lines, "bench.json")


def benchmark(
    doc: str,
    bench: Callable[[argparse.Namespace], Awaitable[dict[str, Any]]],
    lines: Callable[..., list[str]],
    file: str,
    *,
    real_size: bool = False,
) -> int:
    """Read the command line, measure, write JSON and print; every failure is one sentence."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="fresh series to measure (default: 5, the least)")
    parser.add_argument("--slices", type=int, default=128)
    parser.add_argument("--side", type=int, default=512, help="rows and columns")
    cores = os.cpu_count() or 1
    parser.add_argument("--threads", type=int, default=cores, help="of the segmentation's networks (one per core)")
    parser.add_argument("--series", type=int, default=20, help="sent in turn, of 300 slices, for the resident set")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help=f"folder for {file} and the series")
    parser.add_argument("--data", type=Path, default=Path("build/medvl"), help="data of the system (build/medvl)")
    parser.add_argument("--markdown", action="store_true", help="print the table that docs/performance.md holds")
    if real_size:
        parser.add_argument("--real-size", action="store_true", help="SAM2.1 tiny at 512, random weights")
    arguments = parser.parse_args()
    if arguments.rounds < 5:
        parser.error("a median of fewer than 5 rounds says nothing")

    async def measured() -> dict[str, Any]:
        return await bench(arguments)

    try:
        result = asyncio.run(measured())
    except MedvlError as error:
        print(f"bench: {error}", file=sys.stderr)
        return exit_of(error)
    arguments.out.joinpath(file).write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print("\n".join(lines(result, markdown=arguments.markdown)))
    return Exit.OK


async def bench(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure without a server, then with one; return everything that was measured."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    volume = phantom(arguments)
    one_process = in_one_process(volume, arguments)
    async with AsyncExitStack() as stack:
        system = await stack.enter_async_context(EmbeddedSystem(arguments.data, progress=note))
        client = await stack.enter_async_context(AsyncClient(system.endpoint))
        service = await client.describe()
        orchestrator = psutil.Process(system.state.processes["orchestrator"].pid)
        served = await measure(client, volume, orchestrator, arguments.rounds)
    return {
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()},
        "checkpoint": service.provenance.checkpoint,
        "software": service.provenance.software,
        "triton": service.provenance.triton_version,
        "shape": list(volume.geometry.shape),
        "megabytes": volume.hu.nbytes / 1e6,
        "rounds": arguments.rounds,
        "served": served,
        "one_process": one_process,
    }


def note(words: str) -> None:
    """Say on standard error what is going on."""
    print(f"bench: {words}", file=sys.stderr, flush=True)


def phantom(arguments: argparse.Namespace) -> Volume:
    """Return a phantom series of the size that was asked for.

    Raises
    ------
    SetupError
        When ``medvl-export`` fails; its own words stand on standard error.
    """
    folder = arguments.out / f"phantom-{arguments.slices}x{arguments.side}"
    size = ["--slices", str(arguments.slices), "--side", str(arguments.side)]
    run([Path(sys.executable).with_name("medvl-export"), "phantom", "--out", folder, *size])
    return read_series(folder / "series").volume


def in_one_process(volume: Volume, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Return the samples that ``bench_model.py`` takes of the networks alone, in milliseconds."""
    note("measuring the networks in one process")
    voxels, prompt = arguments.out / "volume.npy", click(volume)
    np.save(voxels, volume.hu)
    geometry = ",".join(map(str, volume.geometry.spacing_mm))
    script = Path(__file__).with_name("bench_model.py")
    options = ["--volume", voxels, "--spacing-mm", geometry, "--question", QUESTION, "--rounds", str(arguments.rounds)]
    output = run([sys.executable, script, *options, "--click", ",".join(map(str, prompt))])
    return {name: list(map(float, samples)) for name, samples in json.loads(output).items()}


def run(command: Sequence[str | Path]) -> str:
    """Run a command; return its standard output.

    Raises
    ------
    SetupError
        When it fails; its own words stand on standard error.
    """
    try:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise SetupError(f"{Path(command[0]).name} failed: see the lines above.") from None


def click(volume: Volume) -> tuple[int, int, int]:
    """Return slice, row and column of a place in soft tissue in the middle slice."""
    middle = volume.geometry.shape[0] // 2
    rows, columns = np.nonzero((volume.hu[middle] > 0) & (volume.hu[middle] < 100))
    if not len(rows):
        return middle, volume.geometry.shape[1] // 2, volume.geometry.shape[2] // 2
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return middle, int(rows[nearest]), int(columns[nearest])


async def measure(
    client: AsyncClient, volume: Volume, orchestrator: psutil.Process, rounds: int
) -> dict[str, list[float]]:
    """Return samples in milliseconds by name; every round sends a series that the system has never seen."""
    samples: dict[str, list[float]] = defaultdict(list)
    for index in range(-1, rounds):
        note("warming up" if index < 0 else f"round {index + 1} of {rounds}")
        taken = await one_round(client, another(volume, index), orchestrator)
        if index >= 0:
            for name, value in taken.items():
                samples[name].append(value)
    samples["request_cpu"] = [await request_cpu_ms(client, another(volume, rounds - 1), orchestrator)]
    return samples


def another(volume: Volume, index: int) -> Volume:
    """Return the same series with one voxel changed, and with it the digest."""
    hu = volume.hu.copy()
    hu[0, 0, 0] += index + 2
    return Volume(hu, volume.geometry)


async def one_round(client: AsyncClient, volume: Volume, orchestrator: psutil.Process) -> dict[str, float]:
    """Return one sample of everything, in milliseconds; megabytes and the digest are not part of the upload."""
    assert volume.digest
    begun_ms, begun_s = cpu_ms(orchestrator), time.perf_counter()
    await client.put_series(volume)
    taken = {"upload": (time.perf_counter() - begun_s) * 1000, "upload_cpu": cpu_ms(orchestrator) - begun_ms}
    cold = await watch(client.ask(volume, QUESTION))
    taken |= {
        "encode": cold.stages_ms["preprocess"] + cold.stages_ms["encode"],
        "encode_models": cold.stages_ms["encode"],
    }
    text = await watch(client.ask(volume, QUESTION))
    tokens = max(text.done.completion_tokens - 1, 1)
    taken |= {
        "first_token": text.first_ms[TextDelta],
        "first_token_models": text.stages_ms["llm_prefill"],
        "token": (text.last_ms[TextDelta] - text.first_ms[TextDelta]) / tokens,
        "token_models": text.stages_ms["llm_decode"] / tokens,
    }
    (point,) = volume.geometry.index_to_lps(np.array([click(volume)]))
    prompt = ObjectPrompt(points=(Point((float(point[0]), float(point[1]), float(point[2]))),))
    masks = await watch(client.segment(volume, [prompt], previews=True))
    taken |= {
        "first_mask": masks.first_ms[SlicePreview],
        "whole_mask": masks.first_ms[Mask],
        "whole_mask_models": sum(masks.stages_ms[f"segmenter_{s}"] for s in ("encode", "decode", "track")),
    }
    return taken


@dataclass(frozen=True)
class Watched:
    """When the first and the last event of each kind came, in milliseconds from the request, and how it ended."""

    first_ms: Mapping[type, float]
    last_ms: Mapping[type, float]
    done: Done

    @property
    def stages_ms(self) -> Mapping[str, float]:
        """What the service says of its own stages."""
        return self.done.stages_ms


async def watch(stream: EventStream) -> Watched:
    """Read a stream to its end.

    Raises
    ------
    SetupError
        When it ends without ``Done``.
    """
    begun_s = time.perf_counter()
    first_ms: dict[type, float] = {}
    last_ms: dict[type, float] = {}
    async for event in stream:
        last_ms[type(event)] = (time.perf_counter() - begun_s) * 1000
        first_ms.setdefault(type(event), last_ms[type(event)])
        if isinstance(event, Done):
            return Watched(first_ms, last_ms, event)
    raise SetupError("The service ended an answer without closing it: see its log.")


def cpu_ms(process: psutil.Process) -> float:
    """Return the CPU time that a process has used, in milliseconds."""
    times = process.cpu_times()
    return float(times.user + times.system) * 1000


async def request_cpu_ms(client: AsyncClient, volume: Volume, orchestrator: psutil.Process) -> float:
    """Return the CPU milliseconds that the orchestrator spends on a question that uploads nothing."""
    note(f"{WARM_REQUESTS} requests that upload nothing")
    begun_ms = cpu_ms(orchestrator)
    for _ in range(WARM_REQUESTS):
        await client.ask(volume, QUESTION, max_tokens=1).collect()
    return (cpu_ms(orchestrator) - begun_ms) / WARM_REQUESTS


def lines(result: Mapping[str, Any], *, markdown: bool) -> list[str]:
    """Return the table and the orchestrator's own cost as lines."""
    served, alone = result["served"], result["one_process"]
    names = ("step", "served, ms", "models, ms", "models' share", "one process, ms", "its share", "overhead, ms")
    rows = [("upload", "upload"), ("encode", "encode"), ("first token", "first_token"), ("next token", "token")]
    rows += [("first mask", "first_mask"), ("whole mask", "whole_mask")]
    table = [
        names,
        *(cells(Row(title, served[k], served.get(f"{k}_models", ()), alone.get(k, ()))) for title, k in rows),
    ]
    return [*(markdown_table(table) if markdown else plain_table(table)), "", *costs(result)]


def cells(row: Row) -> tuple[str, ...]:
    """Return the texts of a line: medians with least and most; shares and the overhead are of medians."""
    median = statistics.median(row.served)
    alone = statistics.median(row.one_process) if row.one_process else None
    return (
        row.name,
        spread(row.served),
        spread(row.models),
        f"{statistics.median(row.models) / median:.0%}" if row.models else "-",
        spread(row.one_process),
        "-" if alone is None else f"{alone / median:.0%}",
        "-" if alone is None else f"{median - alone:+.1f}",
    )


def spread(samples: Sequence[float]) -> str:
    """Return ``median (least..most)``."""
    if not samples:
        return "-"
    return f"{statistics.median(samples):.1f} ({min(samples):.1f}..{max(samples):.1f})"


def costs(result: Mapping[str, Any]) -> list[str]:
    """Return sentences about tokens per second, megabytes per second and the orchestrator's CPU time."""
    served, megabytes = result["served"], result["megabytes"]
    per_17 = [ms * MEGABYTES_17 / (megabytes * 1e6) for ms in served["upload_cpu"]]
    return [
        f"{1000 / statistics.median(served['token']):.0f} tokens/s; "
        f"upload {megabytes:.1f} MB at {megabytes * 1000 / statistics.median(served['upload']):.0f} MB/s.",
        f"Orchestrator: {spread(per_17)} ms of CPU for each 17 MB uploaded, "
        f"{served['request_cpu'][0]:.2f} ms for a request that uploads nothing.",
        f"{result['software']}, checkpoint {result['checkpoint']}, Triton {result['triton']}, "
        f"{result['machine']['cpu']}, {result['machine']['cores']} cores; medians of {result['rounds']} (least..most).",
    ]


def plain_table(table: Sequence[Sequence[str]]) -> list[str]:
    """Return columns that line up."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def markdown_table(table: Sequence[Sequence[str]]) -> list[str]:
    """Return a table of Markdown."""
    header, *rows = (f"| {' | '.join(row)} |" for row in table)
    return [header, "|" + " --- |" * len(table[0]), *rows]


def cpu_name() -> str:
    """Return the processor's name where the system tells it."""
    try:
        facts = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in facts if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main())
