"""The segmenter's own arithmetic: prompts into SAM2's pixels, masks back to the grid, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvl.contracts.errors import InvalidRequest, PromptOutsideVolume
from medvl.contracts.messages import (
    MAX_GIVEN_SLICES,
    BoxPrompt,
    GivenMask,
    Message,
    ObjectMask,
    ObjectPrompts,
    PointPrompt,
    SegmenterRequest,
)
from medvl.contracts.models import MODELS
from medvl.imaging.masks import pack_mask, unpack_mask
from medvl.imaging.resample import FitTransform
from medvl.network.prompts import PromptPoint, SlicePrompt
from medvl.network.slice_mask import SliceMasks, slice_mask
from medvl.network.steps import Bank
from medvl.serving.feature_store import SliceFeatures
from medvl.serving.findings import Findings
from medvl.serving.mask_volume import MaskVolume
from medvl.serving.model_prompts import given_slices, to_model_prompt, unpacked
from medvl.serving.result_store import Result
from medvl.serving.segmenter_checks import check_request
from medvl.serving.triton_steps import Spent, TritonSteps, encode

SIDE, H = 64, 8
SHAPE = (6, 20, 30)
CHECKPOINT = SimpleNamespace(
    segmentation=SimpleNamespace(side=SIDE),
    language=SimpleNamespace(hidden_size=H),
    vision=SimpleNamespace(regions=SimpleNamespace(kinds=6)),
)


def point(
    number: int = 2, row: float = 3.0, column: float = 4.0, *, positive: bool = True, correction: int = 0
) -> PointPrompt:
    return PointPrompt(slice=number, row=row, column=column, positive=positive, correction=correction)


def box(**change: float) -> BoxPrompt:
    fields = {
        "slice": 2,
        "first_slice": 1,
        "last_slice": 4,
        "row_min": 2.0,
        "column_min": 3.0,
        "row_max": 9.0,
        "column_max": 11.0,
    }
    return BoxPrompt(**(fields | change))


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_a_mask_lies_under_its_click(fit):
    """The voxel that was clicked is inside a mask whose logits are highest under the click: rows and columns agree."""
    transform = FitTransform(20, 30, SIDE, fit)
    prompt = to_model_prompt(ObjectPrompts(object_id=1, points=(point(row=5, column=22),)), transform, None)
    (click,) = prompt.points[2]
    ys, xs = np.mgrid[0 : SIDE // 4, 0 : SIDE // 4] * 4 + 2
    logits = (4.0 - np.hypot(ys - click.y, xs - click.x)).astype(np.float32)
    mask = slice_mask(logits, transform, np.zeros((SIDE, SIDE), np.uint8), None)
    assert mask[5, 22]
    assert not mask[15, 22]
    assert not mask[5, 7]


def test_a_box_comes_before_the_points_of_its_slice():
    """SAM2 sees the box's corners first; points keep their order and sign, and the box confines the slices."""
    prompts = ObjectPrompts(object_id=7, points=(point(), point(positive=False), point(4)), boxes=(box(),))
    prompt = to_model_prompt(prompts, FitTransform(20, 30, SIDE, "stretch"), None)
    assert [p.label for p in prompt.points[2]] == [2, 3, 1, 0]
    assert [p.label for p in prompt.points[4]] == [1]
    first, second = prompt.points[2][:2]
    assert (first.x, second.x) == pytest.approx((3.5 * SIDE / 30, 11.5 * SIDE / 30))
    assert (first.y, second.y) == pytest.approx((2.5 * SIDE / 20, 9.5 * SIDE / 20))
    assert (prompt.first_slice, prompt.last_slice, prompt.object_id) == (1, 4, 7)


def test_corrections_come_in_their_order():
    """By number, whatever order they are sent in and whatever numbers are left out; those of one number together."""
    sent = [point(4, correction=7), point(2), point(3, positive=False, correction=2), point(5, correction=7)]
    prompts = ObjectPrompts(object_id=1, points=tuple(sent), boxes=(box(),))
    assert prompts.corrections == (2, 7)
    assert [p.slice for p in prompts.before(7).points] == [2, 3]
    prompt = to_model_prompt(prompts, FitTransform(20, 30, SIDE, "stretch"))
    assert [[p.label for p in own] for own in prompt.points.values()] == [[2, 3, 1]]
    assert [list(own) for own in prompt.corrections] == [[3], [4, 5]]
    assert [p.label for p in prompt.corrected(2, 3)] == [0]
    assert [p.label for p in prompt.corrected(2, 2)] == [2, 3, 1]


def test_language_comes_by_row():
    """An object named by text gets its own row of the states."""
    states = np.arange(3 * H, dtype=np.float32).reshape(3, H)
    prompt = to_model_prompt(ObjectPrompts(object_id=1, seg_row=2), FitTransform(20, 30, SIDE, "pad"), states)
    assert prompt.seg_hidden is not None
    assert np.array_equal(prompt.seg_hidden, states[2])
    assert prompt.points == {}


def test_a_given_mask_comes_slice_by_slice():
    """Those that hold a voxel, in the pixels of the series and of SAM2's square; a single voxel is never lost."""
    mask = np.zeros(SHAPE, bool)
    mask[1, 4:16, 6:20] = True
    mask[3, 10, 10] = True
    packed = np.frombuffer(b"..." + pack_mask(mask), np.uint8)
    prompts = ObjectPrompts(object_id=1, mask=GivenMask(start=3, length=len(packed) - 3), points=(point(1),))
    without = ObjectPrompts(object_id=2, points=(point(),))
    given = given_slices((prompts, without), SHAPE, packed)
    assert {object_id: list(slices) for object_id, slices in given.items()} == {1: [1, 3], 2: []}
    whole = unpacked(given[1], SHAPE)
    assert np.array_equal(whole[3], mask[3])
    prompt = to_model_prompt(prompts, FitTransform(20, 30, 15, "stretch"), masks=whole)
    assert prompt.given_slices == {3}
    assert prompt.on(1).mask.sum() == pytest.approx(12 * 14 * (15 / 20) * (15 / 30), rel=0.2)
    assert prompt.on(3).mask.sum() >= 1


def test_a_given_mask_that_is_none_is_refused():
    """Damaged, of another volume, or without a voxel."""
    for data in (b"m", pack_mask(np.ones((1, 2, 3), bool)), pack_mask(np.zeros(SHAPE, bool))):
        prompts = ObjectPrompts(object_id=1, mask=GivenMask(start=0, length=len(data)))
        with pytest.raises(InvalidRequest, match="mask"):
            given_slices([prompts], SHAPE, np.frombuffer(data, np.uint8))


def test_given_masks_have_few_enough_slices_together():
    """As many as the contract says are let through, one more is not, whichever object brings it."""
    shape = (MAX_GIVEN_SLICES // 4, 3, 5)
    packed = np.frombuffer(pack_mask(np.ones(shape, bool)), np.uint8)
    objects = [ObjectPrompts(object_id=i, mask=GivenMask(start=0, length=len(packed))) for i in range(5)]
    found = given_slices(objects[:4], shape, packed)
    assert sum(map(len, found.values())) == MAX_GIVEN_SLICES
    with pytest.raises(InvalidRequest, match=f"more than {MAX_GIVEN_SLICES} slices"):
        given_slices(objects, shape, packed)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2**16)), max_size=8), st.sampled_from([(20, 30), (7, 9)]))
def test_a_packed_volume_holds_the_slices_that_were_put(slices, plane):
    """The last mask of every slice comes back, and slices without one are empty, whole bytes to a slice or not."""
    shape = (6, *plane)
    volume, expected = MaskVolume(*shape), np.zeros(shape, bool)
    for number, seed in slices:
        expected[number] = np.random.default_rng(seed).normal(-1.0 + seed % 2, 1.0, plane) > 0
        volume.put(number, expected[number])
    assert np.array_equal(unpack_mask(volume.pack(), shape), expected)
    assert volume.pack() == pack_mask(expected)
    assert volume.empty == (not expected.any())


@pytest.mark.parametrize("marked", [False, True])
def test_a_mask_without_a_voxel_is_no_finding(marked: bool):
    """However sure the network is that the object is there: what is sent and what is kept say that it is not."""
    sent: list[tuple[Message, bytes]] = []
    kept: dict[int, Result] = {}
    transform = FitTransform(*SHAPE[1:], SIDE, "stretch")
    masks = SliceMasks(transform, lambda number: np.zeros((SIDE, SIDE), np.uint8), None)
    findings = Findings(
        lambda event, packed: sent.append((event, packed)), kept.__setitem__, {4: {}}, (), SHAPE[0], masks
    )
    logits = np.full((SIDE // 4, SIDE // 4), 9.0 if marked else -9.0, np.float32)
    findings.worked_on(4, 2, logits, 0.9)
    findings.ended(4, 0.9, (2,), found=True)
    ((event, packed),) = sent
    assert isinstance(event, ObjectMask)
    assert (event.object_id, event.found, event.slice_scores) == (4, marked, {2: 0.9})
    assert bool(packed) == marked
    assert kept[4].mask == (event, packed)


def request(*objects: ObjectPrompts, shape: tuple[int, int, int] = SHAPE) -> SegmenterRequest:
    return SegmenterRequest(series="a" * 64, window_hu=(-160, 240), shape=shape, objects=objects)


GOOD = ObjectPrompts(object_id=1, points=(point(),))


def test_a_good_request_passes():
    """Prompts on the outermost voxels are inside."""
    corners = (point(0, -0.5, -0.5), point(5, 19.5, 29.5))
    corners += tuple(point(correction=i) for i in range(30))
    both = ObjectPrompts(object_id=2, points=corners, boxes=(box(row_min=-0.5, column_max=29.5),), seg_row=0)
    slices, states = np.zeros((6, SIDE, SIDE), np.uint8), np.zeros((1, H), np.float32)
    check_request(request(GOOD, both), CHECKPOINT, slices, states, None)


@pytest.mark.parametrize(
    ("objects", "error", "named"),
    [
        ((), InvalidRequest, "no objects"),
        ((ObjectPrompts(object_id=1),), InvalidRequest, "no prompt"),
        ((ObjectPrompts(object_id=1, points=(point(correction=1),)),), InvalidRequest, "no prompt"),
        ((GOOD, GOOD), InvalidRequest, "2 times"),
        ((ObjectPrompts(object_id=1, seg_row=1),), InvalidRequest, "row 1"),
        ((ObjectPrompts(object_id=1, seg_row=-1),), InvalidRequest, "row -1"),
        ((ObjectPrompts(object_id=1, mask=GivenMask(start=5, length=4)),), InvalidRequest, "beyond the 8"),
        ((ObjectPrompts(object_id=1, boxes=(box(row_max=2.0),)),), InvalidRequest, "zero size"),
        ((ObjectPrompts(object_id=1, boxes=(box(), box(row_max=8.0))),), InvalidRequest, "give one"),
        (
            (ObjectPrompts(object_id=1, points=tuple(point(correction=i) for i in range(31)), boxes=(box(),)),),
            InvalidRequest,
            "Object 1 has 33 points on slice 2",
        ),
        ((ObjectPrompts(object_id=1, boxes=(box(last_slice=1),)),), InvalidRequest, "first and last"),
        ((ObjectPrompts(object_id=1, boxes=(box(row_min=20.0, row_max=25.0),)),), PromptOutsideVolume, "box"),
        ((ObjectPrompts(object_id=1, boxes=(box(slice=9, last_slice=9),)),), PromptOutsideVolume, "box"),
        ((ObjectPrompts(object_id=1, points=(point(6),)),), PromptOutsideVolume, "point"),
        ((ObjectPrompts(object_id=1, points=(point(row=20.0),)),), PromptOutsideVolume, "point"),
        ((ObjectPrompts(object_id=1, points=(point(column=float("nan")),)),), PromptOutsideVolume, "point"),
    ],
)
def test_prompts_that_make_no_sense_are_refused(objects, error, named):
    """One sentence names what is wrong, before a network runs."""
    with pytest.raises(error, match=named):
        check_request(request(*objects), CHECKPOINT, None, np.zeros((1, H), np.float32), np.zeros(8, np.uint8))


@pytest.mark.parametrize(
    ("slices", "states", "named"),
    [
        (np.zeros((5, SIDE, SIDE), np.uint8), None, "slices"),
        (np.zeros((6, SIDE, 32), np.uint8), None, "slices"),
        (None, np.zeros((1, H + 1), np.float32), "seg_hidden"),
        (None, np.full((1, H), np.nan, np.float32), "seg_hidden"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(slices, states, named):
    """Slices of another volume or size, and states of another width or with NaN, go no further."""
    with pytest.raises(InvalidRequest, match=named):
        check_request(request(GOOD), CHECKPOINT, slices, states, None)


@pytest.mark.parametrize("regions", [np.zeros((2, 5), np.float32), np.full((2, 12), np.inf, np.float32)])
def test_regions_that_do_not_fit_are_refused(regions):
    """As many numbers as the checkpoint's kinds make, all finite."""
    with pytest.raises(InvalidRequest, match="regions should hold finite rows of 12"):
        check_request(request(GOOD), CHECKPOINT, None, None, None, regions=regions)
    check_request(request(GOOD), CHECKPOINT, None, None, None, regions=np.zeros((2, 12), np.float32))


class Recorder:
    """Answers calls with arrays of the right names, and keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, np.ndarray]]] = []

    async def __call__(self, model: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.calls.append((model, inputs))
        count = {"sam2_memory_encoder": "mask_logits", "sam2_track_step": "bank_pointer"}.get(model)
        rows = len(next(iter(inputs.values()))) if count is None else inputs[count].shape[-2 if "track" in model else 0]
        ends = np.arange(rows, dtype=np.float32).reshape(-1, 1)
        return {spec.name: ends for spec in MODELS[model].outputs}


def features(value: float) -> SliceFeatures:
    return SliceFeatures(*(np.full((1, 2, n, n), value, np.float32) for n in (4, 2, 1)))


async def test_many_prompts_go_in_batches_of_the_models_size():
    """Forty prompts are three calls; every prompt has the features of its own slice and comes back in its place."""
    infer, spent = Recorder(), Spent()
    steps = TritonSteps(infer, CHECKPOINT, spent)
    prompts = [SlicePrompt((PromptPoint(1.0, float(i), 1),) * (1 + i % 2)) for i in range(40)]
    decoded = await steps.decode([features(float(i)) for i in range(40)], prompts)
    assert [len(inputs["points"]) for _, inputs in infer.calls] == [16, 16, 8]
    assert {inputs["points"].shape[1] for _, inputs in infer.calls} == {2}
    rows = [(f[0, 0, 0], p[0, 1]) for _, i in infer.calls for f, p in zip(i["f0"], i["points"], strict=True)]
    assert rows == [(i, i) for i in range(40)]
    assert decoded.iou[:, 0].tolist() == [*range(16), *range(16), *range(8)]
    assert spent.decode_s > 0


async def test_a_correction_names_points_and_the_last_mask():
    """What is only tracked has the same inputs: SAM2's empty token and no mask."""
    infer = Recorder()
    steps = TritonSteps(infer, CHECKPOINT, Spent())
    bank = Bank([np.zeros((2, 4, 3), np.float32)], [6], [np.zeros((2, 5), np.float32)], [0.0])
    last = np.full((2, 1, SIDE // 4, SIDE // 4), 7.0, np.float32)
    clicks = ((PromptPoint(1.0, 2.0, 0),), (PromptPoint(3.0, 4.0, 1), PromptPoint(5.0, 6.0, 0)))
    await steps.correct(features(0.0), bank, clicks, last)
    await steps.track(features(0.0), bank)
    (_, corrected), (_, tracked) = infer.calls
    assert corrected["labels"].tolist() == [[0, -2], [1, 0]]
    assert corrected["multimask_flag"].tolist() == [[1.0], [0.0]]
    assert (corrected["mask_input"] == 7.0).all()
    assert (corrected["mask_flag"].tolist(), tracked["mask_flag"].tolist()) == ([[1.0], [1.0]], [[0.0], [0.0]])
    assert (tracked["labels"].tolist(), tracked["multimask_flag"].tolist()) == ([[-1], [-1]], [[1.0], [1.0]])


@pytest.mark.parametrize("model", ["sam2_mask_decoder", "sam2_memory_encoder", "sam2_track_step", "sam2_image_encoder"])
async def test_calls_hold_what_the_contract_names(model):
    """Every model is given exactly its inputs, in its dtypes."""
    infer = Recorder()
    steps = TritonSteps(infer, CHECKPOINT, Spent())
    bank = Bank([np.zeros((2, 4, 3), np.float32)], [6], [np.zeros((2, 5), np.float32)], [0.0])
    await steps.decode([features(0.0)], [SlicePrompt((PromptPoint(0.0, 0.0, 1),))])
    await steps.remember(features(0.0), np.zeros((2, 1, 4, 4), np.float32), np.zeros((2, 1), np.float32))
    await steps.track(features(0.0), bank)
    await encode(infer, np.zeros((3, SIDE, SIDE), np.uint8))
    inputs = dict(infer.calls)[model]
    assert {name: a.dtype for name, a in inputs.items()} == {s.name: s.dtype.numpy for s in MODELS[model].inputs}
