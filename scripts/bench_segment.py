"""``make bench-segment``: what a click costs, served, in one process, and by ``sam2``'s own video predictor.

One series of 128 x 512 x 512, the phantom checkpoint. "one process" is the engine itself, the same propagation over
the same graphs with as many workers, in this process without Triton; "sam2" is the video predictor of the unmodified
``sam2`` package with the same weights, slices and threads, its image encoder included. All of them take turns in every
round, each on a series that nothing has seen, so that the machine's noise meets them alike; ratios are of one round.
Medians with the least and the most; nothing is asserted. Prints a table and writes JSON.

``--real-size`` puts SAM2.1 tiny at 512 in the place of the phantom's SAM2, with random weights, which never leave an
object: it tells costs, and nothing of an organ. It needs few slices (``--slices 8 --series 0``).
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import torch
from bench import another, benchmark, cpu_name, markdown_table, note, plain_table, spread, watch
from safetensors.torch import save_file
from sam2.build_sam import build_sam2_video_predictor

from medvl.client import AsyncClient, Mask, ObjectPrompt, Point, SlicePreview
from medvl.contracts.checkpoint import CHECKPOINT_FILE, LANGUAGE_FOLDER, Checkpoint, load_checkpoint
from medvl.contracts.errors import SetupError
from medvl.contracts.manifest import MODELS_FOLDER, files_of, sha256_of
from medvl.embedded.phantom import make_phantom, sized
from medvl.embedded.preset import enliven
from medvl.evaluation.cases import Case
from medvl.evaluation.clicks import first_click
from medvl.export.presets import PHANTOM, resolve_checkpoint
from medvl.imaging.resample import FitTransform, fit_slices
from medvl.imaging.volume import Volume
from medvl.imaging.windows import Window, to_uint8
from medvl.network.modules import Modules
from medvl.network.prompts import POSITIVE, PromptPoint
from medvl.network.prompts import ObjectPrompt as Prompted
from medvl.network.propagation import Propagation
from medvl.network.sam2_build import sam_config
from medvl.network.slice_mask import SliceMasks
from medvl.runtime.system import EmbeddedSystem, SystemOptions
from medvl.serving.feature_store import FeatureStore, SeriesKey
from medvl.serving.findings import Findings
from medvl.serving.own_graphs import OWN_ENCODE_BATCH, OWN_OBJECT_BATCH, OwnGraphs, graphs_beside
from medvl.serving.triton_steps import Arrays, Spent, StoredFeatures, TritonSteps, encode

WHOLE, ORGAN = "vertebral_column", "kidney_left"
"""An object on every slice of the series, and one on about 40 of 128."""
EIGHT = (WHOLE, ORGAN, "kidney_right", "liver", "spleen", "aorta", "heart", "lung_left")
SEED = 11
RESIDENT_SLICES, RESIDENT_BYTES = 300, 400_000_000
"""Slices of each series that is sent in turn, and the bound of the segmenter's stores meanwhile."""
STORES = {"STORE": 0.7, "KNOWN": 0.25, "RESULT": 0.05}
"""Their shares of it."""

Index = tuple[int, int, int]
"""Slice, row and column."""
Samples = dict[str, list[float]]


def main() -> int:
    """Run the benchmark; every failure is one sentence."""
    return benchmark(__doc__ or "", bench, lines, "bench-segment.json", real_size=True)


async def bench(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure everything; return it."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    os.environ["MEDVL_SEGMENTER_WORKERS"] = str(arguments.threads)
    made = make_phantom(SEED, sized(arguments.slices, arguments.side))
    case = Case(SEED, Volume(made.hu, made.geometry), made.labels, made.truth)
    for store, share in STORES.items():
        os.environ[f"MEDVL_SEGMENTER_{store}_BYTES"] = str(int(share * RESIDENT_BYTES))
    phantom = resolve_checkpoint(PHANTOM)
    folder = real_size(phantom, arguments.out / "real-size") if arguments.real_size else phantom
    async with AsyncExitStack() as stack:
        options = SystemOptions(checkpoint=str(folder.absolute()))
        system = await stack.enter_async_context(EmbeddedSystem(arguments.data, options, note))
        client = await stack.enter_async_context(AsyncClient(system.endpoint))
        service = await client.describe()
        checkpoint = load_checkpoint(folder)
        engine = Engine(Path(system.state.repository), checkpoint, arguments.threads)
        predictor = Predictor(folder, checkpoint)
        segmenter = segmenter_process(system.triton.process.pid)
        share = await resident_share(client, segmenter, case.volume, arguments.series)
        note(f"resident set over its bound: {share:.2f}")
        samples: Samples = defaultdict(list)
        for number in range(-1, arguments.rounds):
            note("warming up" if number < 0 else f"round {number + 1} of {arguments.rounds}")
            taken = await one_round(client, engine, predictor, case, number + 2)
            note(", ".join(f"{name} {value:.0f}" for name, value in taken.items()))
            if number >= 0:
                for name, value in taken.items():
                    samples[name].append(value)
        note("where the time of a click goes")
        flame = await engine.flame(another(case.volume, 0), first_click(case.organ(WHOLE)).voxel)
    return {
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": arguments.threads},
        "checkpoint": service.provenance.checkpoint,
        "software": service.provenance.software,
        "triton": service.provenance.triton_version,
        "shape": list(case.volume.geometry.shape),
        "rounds": arguments.rounds,
        "samples": samples,
        "flame": flame,
        "resident_share": share,
    }


async def one_round(
    client: AsyncClient, engine: Engine, predictor: Predictor, case: Case, number: int
) -> dict[str, float]:
    """Return milliseconds of everything, each on features that are cold unless its name says otherwise."""
    clicks = {name: first_click(case.organ(name)).voxel for name in EIGHT}
    whole, organ = clicks[WHOLE], clicks[ORGAN]
    beside = (whole[0] + 5, *whole[1:])
    volumes = (another(case.volume, 10 * number + i) for i in range(3))
    taken: dict[str, float] = {}
    async for volume in uploaded(client, volumes):
        if "click" not in taken:
            taken["click"], _ = await served(client, volume, [[whole]])
            # Corrections of the first click; the other one for the local mode, whose exact answer would be known.
            taken["second click"], _ = await served(client, volume, [[whole, beside]])
            above = [whole, moved(beside)]
            taken["second click, local"], _ = await served(client, volume, [above], local=True)
            # The same clicks would be answered from what is known already.
            near = [moved(place) for place in clicks.values()]
            taken["click, resident"], taken["first mask, resident"] = await served(client, volume, [near[:1]])
            taken["eight, resident"], _ = await served(client, volume, [[moved(place)] for place in near])
            begun_s = time.process_time()
            taken["engine, click"] = await engine.click(volume, whole)
            taken["engine, click, CPU"] = (time.process_time() - begun_s) * 1000
            taken["engine, click, resident"] = await engine.click(volume, near[0])
        elif "eight" not in taken:
            taken["eight"], _ = await served(client, volume, [[place] for place in clicks.values()])
            taken["sam2, click"], taken["sam2, click, CPU"] = predictor.click(volume, whole)
        else:
            taken["organ"], _ = await served(client, volume, [[organ]])
            begun_s = time.process_time()
            taken["engine, organ"] = await engine.click(volume, organ)
            taken["engine, organ, CPU"] = (time.process_time() - begun_s) * 1000
            taken["sam2, organ"], taken["sam2, organ, CPU"] = predictor.click(volume, organ)
    return taken


def moved(place: Index) -> Index:
    """Return the voxel beside a place."""
    return place[0], place[1], place[2] + 1


async def uploaded(client: AsyncClient, volumes: Iterator[Volume]) -> AsyncIterator[Volume]:
    """Yield volumes that the service has."""
    for volume in volumes:
        await client.put_series(volume)
        yield volume


async def served(
    client: AsyncClient, volume: Volume, objects: Sequence[Sequence[Index]], *, local: bool = False
) -> tuple[float, float]:
    """Return the milliseconds to the last mask and to the first preview of objects, each by its clicks.

    Every click but the first of an object corrects the mask of those before it.
    """
    prompts = [
        ObjectPrompt(points=tuple(Point(lps(volume, place), correction=i) for i, place in enumerate(places)))
        for places in objects
    ]
    seen = await watch(client.segment(volume, prompts, previews=True, local=local))
    return seen.last_ms[Mask], seen.first_ms[SlicePreview]


def lps(volume: Volume, place: Index) -> tuple[float, float, float]:
    """Return the place of a voxel in patient millimetres."""
    x, y, z = volume.geometry.index_to_lps(np.array(place)).tolist()
    return x, y, z


class TimedGraphs(OwnGraphs):
    """Graphs that count the CPU time of their threads."""

    def __init__(self, paths: Mapping[str, Path], *, workers: int, threads: int) -> None:
        super().__init__(paths, workers=workers, threads=threads)
        self.cpu_ms: Counter[str] = Counter()

    def run(self, model: str, names: Sequence[str], inputs: Arrays) -> Sequence[np.ndarray]:
        """Call a graph in this thread."""
        begun_s = time.thread_time()
        outputs = super().run(model, names, inputs)
        self.cpu_ms[model] += (time.thread_time() - begun_s) * 1000
        return outputs


class TimedFindings(Findings):
    """Findings that count the CPU time that masks take."""

    cpu_ms = 0.0

    def worked_on(self, object_id: int, number: int, mask_logits: np.ndarray, presence: float) -> None:
        """Keep the mask of a slice."""
        begun_s = time.thread_time()
        super().worked_on(object_id, number, mask_logits, presence)
        self.cpu_ms += (time.thread_time() - begun_s) * 1000

    def ended(self, object_id: int, score: float, key_slices: Sequence[int], *, found: bool) -> None:
        """Pack the whole mask."""
        begun_s = time.thread_time()
        super().ended(object_id, score, key_slices, found=found)
        self.cpu_ms += (time.thread_time() - begun_s) * 1000


class Engine:
    """The segmenter's engine in this process: its store, its graphs and its propagation, without Triton."""

    def __init__(self, repository: Path, checkpoint: Checkpoint, threads: int) -> None:
        paths = graphs_beside(repository / MODELS_FOLDER / "volume_segmenter", "1")
        assert paths is not None
        self._graphs = TimedGraphs(paths, workers=threads, threads=1)
        self._store = FeatureStore(partial(encode, self._graphs.infer), budget_bytes=2**31, batch=OWN_ENCODE_BATCH)
        self._checkpoint = checkpoint

    async def flame(self, volume: Volume, place: Index) -> dict[str, float]:
        """Return the CPU milliseconds of a click on unseen slices, by what takes them; together the whole."""
        self._graphs.cpu_ms.clear()
        begun_s, own_s = time.process_time(), time.thread_time()
        await self.click(volume, place)
        all_ms, own_ms = (time.process_time() - begun_s) * 1000, (time.thread_time() - own_s) * 1000
        spent = dict(self._graphs.cpu_ms) | {"masks at native resolution": self._masks_ms, "windowing": self._fit_ms}
        spent["the rest of the event loop"] = own_ms - self._masks_ms - self._fit_ms
        return spent | {"threads, beside the graphs": all_ms - sum(spent.values())}

    async def click(self, volume: Volume, place: Index) -> float:
        """Return the milliseconds of a click, the windowing and fitting of unseen slices included."""
        spec = self._checkpoint.segmentation
        begun_s = time.perf_counter()
        window = self._checkpoint.windows[spec.window]
        key = SeriesKey(volume.digest, window, self._checkpoint.digest)
        fit_s = time.thread_time()
        if key not in self._store:
            self._store.put(key, fitted(volume, self._checkpoint))
        self._fit_ms = (time.thread_time() - fit_s) * 1000
        depth, rows, columns = volume.geometry.shape
        transform = FitTransform(rows, columns, spec.side, spec.fit)
        spent = Spent()
        masks = SliceMasks(transform, partial(self._store.slice_of, key), spec.edges)
        found = TimedFindings(lambda event, packed: None, lambda number, result: None, {0: {}}, (), depth, masks)
        steps = TritonSteps(self._graphs.infer, self._checkpoint, spent)
        with self._store.using(key):
            source = StoredFeatures(self._store, key, spent)
            await Propagation(steps, source, depth, spec, found, batch=OWN_OBJECT_BATCH).run(
                [Prompted(0, {place[0]: (point(transform, place),)})]
            )
        self._masks_ms = found.cpu_ms
        return (time.perf_counter() - begun_s) * 1000


class Predictor:
    """``sam2``'s own video predictor with the weights of a checkpoint folder."""

    def __init__(self, folder: Path, checkpoint: Checkpoint) -> None:
        config, overrides = sam_config(checkpoint.segmentation)
        self._sam = build_sam2_video_predictor(
            config, device="cpu", hydra_overrides_extra=overrides, apply_postprocessing=False
        )
        self._sam.load_state_dict(Modules.load(folder, checkpoint).sam2.state_dict())
        self._checkpoint = checkpoint

    @torch.inference_mode()
    def click(self, volume: Volume, place: Index) -> tuple[float, float]:
        """Return milliseconds and CPU milliseconds of a click, both directions, without the reading of slices."""
        spec = self._checkpoint.segmentation
        _, rows, columns = volume.geometry.shape
        with tempfile.TemporaryDirectory() as folder:
            for number, plane in enumerate(fitted(volume, self._checkpoint)):
                cv2.imwrite(f"{folder}/{number}.jpg", plane)
            state = self._sam.init_state(folder)
        # The state's making encodes one slice, which belongs to the click.
        state["cached_features"].clear()
        clicked = point(FitTransform(rows, columns, spec.side, spec.fit), place)
        begun_s, cpu_s = time.perf_counter(), time.process_time()
        self._sam.add_new_points_or_box(
            state, frame_idx=place[0], obj_id=0, points=[[clicked.x - 0.5, clicked.y - 0.5]], labels=[POSITIVE]
        )
        for reverse in (False, True):
            for _ in self._sam.propagate_in_video(state, start_frame_idx=place[0], reverse=reverse):
                pass
        return (time.perf_counter() - begun_s) * 1000, (time.process_time() - cpu_s) * 1000


def fitted(volume: Volume, checkpoint: Checkpoint) -> np.ndarray:
    """Return the slices as SAM2 sees them, UINT8 [D, S, S]."""
    spec = checkpoint.segmentation
    return fit_slices(to_uint8(volume.hu, Window(*checkpoint.windows[spec.window])), spec.side, spec.fit)


def point(transform: FitTransform, place: Index) -> PromptPoint:
    """Return a click in the pixels of SAM2's slices."""
    x, y = transform.to_model_xy(np.array([place[2], place[1]])).tolist()
    return PromptPoint(x, y, POSITIVE)


def real_size(phantom: Path, folder: Path) -> Path:
    """Write the phantom checkpoint with SAM2.1 tiny at 512 in the place of its own SAM2; weights from a seed."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(phantom / LANGUAGE_FOLDER, folder / LANGUAGE_FOLDER)
    fields = load_checkpoint(phantom).model_dump() | {"name": "real-size", "trained": False}
    fields["segmentation"] |= {"architecture": "sam2.1_hiera_t", "overrides": {}, "side": 512}
    torch.manual_seed(SEED)
    modules = Modules.build(Checkpoint.model_validate(fields))
    enliven(modules)
    for name, module in modules.parts.items():
        save_file(
            {key: value.contiguous() for key, value in module.state_dict().items()}, folder / f"{name}.safetensors"
        )
    fields["files"] = {name: sha256_of(path) for name, path in files_of(folder).items()}
    text = Checkpoint.model_validate(fields).model_dump_json(indent=2)
    (folder / CHECKPOINT_FILE).write_text(text + "\n", "utf-8")
    return folder


def segmenter_process(triton: int) -> psutil.Process:
    """Return the process of the segmenter among those of a Triton server.

    Raises
    ------
    SetupError
        When there is none.
    """
    for process in psutil.Process(triton).children(recursive=True):
        if any("volume_segmenter" in word for word in process.cmdline()):
            return process
    raise SetupError("The server runs no segmenter: see its log.")


def own_bytes(process: psutil.Process) -> int:
    """Return the memory that a process has for itself."""
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


async def resident_share(client: AsyncClient, segmenter: psutil.Process, volume: Volume, count: int) -> float:
    """Return how far the segmenter's memory grows over series sent in turn, as a share of its bound.

    It begins with empty stores, after a request for few slices, which gives the graphs what they work in, and counts no
    pages that are shared with the server. Every slice of every series is encoded, because a class is looked for on all
    of them.
    """
    note(f"{count} series of {RESIDENT_SLICES} slices")
    few = Volume(volume.hu[:8], replace(volume.geometry, shape=(8, *volume.geometry.shape[1:])))
    await client.put_series(few)
    await client.segment(few, [ObjectPrompt(label=ORGAN)]).collect()
    before, most = own_bytes(segmenter), 0
    repeats = -(-RESIDENT_SLICES // volume.geometry.shape[0])
    hu = np.concatenate([volume.hu] * repeats)[:RESIDENT_SLICES, ::2, ::2]
    geometry = replace(volume.geometry, shape=hu.shape)
    for number in range(count):
        series = another(Volume(hu, geometry), number)
        await client.put_series(series)
        await client.segment(series, [ObjectPrompt(label=ORGAN)]).collect()
        most = max(most, own_bytes(segmenter) - before)
    return most / RESIDENT_BYTES


RATIOS = (
    ("serving overhead, features cold", "click", "engine, click", "1.15"),
    ("serving overhead, resident", "click, resident", "engine, click, resident", "1.15"),
    ("second click over the first, exact", "second click", "click", "0.5"),
    ("second click over the first, local", "second click, local", "click", "0.25"),
    ("eight objects over one, cold", "eight", "click", "4"),
    ("eight objects over one, resident", "eight, resident", "click, resident", "6.5"),
    ("ours over sam2, whole volume", "click", "sam2, click", "0.6"),
    ("ours over sam2, an organ", "organ", "sam2, organ", "0.3"),
    ("CPU time of the engine over sam2's, whole volume", "engine, click, CPU", "sam2, click, CPU", "0.6"),
    ("CPU time of the engine over sam2's, an organ", "engine, organ, CPU", "sam2, organ, CPU", "0.3"),
)
"""What is divided by what, and the goal."""


def lines(result: Mapping[str, Any], *, markdown: bool) -> list[str]:
    """Return the tables as lines: milliseconds, then ratios of one round."""
    samples: Mapping[str, Sequence[float]] = result["samples"]
    times = [("what", "ms"), *((name, spread(values)) for name, values in samples.items())]
    ratios = [("ratio", "measured", "goal")]
    for name, above, below, goal in RATIOS:
        values = [a / b for a, b in zip(samples[above], samples[below], strict=True)]
        ratios.append((name, f"{statistics.median(values):.2f} ({min(values):.2f}..{max(values):.2f})", f"<= {goal}"))
    ratios.append(("first 2D mask, resident, ms", spread(samples["first mask, resident"]), "<= 15"))
    ratios.append(("resident set over its bound", f"{result['resident_share']:.2f}", "<= 1.0"))
    flame: Mapping[str, float] = result["flame"]
    whole = sum(flame.values())
    parts = [("a click on unseen slices", "CPU ms", "")]
    for name, ms in sorted(flame.items(), key=lambda item: -item[1]):
        parts.append((name, f"{ms:.0f}", "#" * round(50 * ms / whole)))
    layout = markdown_table if markdown else plain_table
    machine = result["machine"]
    facts = (
        f"{result['software']}, checkpoint {result['checkpoint']}, Triton {result['triton']}, {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['threads']} threads; medians of {result['rounds']} (least..most)."
    )
    return [*layout(ratios), "", *layout(times), "", *layout(parts), "", facts]


if __name__ == "__main__":
    sys.exit(main())
