"""The main job of ``make demo``: one CT series through the whole system, everything that comes of it under one folder.

The system runs embedded, on loopback: Triton, vLLM inside it, the orchestrator. Without ``--series`` the series is a
phantom, written as DICOM by ``medvl-export phantom``. Results: ``summary.json``, masks as NIfTI on the series' own
grid, and pictures of each mask that was found.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from medvl.client import Answer, AsyncClient, Box, Event, ObjectPrompt, Point, ServiceDescription, TextDelta
from medvl.client.documents import series_document
from medvl.client.exits import Exit, exit_of
from medvl.client.maskfiles import MaskFormat, MaskTarget, write_masks
from medvl.client.overlay import write_overlay
from medvl.client.stream import EventStream, collected
from medvl.client.terminal import mask_line, printable
from medvl.contracts.errors import MedvlError, SetupError
from medvl.imaging.policy import GeometryPolicy
from medvl.imaging.series import LoadedSeries, read_series
from medvl.imaging.volume import Volume
from medvl.runtime.system import EmbeddedSystem

QUESTION = "Is there a lesion in the liver?"
LABEL = "liver"
"""Segmented by name when the checkpoint knows it; else its first class is."""
TEXT = "the largest organ in the abdomen"
SOFT_TISSUE_HU = (-20, 180)
BOX_SLICES = 3
"""Slices on either side of the box's middle slice."""


@dataclass
class Account:
    """What the summary will say, gathered step by step."""

    stages_ms: dict[str, float] = field(default_factory=dict)
    masks: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a step of the demo."""
        print(f"== {name}", flush=True)
        begun_s = time.perf_counter()
        yield
        self.stages_ms[name] = round((time.perf_counter() - begun_s) * 1000, 3)

    def keep(self, name: str, answer: Answer, loaded: LoadedSeries, out: Path) -> None:
        """Write the masks of an answer and their pictures under ``out``; ``name`` begins the names of the files."""
        for mask in answer.masks:
            print(mask_line(mask))
            stem = name if len(answer.masks) == 1 else f"{name}-{mask.object_index}"
            path = out / "masks" / f"{stem}.nii.gz"
            if mask.found:
                write_masks(MaskTarget(path, MaskFormat.NIFTI), loaded, [mask], answer.done.provenance)
                write_overlay(out / "overlays" / f"{stem}.png", loaded.volume, mask)
            measured = mask.measurement
            self.masks.append(
                {
                    "label": mask.label,
                    "prompt": mask.prompt,
                    "path": str(path) if mask.found else None,
                    "voxels": measured.voxels if measured else 0,
                    "volume_mm3": measured.volume_mm3 if measured else 0.0,
                    "score": mask.score,
                    "found": mask.found,
                }
            )

    def stages_of(self, name: str, answer: Answer) -> None:
        """Take over what the service says of its own stages."""
        for stage, ms in sorted(answer.done.stages_ms.items()):
            self.stages_ms[f"{name}.{stage}"] = round(ms, 3)


def main() -> int:
    """Run the demo; every failure is one sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=Path, help="a folder of DICOM files or a NIfTI file (default: a phantom)")
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="results (default: build/demo)")
    parser.add_argument("--data", type=Path, default=Path("build/medvl"), help="data of the system (build/medvl)")
    parser.add_argument("--geometry-policy", choices=("reject", "resample", "warn"), default="reject")
    arguments = parser.parse_args()
    try:
        asyncio.run(demo(arguments))
    except MedvlError as error:
        print(f"demo: {printable(str(error))}", file=sys.stderr)
        return exit_of(error)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    return Exit.OK


async def demo(arguments: argparse.Namespace) -> None:
    """Read, start, send, report, ask, segment, write."""
    account = Account()
    out: Path = arguments.out
    clear(out)
    path = arguments.series
    if path is None:
        with account.stage("phantom"):
            path = generate_phantom(out / "phantom")
    with account.stage("read"):
        loaded = read_series(path, GeometryPolicy(arguments.geometry_policy))
    for finding in loaded.findings:
        print(f"note: {finding}")
    async with AsyncExitStack() as stack:
        with account.stage("start"):
            system = await stack.enter_async_context(EmbeddedSystem(arguments.data, progress=print))
        client = await stack.enter_async_context(AsyncClient(system.endpoint))
        summary = await use_system(client, loaded, out, account)
    summary_file = out / "summary.json"
    summary_file.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", "utf-8")
    show(summary, summary_file)


def clear(out: Path) -> None:
    """Make the folders of the results and remove what an earlier demo left there."""
    for name in ("masks", "overlays"):
        (out / name).mkdir(parents=True, exist_ok=True)
        for stale in (out / name).iterdir():
            stale.unlink()


def generate_phantom(folder: Path) -> Path:
    """Write a phantom; return the folder of its DICOM series.

    Raises
    ------
    SetupError
        When ``medvl-export`` fails; its own words stand on standard error.
    """
    command = Path(sys.executable).with_name("medvl-export")
    try:
        subprocess.run([command, "phantom", "--out", folder, "--slices", "64", "--side", "256"], check=True)
    except (OSError, subprocess.CalledProcessError):
        raise SetupError(
            "The phantom series could not be written: see the lines above, or run make demo again."
        ) from None
    return folder / "series"


async def use_system(client: AsyncClient, loaded: LoadedSeries, out: Path, account: Account) -> dict[str, Any]:
    """Ask the running system everything that the demo shows; return the summary."""
    service = await client.describe()
    with account.stage("upload"):
        await client.put_series(loaded.volume)
    with account.stage("report"):
        report = await read_aloud(client.report(loaded.volume))
    with account.stage("ask"):
        print(f"{QUESTION}")
        answer = await read_aloud(client.ask(loaded.volume, QUESTION))
    for name, said in (("report", report), ("ask", answer)):
        account.stages_of(name, said)
        account.keep(name, said, loaded, out)
    for name, prompt in prompts(loaded.volume, service).items():
        with account.stage(name):
            segmented = await client.segment(loaded.volume, [prompt]).collect()
        account.stages_of(name, segmented)
        account.keep(name, segmented, loaded, out)
    return summary_of(loaded, service, account, report.text, answer.text)


async def read_aloud(stream: EventStream) -> Answer:
    """Print text as it comes; return the whole answer."""
    events: list[Event] = []
    async with stream:
        async for event in stream:
            events.append(event)
            if isinstance(event, TextDelta):
                print(printable(event.text), end="", flush=True)
    print()
    return collected(events)


def prompts(volume: Volume, service: ServiceDescription) -> dict[str, ObjectPrompt]:
    """Return one prompt of each kind; the point and the box lie inside the body of the series at hand."""
    labels = [label.name for label in service.labels]
    label = LABEL if LABEL in labels else labels[0]
    spot = spot_in_body(volume)
    corners = volume.geometry.index_to_lps(np.array([spot.box_min, spot.box_max]))
    (point,) = volume.geometry.index_to_lps(np.array([spot.centre]))
    return {
        "segment_label": ObjectPrompt(label=label),
        "segment_text": ObjectPrompt(text=TEXT),
        "segment_point": ObjectPrompt(points=(Point(xyz(point)),)),
        "segment_box": ObjectPrompt(boxes=(Box(xyz(corners[0]), xyz(corners[1])),)),
    }


@dataclass(frozen=True)
class Spot:
    """A place to click and a box around it: indices of slice, row and column on the canonical grid."""

    centre: tuple[int, int, int]
    box_min: tuple[int, int, int]
    box_max: tuple[int, int, int]


def spot_in_body(volume: Volume) -> Spot:
    """Return the place deepest inside soft tissue on the slice that shows most of it."""
    lower, upper = SOFT_TISSUE_HU
    tissue = (volume.hu >= lower) & (volume.hu <= upper)
    slice_index = int(tissue.sum(axis=(1, 2)).argmax())
    # Padding makes the picture's border an edge, and noise is smoothed away before depth is measured.
    plane = cv2.medianBlur(np.pad(tissue[slice_index], 1).astype(np.uint8), 5)
    depth = cv2.distanceTransform(plane, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    row, column = (int(i) for i in np.unravel_index(int(depth.argmax()), depth.shape))
    reach = max(2, int(depth.max()))
    centre = (slice_index, row, column)
    reaches = (BOX_SLICES, reach, reach)
    low = [max(c - r, 0) for c, r in zip(centre, reaches, strict=True)]
    high = [min(c + r, n - 1) for c, r, n in zip(centre, reaches, volume.geometry.shape, strict=True)]
    return Spot(centre, (low[0], low[1], low[2]), (high[0], high[1], high[2]))


def xyz(point: np.ndarray) -> tuple[float, float, float]:
    """Return a position as plain floats."""
    x, y, z = (float(v) for v in point)
    return x, y, z


def summary_of(
    loaded: LoadedSeries, service: ServiceDescription, account: Account, report: str, answer: str
) -> dict[str, Any]:
    """Return what ``summary.json`` holds; lengths are millimetres, positions LPS."""
    series = series_document(loaded)
    provenance = service.provenance
    return {
        "series": {"digest": series["digest"], "geometry": {**series["geometry"], "findings": series["findings"]}},
        "report": report,
        "question": QUESTION,
        "answer": answer,
        "masks": account.masks,
        "stages_ms": account.stages_ms,
        "checkpoint": {
            "name": provenance.checkpoint,
            "trained": provenance.trained,
            "hashes": {"checkpoint": provenance.checkpoint_digest, **provenance.file_sha256},
        },
        "server": {"triton": provenance.triton_version, "backends": dict(service.backends)},
        "disclaimer": service.disclaimer,
    }


def show(summary: dict[str, Any], path: Path) -> None:
    """Print where everything lies."""
    checkpoint = summary["checkpoint"]
    print(f"\ncheckpoint {checkpoint['name']}{'' if checkpoint['trained'] else ' (NOT trained: random weights)'}")
    for mask in summary["masks"]:
        print(f"mask       {mask['path'] or 'not found'}: {mask['prompt']}, {mask['volume_mm3'] / 1000:.1f} ml")
    print(f"pictures   {path.parent / 'overlays'}")
    print(f"summary    {path}")
    print(summary["disclaimer"])


if __name__ == "__main__":
    sys.exit(main())
