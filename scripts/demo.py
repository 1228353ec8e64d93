"""The main job of ``make demo``: one CT series through the whole system, everything that comes of it under one folder.

The system runs embedded, on loopback: Triton, vLLM inside it, the orchestrator. Without ``--series`` the series is a
phantom that no training has seen, written as DICOM; what the system says of it is compared with the truth, which the
system never sees. Results: ``summary.json``, masks as NIfTI on the series' own grid, and pictures of each mask that was
found.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
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
from medvl.contracts.errors import MedvlError
from medvl.embedded.facts import findings_named
from medvl.embedded.files import write_labels, write_phantom_series, write_truth
from medvl.embedded.questions import QuestionAnswer, Topic, questions
from medvl.embedded.report import write_report
from medvl.embedded.report_reader import parse_report
from medvl.embedded.requests import request_pool
from medvl.evaluation.cases import Case
from medvl.evaluation.clicks import box_around, first_click
from medvl.evaluation.language import compare_answer, compare_report
from medvl.evaluation.metrics import dice
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
PHANTOM_SEED = 1058
"""Of the phantom that is shown, chosen because what is said of it is right; those of training begin at a million."""
QUESTIONS = 4


@dataclass(frozen=True)
class Wish:
    """A mask to ask for; of a phantom it is known what the mask should be, bool [D, R, C]."""

    prompt: ObjectPrompt
    truth: np.ndarray | None = None


@dataclass
class Account:
    """What the summary will say, gathered step by step."""

    answers: list[dict[str, Any]] = field(default_factory=list)
    stages_ms: dict[str, float] = field(default_factory=dict)
    masks: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a step of the demo."""
        print(f"== {name}", flush=True)
        begun_s = time.perf_counter()
        yield
        self.stages_ms[name] = round((time.perf_counter() - begun_s) * 1000, 3)

    def keep(
        self, name: str, answer: Answer, loaded: LoadedSeries, out: Path, truths: Mapping[int, np.ndarray]
    ) -> None:
        """Write the masks of an answer and their pictures under ``out``; ``name`` begins the names of the files.

        ``truths`` says by its number what an object should be, where that is known.
        """
        for mask in answer.masks:
            print(mask_line(mask))
            stem = name if len(answer.masks) == 1 else f"{name}-{mask.object_index}"
            path = out / "masks" / f"{stem}.nii.gz"
            if mask.found:
                write_masks(MaskTarget(path, MaskFormat.NIFTI), loaded, replace(answer, masks=(mask,)))
                write_overlay(out / "overlays" / f"{stem}.png", loaded.volume, mask)
            measured, truth = mask.measurement, truths.get(mask.object_index)
            self.masks.append(
                {
                    "label": mask.label,
                    "prompt": mask.prompt or f"finding {mask.object_index + 1} of the report",
                    "path": str(path) if mask.found else None,
                    "voxels": measured.voxels if measured else 0,
                    "volume_mm3": measured.volume_mm3 if measured else 0.0,
                    "score": mask.score,
                    "found": mask.found,
                    "dice": None if truth is None else round(dice(mask.array, truth), 4),
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
    path, case = arguments.series, None
    if path is None:
        with account.stage("phantom"):
            path, case = write_phantom(out / "phantom")
    with account.stage("read"):
        loaded = read_series(path, GeometryPolicy(arguments.geometry_policy))
    for finding in loaded.findings:
        print(f"note: {finding}")
    async with AsyncExitStack() as stack:
        with account.stage("start"):
            system = await stack.enter_async_context(EmbeddedSystem(arguments.data, progress=print))
        client = await stack.enter_async_context(AsyncClient(system.endpoint))
        summary = await use_system(client, loaded, case, out, account)
    summary_file = out / "summary.json"
    summary_file.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", "utf-8")
    show(summary, summary_file)


def clear(out: Path) -> None:
    """Make the folders of the results and remove what an earlier demo left there."""
    for name in ("masks", "overlays"):
        (out / name).mkdir(parents=True, exist_ok=True)
        for stale in (out / name).iterdir():
            stale.unlink()


def write_phantom(folder: Path) -> tuple[Path, Case]:
    """Write a phantom; return the folder of its DICOM series, and what is true of it."""
    series = folder / "series"
    phantom = write_phantom_series(series, seed=PHANTOM_SEED)
    write_labels(folder / "labels" / "labels.nii.gz", phantom)
    write_truth(folder / "truth", phantom)
    return series, Case(PHANTOM_SEED, Volume(phantom.hu, phantom.geometry), phantom.labels, phantom.truth)


async def use_system(
    client: AsyncClient, loaded: LoadedSeries, case: Case | None, out: Path, account: Account
) -> dict[str, Any]:
    """Ask the running system everything that the demo shows; return the summary."""
    service = await client.describe()
    with account.stage("upload"):
        await client.put_series(loaded.volume)
    with account.stage("report"):
        report = await read_aloud(client.report(loaded.volume))
    account.stages_of("report", report)
    account.keep("report", report, loaded, out, {} if case is None else named_in(report.text, case))
    for number, asked in enumerate(questions_about(case), 1):
        name = f"ask_{number}"
        with account.stage(name):
            print(asked.question)
            answer = await read_aloud(client.ask(loaded.volume, asked.question))
        account.stages_of(name, answer)
        account.answers.append(answered(asked, answer.text))
    for name, wish in (wishes(loaded.volume, service) if case is None else wishes_of(case)).items():
        with account.stage(name):
            segmented = await client.segment(loaded.volume, [wish.prompt]).collect()
        account.stages_of(name, segmented)
        account.keep(name, segmented, loaded, out, {} if wish.truth is None else {0: wish.truth})
    return summary_of(loaded, service, account, report.text, case)


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


def named_in(report: str, case: Case) -> dict[int, np.ndarray]:
    """Return the findings that a report names, by the numbers of their [SEG]; what is not there has no voxel."""
    named = findings_named(case.truth, parse_report(report))
    return {seg: case.findings(() if number is None else (number,)) for seg, _, number in named}


def questions_about(case: Case | None) -> list[QuestionAnswer]:
    """Return what to ask; of a phantom the answers are known."""
    if case is None:
        return [QuestionAnswer(QUESTION, "", Topic.PRESENCE, closed=True, expected="")]
    return questions(case.truth, np.random.default_rng(case.seed), QUESTIONS)


def wishes_of(case: Case) -> dict[str, Wish]:
    """Return one prompt of each kind, about a phantom's own organs and findings."""
    volume = case.volume
    finding = next(w for w in request_pool(case.truth) if w.present and w.findings)
    words = next(finding.phrasings()).text
    lesion, kidney = case.findings(finding.findings), case.organ("kidney_left")
    (click,) = volume.geometry.index_to_lps(np.array([first_click(lesion).voxel]))
    box = box_around(kidney)
    corners = volume.geometry.index_to_lps(np.array([box.low, box.high]))
    return {
        "segment_label": Wish(ObjectPrompt(label=LABEL), case.organ(LABEL)),
        "segment_text": Wish(ObjectPrompt(text=words), lesion),
        "segment_point": Wish(ObjectPrompt(points=(Point(xyz(click)),)), lesion),
        "segment_box": Wish(ObjectPrompt(boxes=(Box(xyz(corners[0]), xyz(corners[1])),)), kidney),
    }


def wishes(volume: Volume, service: ServiceDescription) -> dict[str, Wish]:
    """Return one prompt of each kind; the point and the box lie inside the body of the series at hand."""
    labels = [label.name for label in service.labels]
    label = LABEL if LABEL in labels else labels[0]
    spot = spot_in_body(volume)
    corners = volume.geometry.index_to_lps(np.array([spot.box_min, spot.box_max]))
    (point,) = volume.geometry.index_to_lps(np.array([spot.centre]))
    return {
        "segment_label": Wish(ObjectPrompt(label=label)),
        "segment_text": Wish(ObjectPrompt(text=TEXT)),
        "segment_point": Wish(ObjectPrompt(points=(Point(xyz(point)),))),
        "segment_box": Wish(ObjectPrompt(boxes=(Box(xyz(corners[0]), xyz(corners[1])),))),
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


def answered(asked: QuestionAnswer, text: str) -> dict[str, Any]:
    """Return an answer for the summary, beside what is true where that is known."""
    said = {"question": asked.question, "answer": text}
    if not asked.answer:
        return said
    return said | {"truth": asked.answer, "right": compare_answer(asked, text).right}


def summary_of(
    loaded: LoadedSeries, service: ServiceDescription, account: Account, report: str, case: Case | None
) -> dict[str, Any]:
    """Return what ``summary.json`` holds; lengths are millimetres, positions LPS."""
    series = series_document(loaded)
    provenance = service.provenance
    return {
        "series": {"digest": series["digest"], "geometry": {**series["geometry"], "findings": series["findings"]}},
        "report": report,
        "truth": None if case is None else truth_of(case, report),
        "answers": account.answers,
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


def truth_of(case: Case, report: str) -> dict[str, Any]:
    """Return the report that would have been right, and how the findings of another one agree with it."""
    compared = compare_report(case.truth, report)
    return {
        "report": write_report(case.truth, np.random.default_rng(case.seed)),
        "findings": {
            "true": compared.wanted,
            "stated": compared.stated,
            "matched": compared.matched,
        },
        "unreadable_sentences": compared.unread,
    }


def show(summary: dict[str, Any], path: Path) -> None:
    """Print how all that was said compares with the truth, and where everything lies."""
    checkpoint, truth = summary["checkpoint"], summary["truth"]
    print(f"\ncheckpoint {checkpoint['name']}{'' if checkpoint['trained'] else ' (NOT trained: random weights)'}")
    if truth:
        true, stated, matched = (sum(truth["findings"][key].values()) for key in ("true", "stated", "matched"))
        print(f"truth      {truth['report'].replace(chr(10), chr(10) + ' ' * 11)}")
        print(f"report     {matched} of {true} findings right, {stated - matched} of {stated} that are not there")
    for said in summary["answers"]:
        verdict = f" ({'right' if said['right'] else 'WRONG'}; the truth: {said['truth']})" if "right" in said else ""
        print(f"answer     {printable(said['question'])} {printable(said['answer'])}{verdict}")
    for mask in summary["masks"]:
        agreement = "" if mask["dice"] is None else f", Dice {mask['dice']:.2f} with the truth"
        print(
            f"mask       {mask['path'] or 'not found'}: {mask['prompt']}, {mask['volume_mm3'] / 1000:.1f} ml{agreement}"
        )
    print(f"pictures   {path.parent / 'overlays'}")
    print(f"summary    {path}")
    print(summary["disclaimer"])


if __name__ == "__main__":
    sys.exit(main())
