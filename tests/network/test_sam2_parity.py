"""The networks of the contract and their propagation against SAM2 itself, unmodified, driven frame by frame."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from sam2 import sam2_video_predictor
from sam2.build_sam import build_sam2_video_predictor
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from medvl.contracts.checkpoint import Checkpoint
from medvl.contracts.errors import CheckpointError
from medvl.network.memory_bank import Known
from medvl.network.modules import Modules
from medvl.network.prompts import NEGATIVE, POSITIVE, ObjectPrompt, PromptPoint, SlicePrompt, prompt_arrays
from medvl.network.propagation import Propagation
from medvl.network.room import Room
from medvl.network.sam2_build import build_sam_shapes, sam_config
from medvl.network.sam2_heads import given
from medvl.network.sam2_parts import no_prompt, normalised
from medvl.network.torch_steps import SliceSource, TorchSteps

from ..sam2_tracker import Prompt, Sam2Tracker, dice  # noqa: TID252 - tests are no installed package
from .conftest import DEPTH, SIDE

TOLERANCE = 1e-3
ABSENT = -1024.0
"""What SAM2 writes where it finds no object."""

POINT = (PromptPoint(50.5, 52.5, POSITIVE),)
OTHER = (PromptPoint(80.5, 90.5, POSITIVE),)
CORRECTED = (*POINT, PromptPoint(90.5, 90.5, NEGATIVE))
BOX = (PromptPoint(36.5, 38.5, 2), PromptPoint(64.5, 66.5, 3))

MASK = np.zeros((SIDE, SIDE), bool)
MASK[37:62, 38:63] = True


@dataclass
class Heard:
    """What propagation told, by object and slice."""

    logits: dict[int, dict[int, np.ndarray]] = field(default_factory=dict)
    prompted_on: list[tuple[int, int]] = field(default_factory=list)
    work: list[tuple[int, int]] = field(default_factory=list)
    found: dict[int, bool] = field(default_factory=dict)
    kept: dict[int, Known[Tensor]] = field(default_factory=dict)

    def prompted(self, object_id: int, number: int, mask_logits: np.ndarray, score: float) -> None:
        self.prompted_on.append((object_id, number))

    def worked_on(self, object_id: int, number: int, mask_logits: np.ndarray, presence: float) -> None:
        self.logits.setdefault(object_id, {})[number] = mask_logits

    def progress(self, done: int, total: int) -> None:
        self.work.append((done, total))

    def ended(self, object_id: int, score: float, key_slices: Sequence[int], *, found: bool) -> None:
        self.found[object_id] = found


def ours(
    modules: Modules,
    slices: np.ndarray,
    prompts: Sequence[ObjectPrompt],
    spec: Any,
    known: Mapping[int, Known[Tensor]] = MappingProxyType({}),
) -> Heard:
    networks = modules.networks
    steps = TorchSteps(
        networks["sam2_mask_decoder"],
        networks["sam2_mask_prompt"],
        networks["sam2_memory_encoder"],
        networks["sam2_track_step"],
        SIDE,
        modules.checkpoint.language.hidden_size,
    )
    heard = Heard()
    source = SliceSource(networks["sam2_image_encoder"], slices)
    propagation = Propagation(steps, source, len(slices), spec, heard, Room(2**30))
    asyncio.run(propagation.run(prompts, known, keep=heard.kept.__setitem__))
    return heard


@pytest.mark.parametrize("flickers", [False, True], ids=["always there", "comes and goes"])
@pytest.mark.parametrize(
    ("prompts", "cap"),
    [
        ({9: (POINT,)}, 4),
        ({9: (CORRECTED,)}, 4),
        ({20: (BOX,)}, 4),
        ({4: (POINT,), 15: (CORRECTED,)}, 4),
        ({2: (POINT,), 8: (POINT,), 12: (BOX,), 20: (POINT,)}, 2),
        ({9: (POINT, OTHER)}, 4),
        ({9: (MASK,)}, 4),
        ({4: (MASK, ~MASK), 15: (POINT, OTHER)}, 4),
    ],
    ids=[
        "point",
        "negative point",
        "box",
        "two slices",
        "four slices, two attended",
        "two objects",
        "mask",
        "masks, then points",
    ],
)
@torch.inference_mode()
def test_propagation_is_sam2s(  # noqa: PLR0917 - fixtures and parameters
    modules: Modules,
    small: Checkpoint,
    slices: np.ndarray,
    prompts: Mapping[int, Sequence[Prompt]],
    cap: int,
    flickers: bool,
):
    """Every mask of every slice agrees, also where the network finds its object on some slices only."""
    last = modules.sam2.sam_mask_decoder.pred_obj_score_head.layers[-1]
    last.weight.mul_(50)
    last.bias.fill_(3.0 if flickers else 6.0)
    modules.sam2.max_cond_frames_in_attn = cap
    objects = len(next(iter(prompts.values())))
    expected = Sam2Tracker(modules.sam2, slices, objects).run(prompts)
    asked = [
        ObjectPrompt(
            row,
            {number: rows[row] for number, rows in prompts.items() if not isinstance(rows[row], np.ndarray)},
            masks={number: rows[row] for number, rows in prompts.items() if isinstance(rows[row], np.ndarray)},
        )
        for row in range(objects)
    ]
    heard = ours(modules, slices, asked, small.segmentation.model_copy(update={"max_conditioning_slices": cap}))
    for row in range(objects):
        assert heard.logits[row].keys() == expected.keys() == set(range(DEPTH))
        difference = [np.abs(heard.logits[row][n] - expected[n][row]).max() for n in range(DEPTH)]
        assert max(difference) <= TOLERANCE, difference
    # Agreement on masks that do not change, or on none, would prove little.
    drawn = {heard.logits[0][n].tobytes() for n in range(DEPTH) if heard.logits[0][n].max() > ABSENT}
    assert 0 < len(drawn) < DEPTH if flickers else len(drawn) == DEPTH
    assert heard.work[-1] == (objects * DEPTH, objects * DEPTH)


NEGATIVE_ONLY = (PromptPoint(70.5, 60.5, NEGATIVE),)
CORRECTIONS: dict[str, tuple[Mapping[int, tuple[PromptPoint, ...]], ...]] = {
    "above": ({14: POINT},),
    "below, negative": ({5: NEGATIVE_ONLY},),
    "where it was prompted": ({9: NEGATIVE_ONLY},),
    "one after another": ({14: NEGATIVE_ONLY}, {4: POINT}, {14: OTHER, 17: POINT}),
    "more slices than are attended to": ({13: POINT}, {16: POINT}, {6: NEGATIVE_ONLY}, {10: POINT}, {13: POINT}),
    "two slices at once, two points": ({12: POINT, 15: CORRECTED},),
}
"""What corrects an object that is prompted on slice 9."""
_EACH_WAY = ("where it was prompted", "one after another")
"""Corrections of an object that is prompted by a box or a mask, too: the others see of that only a memory."""


FIRST: dict[str, Prompt] = {"point": POINT, "box": BOX, "mask": MASK}


@pytest.mark.parametrize(
    ("corrected", "prompted"),
    [*((name, "point") for name in CORRECTIONS), *((name, first) for name in _EACH_WAY for first in ("box", "mask"))],
)
@torch.inference_mode()
def test_corrections_are_sam2s(
    modules: Modules,
    small: Checkpoint,
    slices: np.ndarray,
    corrected: str,
    prompted: str,
):
    """A tracked slice is corrected with its memories and its last mask, and conditions what is tracked then.

    Also when the last correction goes on from what an earlier run has kept, which changes nothing.
    """
    corrections, first = CORRECTIONS[corrected], FIRST[prompted]
    modules.sam2.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(6.0)
    modules.sam2.max_cond_frames_in_attn = 2 if len(corrections) > 3 else 4
    spec = small.segmentation.model_copy(update={"max_conditioning_slices": modules.sam2.max_cond_frames_in_attn})
    given_mask = isinstance(first, np.ndarray)
    prompt = ObjectPrompt(
        0, {} if given_mask else {9: first}, masks={9: first} if given_mask else {}, corrections=corrections
    )
    told = [{n: [prompt.corrected(i, n)] for n in own} for i, own in enumerate(corrections, 1)]
    expected = Sam2Tracker(modules.sam2, slices, 1).run({9: [first]}, told)
    heard = ours(modules, slices, [prompt], spec)
    assert heard.logits[0].keys() == expected.keys() == set(range(DEPTH))
    difference = [np.abs(heard.logits[0][n] - expected[n][0]).max() for n in range(DEPTH)]
    assert max(difference) <= TOLERANCE, difference
    assert dice([heard.logits[0][n] for n in range(DEPTH)], [expected[n][0] for n in range(DEPTH)]) >= 0.999
    assert heard.prompted_on == [(0, n) for n in sorted(corrections[-1])]
    assert heard.work[-1][0] == heard.work[-1][1] == DEPTH * (1 + len(corrections))
    before = ours(modules, slices, [replace(prompt, corrections=corrections[:-1])], spec)
    again = ours(modules, slices, [prompt], spec, before.kept)
    assert again.work[-1] == (DEPTH, DEPTH)
    assert all(np.array_equal(again.logits[0][n], heard.logits[0][n]) for n in range(DEPTH))
    # A correction that changed nothing would prove nothing.
    assert max(np.abs(before.logits[0][n] - heard.logits[0][n]).max() for n in range(DEPTH)) > 100 * TOLERANCE


@torch.inference_mode()
def test_a_correction_is_the_video_predictors(
    small: Checkpoint, modules: Modules, slices: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """The unmodified predictor, clicked, propagated, clicked again on a tracked slice and propagated again.

    Upwards only, since its one state would mix both directions; its memories are FP32 here instead of bfloat16.
    """
    sam = modules.sam2
    sam.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(6.0)
    predictor = video_predictor(small, sam, monkeypatch)
    for number, plane in enumerate(slices):
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), plane)
    state = predictor.init_state(str(tmp_path))
    # What JPEG made of the slices.
    seen = np.stack([cv2.imread(str(tmp_path / f"{n}.jpg"), cv2.IMREAD_GRAYSCALE) for n in range(DEPTH)])
    state["images"] = torch.stack([normalised(torch.from_numpy(plane)[None])[0] for plane in seen])

    def click(number: int, points: Sequence[PromptPoint]) -> dict[int, np.ndarray]:
        predictor.add_new_points_or_box(
            state,
            frame_idx=number,
            obj_id=0,
            points=[[p.x - 0.5, p.y - 0.5] for p in points],
            labels=[p.label for p in points],
            clear_old_points=False,
        )
        for _ in predictor.propagate_in_video(state, start_frame_idx=3):
            pass
        own = state["output_dict_per_obj"][0]
        outputs = own["cond_frame_outputs"] | own["non_cond_frame_outputs"]
        return {n: out["pred_masks"][0, 0].numpy() for n, out in outputs.items()}

    corrections = ({11: NEGATIVE_ONLY}, {15: POINT}, {11: OTHER})
    found = [click(3, POINT), *(click(n, points) for own in corrections for n, points in own.items())]
    for count, expected in enumerate(found):
        prompt = ObjectPrompt(0, {3: POINT}, corrections=corrections[:count])
        heard = ours(modules, seen, [prompt], small.segmentation)
        difference = [np.abs(heard.logits[0][n] - expected[n]).max() for n in range(3, DEPTH)]
        assert max(difference) <= TOLERANCE, (count, difference)


def video_predictor(small: Checkpoint, sam: SAM2Base, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return SAM2's video predictor: conditioned by corrections, too, and FP32 where it stores bfloat16."""
    config, overrides = sam_config(small.segmentation)
    predictor = build_sam2_video_predictor(
        config,
        device="cpu",
        hydra_overrides_extra=[*overrides, "++model.add_all_frames_to_correct_as_cond=true"],
        apply_postprocessing=False,
    )
    predictor.load_state_dict(sam.state_dict())
    predictor.max_cond_frames_in_attn = small.segmentation.max_conditioning_slices

    class Fp32Torch(ModuleType):
        bfloat16 = torch.float32

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    monkeypatch.setattr(sam2_video_predictor, "torch", Fp32Torch("torch"))
    return predictor


def decoder_inputs(modules: Modules, slices: np.ndarray, prompts: Sequence[SlicePrompt]) -> list[Tensor]:
    maps = modules.networks["sam2_image_encoder"](torch.from_numpy(slices[: len(prompts)]))
    arrays = prompt_arrays(prompts, side=SIDE, hidden_size=modules.checkpoint.language.hidden_size)
    return [*maps, *map(torch.from_numpy, arrays.values())]


@torch.inference_mode()
def test_the_image_encoder_is_sam2s(modules: Modules, slices: np.ndarray):
    """Also where windows reach beyond the map, with biases that show what they are filled up with."""
    images = torch.from_numpy(slices[:2])
    expected = modules.sam2.forward_image(normalised(images))["backbone_fpn"]
    for own, theirs in zip(modules.networks["sam2_image_encoder"](images), expected, strict=True):
        assert torch.allclose(own, theirs, atol=1e-5)


@torch.inference_mode()
def test_padding_has_no_effect(modules: Modules, slices: np.ndarray):
    """A short list of points beside a long one gives what it gives alone."""
    decoder = modules.networks["sam2_mask_decoder"]
    one, many = SlicePrompt(POINT), SlicePrompt(CORRECTED * 5)
    alone = decoder(*decoder_inputs(modules, slices, [one]))
    beside = decoder(*decoder_inputs(modules, slices, [one, many]))
    for expected, found in zip(alone, beside, strict=True):
        assert torch.allclose(expected[0], found[0], atol=1e-4)


@torch.inference_mode()
def test_the_language_token_counts_only_when_it_is_given(modules: Modules, slices: np.ndarray):
    """With the flag at 0 the state has no effect at all; with 1 it changes the mask, with and without points."""
    decoder = modules.networks["sam2_mask_decoder"]
    for points in ((), POINT):
        inputs = decoder_inputs(modules, slices, [SlicePrompt(points)])
        plain = decoder(*inputs)[0]
        inputs[7] = torch.full_like(inputs[7], 3.0)  # seg_hidden
        assert torch.equal(decoder(*inputs)[0], plain)
        inputs[8] = torch.ones_like(inputs[8])  # seg_flag
        assert (decoder(*inputs)[0] - plain).abs().max() > 0.01


@torch.inference_mode()
def test_a_mask_prompt_is_sam2s(modules: Modules, slices: np.ndarray):
    """Logits given as a prompt go in as SAM2 takes them."""
    sam = modules.sam2
    inputs = decoder_inputs(modules, slices, [SlicePrompt(CORRECTED)])
    logits = torch.randn(inputs[5].shape, generator=torch.Generator().manual_seed(0)) * 4
    inputs[5], inputs[6] = logits, torch.ones_like(inputs[6])
    found = modules.networks["sam2_mask_decoder"](*inputs)
    points = {"point_coords": inputs[3] - 0.5, "point_labels": inputs[4]}
    image = inputs[2] + sam.no_mem_embed.reshape(1, -1, 1, 1)
    *_, low, _, pointer, score = sam._forward_sam_heads(
        image, point_inputs=points, mask_inputs=logits, high_res_features=inputs[:2], multimask_output=False
    )
    for expected, got in ((low, found[0]), (pointer, found[2]), (score, found[3])):
        assert torch.allclose(expected, got, atol=1e-3)


@torch.inference_mode()
def test_a_given_mask_is_what_sam2_takes_it_for(modules: Modules, slices: np.ndarray):
    """Logits, pointer, score and memory of masks that nobody decodes, one of them empty."""
    sam = modules.sam2
    f0, f1, f2 = modules.networks["sam2_image_encoder"](torch.from_numpy(slices[:1]))
    mask = torch.zeros(2, 1, SIDE, SIDE)
    mask[0, 0, 30:61, 41:90] = 1.0
    features = [f.expand(2, -1, -1, -1) for f in (f0, f1)]
    low, high, iou, _, _, pointer, score = sam._use_mask_as_output(f2.expand(2, -1, -1, -1), features, mask)
    tokens, _ = no_prompt(sam, 2)
    own, memory = given(sam, f2, (f0, f1), mask, tokens)
    flat = [f2.expand(2, -1, -1, -1).flatten(2).permute(2, 0, 1)]
    expected, _ = sam._encode_new_memory(flat, [f2.shape[-2:]], high, score, is_mask_from_pts=False)
    pairs = [(low, own.mask_logits), (iou, own.iou), (pointer, own.object_pointer), (score, own.object_score)]
    pairs.append((expected.flatten(2).transpose(1, 2), memory))
    for wanted, found in pairs:
        assert torch.allclose(wanted, found, atol=1e-4), (wanted - found).abs().max()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_maskmem", 5),
        ("memory_attention.layer.cross_attention.num_heads", 2),
        ("image_encoder.neck.fuse_type", "avg"),
    ],
)
def test_an_override_that_the_graphs_do_not_implement_is_refused(small: Checkpoint, key: str, value: object):
    spec = small.segmentation.model_copy(update={"overrides": small.segmentation.overrides | {key: value}})
    with pytest.raises(CheckpointError, match=f"{key}: expected .*, found {value}"):
        build_sam_shapes(spec)
