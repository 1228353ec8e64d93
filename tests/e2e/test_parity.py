"""What is served equals the torch reference, on masks that mean something and change with their inputs."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medvl.client import Box, Client, ObjectPrompt, Point
from medvl.imaging.series import LoadedSeries
from medvl.network.model import ReferenceModel
from medvl.network.prompts import (
    BOX_FIRST,
    BOX_SECOND,
    NEGATIVE,
    POSITIVE,
    PromptPoint,
    SlicePrompt,
    prompt_arrays,
)
from medvl.network.prompts import ObjectPrompt as Prompted
from medvl.network.steps import Decoded
from medvl.orchestrator.calls import Call
from medvl.orchestrator.triton import Triton
from medvl.runtime.triton import TritonServer

QUESTION = "Is there a lesion in the liver?"


@pytest.fixture(scope="session")
def reference(phantom_checkpoint: Path) -> ReferenceModel:
    """The torch reference of the served checkpoint."""
    return ReferenceModel.load(phantom_checkpoint)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2.0 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def at(series: LoadedSeries, number: int, row: float, column: float) -> tuple[float, float, float]:
    """Return the LPS place of a fraction of the plane on a slice."""
    _, rows, columns = series.volume.geometry.shape
    x, y, z = series.volume.geometry.index_to_lps(np.array([number, round(row * rows), round(column * columns)]))
    return float(x), float(y), float(z)


def prompts(series: LoadedSeries) -> dict[str, ObjectPrompt]:
    clicks = (Point(at(series, 12, 0.45, 0.3)), Point(at(series, 12, 0.8, 0.8), negative=True))
    corrected = (
        clicks[0],
        Point(at(series, 15, 0.8, 0.8), negative=True, correction=1),
        Point(at(series, 9, 0.5, 0.35), correction=2),
        Point(at(series, 15, 0.45, 0.3), correction=3),
    )
    box = Box(at(series, 8, 0.3, 0.2), at(series, 16, 0.6, 0.5))
    mask = np.zeros(series.volume.geometry.shape, bool)
    mask[9:11, 50:70, 30:60] = mask[13, 52:68, 34:58] = True
    return {
        "point": ObjectPrompt(points=clicks[:1]),
        "two points": ObjectPrompt(points=clicks),
        "box": ObjectPrompt(boxes=(box,)),
        "mask": ObjectPrompt(mask=mask),
        "mask and click": ObjectPrompt(mask=np.roll(mask, 4, axis=2), points=(Point(at(series, 10, 0.5, 0.35)),)),
        "label": ObjectPrompt(label="liver"),
        "text": ObjectPrompt(text="the left lung"),
        "label and click": ObjectPrompt(label="liver", points=clicks[1:]),
        "corrections": ObjectPrompt(points=corrected),
        "corrected label": ObjectPrompt(label="liver", points=corrected[1:]),
    }


def unseen(series: LoadedSeries, origin_mm: tuple[float, float, float]) -> LoadedSeries:
    """Return the series elsewhere in its patient: the same voxels, of which the service has kept nothing."""
    volume = replace(series.volume, geometry=replace(series.volume.geometry, origin_mm=origin_mm))
    return replace(series, volume=volume)


def shifted(prompt: ObjectPrompt, series: LoadedSeries, other: LoadedSeries) -> ObjectPrompt:
    """Return the same prompt on the same voxels elsewhere."""
    shift = np.subtract(other.volume.geometry.origin_mm, series.volume.geometry.origin_mm)

    def there(lps_mm: tuple[float, float, float]) -> tuple[float, float, float]:
        x, y, z = np.add(lps_mm, shift).tolist()
        return x, y, z

    points = tuple(replace(p, lps_mm=there(p.lps_mm)) for p in prompt.points)
    boxes = tuple(Box(there(b.corner_lps_mm), there(b.opposite_lps_mm)) for b in prompt.boxes)
    return replace(prompt, points=points, boxes=boxes)


def expected_mask(reference: ReferenceModel, series: LoadedSeries, prompt: ObjectPrompt) -> np.ndarray:
    volume, templates = series.volume, reference.checkpoint.language.prompts
    state = None
    if prompt.label:
        state = reference.seg_state(volume, templates.for_label(prompt.label, volume.geometry.extent_mm))
    if prompt.text:
        state = reference.seg_state(volume, templates.for_text(prompt.text, volume.geometry.extent_mm))
    rounds: list[dict[int, tuple[PromptPoint, ...]]] = [
        {} for _ in range(1 + max((p.correction for p in prompt.points), default=0))
    ]
    points, first, last = rounds[0], None, None
    if prompt.boxes:
        corners = [prompt.boxes[0].corner_lps_mm, prompt.boxes[0].opposite_lps_mm]
        low, high = np.sort(volume.geometry.lps_to_index(np.array(corners)), axis=0)
        first, last = round(low[0]), round(high[0])
        ends = zip((low, high), (BOX_FIRST, BOX_SECOND), strict=True)
        points[(first + last) // 2] = tuple(reference.point(volume, end[1], end[2], label) for end, label in ends)
    for point in prompt.points:
        number, row, column = volume.geometry.lps_to_index(np.array(point.lps_mm))
        label = NEGATIVE if point.negative else POSITIVE
        told = rounds[point.correction]
        told[round(number)] = (*told.get(round(number), ()), reference.point(volume, row, column, label))
    prompted = Prompted(0, points, state, first, last, corrections=tuple(rounds[1:]))
    return reference.segment(volume, prompted, mask=prompt.mask).mask


def served_mask(client: Client, series: LoadedSeries, prompt: ObjectPrompt) -> np.ndarray:
    (mask,) = client.segment(series.volume, [prompt]).collect().masks
    return mask.array


def test_the_report_is_the_references(client: Client, series: LoadedSeries, reference: ReferenceModel):
    """Token for token under greedy decoding."""
    served = client.report(series.volume).collect()
    expected = reference.report(series.volume)
    assert served.text == expected.text
    assert served.done.completion_tokens == len(expected.token_ids)
    assert served.text.strip()


def test_answers_are_the_references(
    client: Client, series: LoadedSeries, other_series: LoadedSeries, reference: ReferenceModel
):
    """Also for another patient, whose answer or report differs."""
    for loaded in (series, other_series):
        assert client.ask(loaded.volume, QUESTION).collect().text == reference.ask(loaded.volume, QUESTION).text
    texts = {client.report(loaded.volume).collect().text for loaded in (series, other_series)}
    assert len(texts) == 2


@pytest.mark.parametrize(
    "kind",
    [
        "point",
        "two points",
        "box",
        "mask",
        "mask and click",
        "label",
        "text",
        "label and click",
        "corrections",
        "corrected label",
    ],
)
def test_masks_are_the_references(kind: str, client: Client, series: LoadedSeries, reference: ReferenceModel):
    """Dice of at least 0.99, on a mask that is neither empty nor full nor the mirror image of itself."""
    prompt = prompts(series)[kind]
    served = served_mask(client, series, prompt)
    assert 0.0 < served.mean() < 0.9
    assert not any(np.array_equal(served, np.flip(served, axis)) for axis in range(3))
    assert dice(served, expected_mask(reference, series, prompt)) >= 0.99


def test_a_slice_alone_is_segmented_as_by_the_reference(
    triton_server: TritonServer, series: LoadedSeries, reference: ReferenceModel
):
    """The ensemble ``segment_slice``, without the orchestrator: a click on one slice, words on another, in a batch."""
    volume, templates = series.volume, reference.checkpoint.language.prompts
    source = reference.slice_source(volume, reference.checkpoint.segmentation.window)
    _, rows, columns = volume.geometry.shape
    click = reference.point(volume, 0.45 * rows, 0.3 * columns, POSITIVE)
    state = reference.seg_state(volume, templates.for_label("liver", volume.geometry.extent_mm))
    asked = [SlicePrompt((click,)), SlicePrompt((), state)]
    numbers, steps = [12, 6], reference.steps

    async def expect() -> Decoded[torch.Tensor]:
        return await steps.decode(await source.get(numbers), asked)

    async def ask() -> dict[str, np.ndarray]:
        inputs = prompt_arrays(asked, side=steps.side, hidden_size=steps.hidden_size)
        async with Triton(triton_server.endpoint, triton_server.config.key) as triton:
            call = Call("slice", asyncio.get_running_loop().time() + 60)
            return await triton.infer("segment_slice", {"slices": source.slices[numbers], **inputs}, call)

    served = asyncio.run(ask())
    for name, expected in asdict(asyncio.run(expect())).items():
        np.testing.assert_allclose(served[name], expected.numpy(), atol=1e-2, err_msg=name)
    assert (served["object_score"] > 0).all()
    assert ((served["mask_logits"] > 0).mean((1, 2, 3)) > 0.01).all()


def test_corrections_cost_no_memory_of_the_service(client: Client, series: LoadedSeries):
    """Click by click, as a user corrects, the answer is that of the whole history at once on a service that is new."""
    history = prompts(series)["corrections"]
    moved = replace(history, points=tuple(replace(p, lps_mm=(p.lps_mm[0] + 1, *p.lps_mm[1:])) for p in history.points))
    one_by_one = [served_mask(client, series, replace(moved, points=moved.points[:count])) for count in range(1, 5)]
    there = unseen(series, (1.0, 2.0, 3.0))
    (at_once,) = client.segment(there.volume, [shifted(moved, series, there)]).collect().masks
    assert np.array_equal(one_by_one[-1], at_once.array)
    assert not any(np.array_equal(one_by_one[i], one_by_one[i + 1]) for i in range(3))


def test_every_object_of_a_request_is_answered_as_itself(client: Client, series: LoadedSeries):
    """All ways to ask at once, of a series that is new to the service: each gets the mask that it gets alone."""
    there = unseen(series, (4.0, 5.0, 6.0))
    alone = prompts(series)
    together = client.segment(there.volume, [shifted(one, series, there) for one in alone.values()]).collect()
    masks = {m.object_index: m.array for m in together.masks}
    assert masks.keys() == set(range(len(alone)))
    for i, (kind, prompt) in enumerate(alone.items()):
        assert dice(masks[i], served_mask(client, series, prompt)) >= 0.99, kind


def test_a_given_mask_comes_back_unchanged(client: Client, series: LoadedSeries):
    """To the voxel on its slices, at the series' own resolution; between them it is filled."""
    prompt = prompts(series)["mask"]
    served = served_mask(client, series, prompt)
    assert prompt.mask is not None
    for number in (9, 10, 13):
        assert np.array_equal(served[number], prompt.mask[number])
    assert served[11].any()


def test_masks_follow_prompt_and_volume(client: Client, series: LoadedSeries, other_series: LoadedSeries):
    """Another prompt or another patient gives another mask, so that agreement is no coincidence."""
    own = {kind: served_mask(client, series, prompt) for kind, prompt in prompts(series).items()}
    kinds = list(own)
    for i, kind in enumerate(kinds):
        for other in kinds[i + 1 :]:
            assert not np.array_equal(own[kind], own[other]), (kind, other)
    elsewhere = served_mask(client, other_series, prompts(other_series)["point"])
    assert not np.array_equal(own["point"], elsewhere)
