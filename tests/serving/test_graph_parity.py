"""The graphs that are served, over the phantom checkpoint's trained weights, against SAM2 itself with these weights.

In this process: the segmenter's own steps on onnxruntime, as it has them on a CPU.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from medvl.contracts.checkpoint import Checkpoint, load_checkpoint
from medvl.contracts.manifest import MODELS_FOLDER
from medvl.embedded.phantom import make_phantom, sized
from medvl.imaging.resample import FitTransform, fit_slices
from medvl.imaging.windows import Window, to_uint8
from medvl.network.modules import Modules
from medvl.network.prompts import BOX_FIRST, BOX_SECOND, NEGATIVE, POSITIVE, ObjectPrompt, PromptPoint
from medvl.network.propagation import Propagation
from medvl.serving.feature_store import FeatureStore, SeriesKey
from medvl.serving.own_graphs import OwnGraphs, graphs_beside
from medvl.serving.triton_steps import Spent, StoredFeatures, TritonSteps, encode

from ..sam2_tracker import Prompt, Sam2Tracker, dice  # noqa: TID252 - tests are no installed package

DEPTH, SEED = 20, 77
TOLERANCE = 1e-3
ORGAN, OTHER = "liver", "vertebral_column"


@pytest.fixture(scope="module")
def graphs(phantom_repository: Path) -> Iterator[OwnGraphs]:
    """The graphs of the repository in worker threads."""
    paths = graphs_beside(phantom_repository / MODELS_FOLDER / "volume_segmenter", "1")
    assert paths is not None
    graphs = OwnGraphs(paths, workers=1, threads=1)
    yield graphs
    graphs.close()


@pytest.fixture(scope="module")
def checkpoint(phantom_checkpoint: Path) -> Checkpoint:
    """The trained checkpoint, whose tracking never gives up here."""
    loaded = load_checkpoint(phantom_checkpoint)
    spec = loaded.segmentation.model_copy(update={"stop_after_absent": DEPTH, "heed_clicks_px": None})
    return loaded.model_copy(update={"segmentation": spec})


@pytest.fixture(scope="module")
def tracker(phantom_checkpoint: Path, checkpoint: Checkpoint, scene: Scene) -> Sam2Tracker:
    """SAM2 with the trained weights, on the same slices."""
    sam = Modules.load(phantom_checkpoint, checkpoint).sam2
    sam.max_cond_frames_in_attn = checkpoint.segmentation.max_conditioning_slices
    with torch.inference_mode():
        return Sam2Tracker(sam, scene.slices, 1)


@dataclass(frozen=True)
class Scene:
    """A phantom as SAM2 sees it."""

    slices: np.ndarray
    """UINT8 [DEPTH, S, S]."""
    masks: Mapping[str, np.ndarray]
    """bool [DEPTH, S, S] of organs."""

    def inside(self, name: str, number: int, label: int = POSITIVE) -> PromptPoint:
        """Return a point in the middle of an organ on a slice."""
        rows, columns = np.nonzero(self.masks[name][number])
        middle = np.hypot(rows - rows.mean(), columns - columns.mean()).argmin()
        return PromptPoint(float(columns[middle]) + 0.5, float(rows[middle]) + 0.5, label)

    def around(self, name: str, number: int) -> tuple[PromptPoint, PromptPoint]:
        """Return the corners of the box around an organ on a slice."""
        rows, columns = np.nonzero(self.masks[name][number])
        low, high = (float(columns.min()), float(rows.min())), (float(columns.max()) + 1, float(rows.max()) + 1)
        return PromptPoint(*low, BOX_FIRST), PromptPoint(*high, BOX_SECOND)


@pytest.fixture(scope="module")
def scene(checkpoint: Checkpoint) -> Scene:
    """A phantom with a liver and a spine."""
    made, spec = make_phantom(SEED, sized(DEPTH, 128)), checkpoint.segmentation
    transform = FitTransform(128, 128, spec.side, spec.fit)
    slices = fit_slices(to_uint8(made.hu, Window(*checkpoint.windows[spec.window])), spec.side, spec.fit)
    organs = {name: np.isin(made.labels, made.truth.values_of(name)) for name in (ORGAN, OTHER)}
    masks = {name: np.stack([transform.mask_to_model(plane) for plane in own]) for name, own in organs.items()}
    return Scene(slices, masks)


@dataclass
class Heard:
    """Logits by slice."""

    logits: dict[int, np.ndarray] = field(default_factory=dict)

    def prompted(self, object_id: int, number: int, mask_logits: np.ndarray, score: float) -> None: ...

    def worked_on(self, object_id: int, number: int, mask_logits: np.ndarray, presence: float) -> None:
        self.logits[number] = mask_logits

    def progress(self, done: int, total: int) -> None: ...

    def ended(self, object_id: int, score: float, key_slices: Sequence[int], *, found: bool) -> None: ...


def segmented(graphs: OwnGraphs, checkpoint: Checkpoint, slices: np.ndarray, prompt: ObjectPrompt) -> Heard:
    """Propagate one object as the segmenter does."""
    spent, heard = Spent(), Heard()
    key = SeriesKey("scene", (0.0, 1.0), "checkpoint")

    async def run() -> None:
        store = FeatureStore(partial(encode, graphs.infer), budget_bytes=2**30, batch=1)
        store.put(key, slices)
        with store.using(key):
            steps, source = TritonSteps(graphs.infer, checkpoint, spent), StoredFeatures(store, key, spent)
            await Propagation(steps, source, len(slices), checkpoint.segmentation, heard).run([prompt])

    asyncio.run(run())
    return heard


Told = tuple[Mapping[int, Prompt], tuple[Mapping[int, tuple[PromptPoint, ...]], ...]]


def several(scene: Scene) -> Told:
    """A point, a box, a point with a negative one, and a point: as many slices as are attended to, and one more."""
    beside = scene.inside(OTHER, 9, NEGATIVE)
    return {
        4: (scene.inside(ORGAN, 4),),
        7: scene.around(ORGAN, 7),
        9: (scene.inside(ORGAN, 9), beside),
        10: (scene.inside(ORGAN, 10),),
        12: (beside,),
    }, ()


def given(scene: Scene) -> Told:
    """Two masks, and a point between them."""
    return {5: scene.masks[ORGAN][5], 8: scene.masks[ORGAN][8], 7: (scene.inside(ORGAN, 7),)}, ()


def corrected(scene: Scene) -> Told:
    """A point, then corrections above and below it, on one slice twice."""
    first = (scene.inside(ORGAN, 8),)
    above, below = (scene.inside(OTHER, 11, NEGATIVE),), (scene.inside(ORGAN, 5),)
    return {8: first}, ({11: above}, {5: below}, {11: (scene.inside(OTHER, 11, POSITIVE),), 8: below})


@pytest.mark.parametrize("told", [several, given, corrected])
def test_served_graphs_are_sam2s_over_trained_weights(told, graphs, checkpoint, tracker, scene):
    """Every slice within 1e-3 of SAM2's logits, and a mask that is neither nothing nor everything."""
    first, corrections = told(scene)
    prompt = ObjectPrompt(
        0,
        {n: own for n, own in first.items() if not isinstance(own, np.ndarray)},
        masks={n: own for n, own in first.items() if isinstance(own, np.ndarray)},
        corrections=corrections,
    )
    history = [{n: [prompt.corrected(i, n)] for n in own} for i, own in enumerate(corrections, 1)]
    with torch.inference_mode():
        expected = tracker.run({n: [own] for n, own in first.items()}, history)
    heard = segmented(graphs, checkpoint, scene.slices, prompt)
    assert heard.logits.keys() == expected.keys() == set(range(DEPTH))
    difference = {n: float(np.abs(heard.logits[n] - expected[n][0]).max()) for n in range(DEPTH)}
    print(f"largest difference {max(difference.values()):.1e}")
    assert max(difference.values()) <= TOLERANCE, difference
    logits = [heard.logits[n] for n in range(DEPTH)]
    assert dice(logits, [expected[n][0] for n in range(DEPTH)]) >= 0.999
    assert 0.001 < np.mean(np.stack(logits) > 0) < 0.5
