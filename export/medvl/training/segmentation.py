"""Training of SAM2: prompts on single slices first, then clips of slices through its memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sam2.modeling.sam2_base import NO_OBJ_SCORE, SAM2Base
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from medvl.contracts.checkpoint import Checkpoint
from medvl.embedded.anatomy import ORGANS
from medvl.embedded.parts import BODY
from medvl.network.memory_bank import MemoryBank
from medvl.network.modules import Modules
from medvl.network.prompts import PromptPoint, SlicePrompt, prompt_arrays
from medvl.network.sam2_heads import AllMasks, decode_all, given, remember
from medvl.network.sam2_parts import MaskDecoder, TrackStep, no_prompt, normalised
from medvl.network.steps import Bank, Decoded, Remembered
from medvl.training.cases import Case, CaseStore
from medvl.training.clicks import box, click, correction
from medvl.training.descriptors import KIND_NAMES, LENGTH, Target, Teacher, absent, descriptor, places, targets
from medvl.training.losses import MaskLoss, mask_loss

PromptKind = Literal["language", "point", "box", "clicks", "mask"]
_KINDS: tuple[PromptKind, ...] = ("language", "point", "box", "clicks", "mask")
_CHANCES = (0.42, 0.2, 0.15, 0.18, 0.05)
_PLACED = 0.8
"""Share of language prompts that tell the place."""
_SLICES, _OBJECTS, _ABSENT = 3, 6, 2
_CLIP, _CLIP_OBJECTS = 5, 5
_FINDING_WEIGHT = 3.0
"""Of a cell of a finding for the head."""
_LEAST_PIXELS = 6
"""Of the S x S slice, for an object to be prompted on it."""
_CLICKS = 4


class Segmenter(nn.Module):
    """SAM2 with the teacher of its language prompts, and a head that reads from its finest features what each place is.

    The head is in no checkpoint. It teaches the image encoder what there is to tell apart long before prompts do.
    """

    def __init__(self, modules: Modules) -> None:
        super().__init__()
        self.sam = modules.sam2
        self.teacher = Teacher(self.sam.hidden_dim)
        self.places = nn.Conv2d(self.sam.hidden_dim, 1 + len(KIND_NAMES), 1)

    def features(self, slices: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """Return f0, f1 and f2 of slices UINT8 [B, S, S], and the head's logits [B, kinds + 1, f_4, f_4]."""
        fine, middle, coarse = self.sam.image_encoder(normalised(slices))["backbone_fpn"]
        decoder = self.sam.sam_mask_decoder
        return (decoder.conv_s0(fine), decoder.conv_s1(middle), coarse), self.places(fine)


@dataclass(eq=False)
class _Asked:
    """Objects that are prompted on one slice."""

    targets: list[Target]
    masks: NDArray[np.bool_]
    """[N, S, S], empty where the object is not on the slice."""
    kinds: list[PromptKind]
    prompts: list[SlicePrompt]
    descriptors: NDArray[np.float32]


class SegmentationLearner:
    """One stage of SAM2's training.

    Parameters
    ----------
    checkpoint
        Sizes and windows.
    modules
        What is trained, in part ``sam2``.
    store, cases
        Where cases are, and how many there are; they come again and again.
    clips
        Whether to train the memory on clips, too.
    """

    def __init__(self, checkpoint: Checkpoint, modules: Modules, store: CaseStore, cases: int, *, clips: bool) -> None:
        self._checkpoint = checkpoint
        self._store = store
        self._cases = cases
        self._clips = clips
        self._targets: dict[int, tuple[Target, ...]] = {}
        self.module = Segmenter(modules)
        self.module.train()
        sam = self.module.sam
        self._decoder = MaskDecoder(sam, modules.seg_projector)
        self._tracker = TrackStep(sam)

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, Mapping[str, float]]:
        """Return the loss of a step: clips on three of four where they are trained."""
        case = self._store.draw(rng, step, self._cases)
        found = self._targets.get(case.seed) or targets(case.truth, places(case.labels))
        self._targets[case.seed] = found
        if self._clips and step % 4:
            return self._clip_loss(case, found, rng)
        return self._slice_loss(case, found, rng)

    def _slice_loss(
        self, case: Case, found: Sequence[Target], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        numbers = _slices_with_findings(case, found, _SLICES, rng)
        features, seen = self.module.features(torch.from_numpy(case.slices(numbers, self._checkpoint)))
        planes = case.planes(numbers, self._checkpoint)
        places_loss = self._places_loss(seen, planes, found)
        losses: list[MaskLoss] = []
        for row, plane in enumerate(planes):
            maps = tuple(f[row : row + 1] for f in features)
            asked = self._ask(found, plane, rng, most=_OBJECTS, absent_ones=_ABSENT)
            masks, multimask = self._decode(maps, asked, rng)
            losses.append(mask_loss(masks, torch.from_numpy(asked.masks).float(), multimask))
        loss, shown = _mean(losses, "slice")
        return loss + places_loss, shown | {"places": places_loss.item()}

    def _places_loss(self, seen: Tensor, planes: NDArray[np.uint8], found: Sequence[Target]) -> Tensor:
        """Return the cross entropy of what the head takes the middle of each cell for; 0 is none of the kinds."""
        kinds = np.zeros(256, np.int64)
        for target in found:
            kinds[target.values[0]] = 1 + KIND_NAMES.index(target.kind)
        step = planes.shape[-1] // seen.shape[-1]
        wanted = torch.from_numpy(kinds[planes[:, step // 2 :: step, step // 2 :: step]])
        rare = torch.ones(1 + len(KIND_NAMES))
        rare[1 + len(ORGANS) :] = _FINDING_WEIGHT
        return cross_entropy(seen, wanted, rare)

    def _clip_loss(
        self, case: Case, found: Sequence[Target], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Prompt one slice and track its objects over the next ones, up or down."""
        depth, step = case.labels.shape[0], int(rng.choice([-1, 1]))
        start = int(_slices_with_findings(case, found, 1, rng)[0])
        numbers = np.array([n for n in range(start, start + step * _CLIP, step) if 0 <= n < depth])
        features, _ = self.module.features(torch.from_numpy(case.slices(numbers, self._checkpoint)))
        planes = case.planes(numbers, self._checkpoint)
        asked = self._ask(found, planes[0], rng, most=_CLIP_OBJECTS, absent_ones=0)
        if not asked.targets:
            return self._slice_loss(case, found, rng)
        maps = [tuple(f[i : i + 1] for f in features) for i in range(len(numbers))]
        masks, multimask = self._decode(maps[0], asked, rng)
        first = mask_loss(masks, torch.from_numpy(asked.masks).float(), multimask)
        remembered = self._remember(maps[0][2], _chosen(self.module.sam, masks, multimask))
        remembered = self._with_given(remembered, maps[0], asked)
        bank = MemoryBank({start: remembered}, depth, step, self._checkpoint.segmentation.max_conditioning_slices)
        tracked = []
        for number, own, plane in zip(numbers[1:].tolist(), maps[1:], planes[1:], strict=True):
            masks = self._track(own, bank.view(number), len(asked.targets))
            every = torch.ones(len(asked.targets), dtype=torch.bool)
            wanted = torch.from_numpy(np.stack([_mask(t, plane) for t in asked.targets])).float()
            tracked.append(mask_loss(masks, wanted, every))
            bank.add(number, self._remember(own[2], _chosen(self.module.sam, masks, every)))
        if not tracked:
            return _mean([first], "slice")
        loss, shown = _mean(tracked, "track")
        return loss + first.total, {**shown, "slice_dice": first.dice}

    def _ask(
        self,
        found: Sequence[Target],
        plane: NDArray[np.uint8],
        rng: np.random.Generator,
        *,
        most: int,
        absent_ones: int,
    ) -> _Asked:
        """Choose objects of a slice, findings first, with some that are not on it, and prompt them."""
        areas = np.bincount(plane.ravel(), minlength=256)
        here = [t for t in found if areas[list(t.values)].sum() >= _LEAST_PIXELS]
        findings = [t for t in here if t.is_finding][:3]
        organs = [t for t in here if not t.is_finding]
        rng.shuffle(organs)
        chosen = (findings + organs)[:most]
        kinds: list[PromptKind] = list(rng.choice(np.array(_KINDS), size=len(chosen), p=_CHANCES))
        elsewhere = [t for t in found if not areas[list(t.values)].any()]
        missing = [absent(k) for k in KIND_NAMES if k != BODY and all(t.kind != k for t in found)]
        for pool in (elsewhere, missing)[:absent_ones]:
            if pool:
                chosen.append(pool[rng.integers(len(pool))])
                kinds.append("language")
        masks = np.stack([_mask(t, plane) for t in chosen]) if chosen else np.zeros((0, *plane.shape), np.bool_)
        prompts = [
            _prompt(kind, mask, plane == t.values[0] if t.values else mask, rng)
            for kind, mask, t in zip(kinds, masks, chosen, strict=True)
        ]
        told = [
            descriptor(t, rng, placed=rng.random() < _PLACED) if kind == "language" else np.zeros(LENGTH, np.float32)
            for t, kind in zip(chosen, kinds, strict=True)
        ]
        return _Asked(chosen, masks, kinds, prompts, np.array(told, np.float32).reshape(-1, LENGTH))

    def _decode(self, maps: tuple[Tensor, ...], asked: _Asked, rng: np.random.Generator) -> tuple[AllMasks, Tensor]:
        """Decode the prompts of a slice, after as many corrections as each object gets; which give three masks, too."""
        correcting = [row for row, kind in enumerate(asked.kinds) if kind == "clicks"]
        rounds = {row: int(rng.integers(1, _CLICKS)) for row in correcting}
        for done in range(max(rounds.values(), default=0)):
            going = [row for row in correcting if rounds[row] > done]
            with torch.no_grad():
                found, multimask = self._heads(maps, asked, going)
                logits = _chosen(self.module.sam, found, multimask).mask_logits
                side = asked.masks.shape[-1]
                masks = nn.functional.interpolate(logits, size=(side, side), mode="bilinear")[:, 0].numpy() > 0
            for row, mask in zip(going, masks, strict=True):
                more = correction(asked.masks[row], mask, rng)
                asked.prompts[row] = SlicePrompt((*asked.prompts[row].points, more))
        return self._heads(maps, asked, range(len(asked.targets)))

    def _heads(self, maps: tuple[Tensor, ...], asked: _Asked, rows: Sequence[int]) -> tuple[AllMasks, Tensor]:
        own, spec = list(rows), self._checkpoint.segmentation
        arrays = {
            name: torch.from_numpy(array)
            for name, array in prompt_arrays([asked.prompts[r] for r in own], side=spec.side, hidden_size=1).items()
        }
        told = torch.from_numpy(asked.descriptors[own])
        spoken = torch.tensor([[float(asked.kinds[r] == "language")] for r in own])
        drawn = torch.tensor([[float(asked.kinds[r] == "mask")] for r in own])
        f0, f1, f2 = (f.expand(len(own), -1, -1, -1) for f in maps)
        tokens = self._decoder.tokens(arrays["points"], arrays["labels"], self.module.teacher(told), spoken)
        dense = self._decoder.dense(self._drawn(asked.masks[own]), drawn)
        found = decode_all(self.module.sam, self._decoder.image(f2), (f0, f1), tokens, dense)
        return found, arrays["multimask_flag"][:, 0] > 0

    def _drawn(self, masks: NDArray[np.bool_]) -> Tensor:
        """Return masks as mask prompts, logits FP32 [N, 1, f_4, f_4]."""
        low = nn.functional.avg_pool2d(torch.from_numpy(masks).float()[:, None], 4)
        return 20.0 * low - 10.0

    def _track(self, maps: tuple[Tensor, ...], bank: Bank[Tensor], objects: int) -> AllMasks:
        f0, f1, f2 = maps
        image = self._tracker.conditioned(
            f2,
            torch.stack(list(bank.memories)),
            torch.tensor(bank.rows),
            torch.stack(list(bank.pointers)),
            torch.tensor(bank.distances, dtype=torch.float32),
        )
        tokens, dense = no_prompt(self.module.sam, objects)
        fine = (f0.expand(objects, -1, -1, -1), f1.expand(objects, -1, -1, -1))
        return decode_all(self.module.sam, image, fine, tokens, dense)

    def _with_given(self, decoded: Remembered[Tensor], maps: tuple[Tensor, ...], asked: _Asked) -> Remembered[Tensor]:
        """Replace what was decoded of masks that somebody gave by the masks, as SAM2 does when it tracks them."""
        rows = [row for row, kind in enumerate(asked.kinds) if kind == "mask"]
        if not rows:
            return decoded
        f0, f1, f2 = maps
        masks = torch.from_numpy(asked.masks[rows]).float()[:, None]
        tokens, _ = no_prompt(self.module.sam, len(rows))
        own, memory = given(self.module.sam, f2, (f0, f1), masks, tokens)
        at = torch.tensor(rows)
        return Remembered(
            Decoded(
                decoded.decoded.mask_logits.index_copy(0, at, own.mask_logits),
                decoded.decoded.iou.index_copy(0, at, own.iou),
                decoded.decoded.object_pointer.index_copy(0, at, own.object_pointer),
                decoded.decoded.object_score.index_copy(0, at, own.object_score),
            ),
            decoded.memory.index_copy(0, at, memory),
        )

    def _remember(self, f2: Tensor, decoded: Decoded[Tensor]) -> Remembered[Tensor]:
        return Remembered(decoded, remember(self.module.sam, f2, decoded.mask_logits, decoded.object_score))


def _chosen(sam: SAM2Base, found: AllMasks, multimask: Tensor) -> Decoded[Tensor]:
    """Return the mask that inference would choose, as it would hand it on."""
    best = torch.where(multimask, found.iou[:, 1:].argmax(1) + 1, 0)
    rows = torch.arange(len(best))
    present = found.object_score > 0
    return Decoded(
        mask_logits=torch.where(present[..., None, None], found.logits[rows, best][:, None], NO_OBJ_SCORE),
        iou=found.iou[rows, best][:, None],
        object_pointer=torch.where(present, found.pointer[rows, best], sam.no_obj_ptr),
        object_score=found.object_score,
    )


def _mask(target: Target, plane: NDArray[np.uint8]) -> NDArray[np.bool_]:
    members = np.zeros(256, np.bool_)
    members[list(target.values)] = True
    mask: NDArray[np.bool_] = members[plane]
    return mask


def _prompt(kind: PromptKind, mask: NDArray[np.bool_], own: NDArray[np.bool_], rng: np.random.Generator) -> SlicePrompt:
    """Prompt a mask; who clicks on a lesion means the lesion, so organs are clicked on what is only theirs."""
    clicked = own if own.any() else mask
    makers: dict[PromptKind, Callable[[], tuple[PromptPoint, ...]]] = {
        "point": lambda: (click(clicked, rng),),
        "clicks": lambda: (click(clicked, rng),),
        "box": lambda: box(mask, rng),
    }
    return SlicePrompt(makers[kind]()) if kind in makers else SlicePrompt()


def _slices_with_findings(
    case: Case, found: Sequence[Target], count: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Return slices, every second one where a finding is."""
    depth = case.labels.shape[0]
    spans = [t.place for t in found if t.is_finding and t.place is not None]
    numbers = []
    for _ in range(count):
        if spans and rng.random() < 0.5:
            place = spans[rng.integers(len(spans))]
            at = place.centre[0] + rng.uniform(-1, 1) * place.half_extent[0]
            numbers.append(min(depth - 1, max(0, int(at * depth))))
        else:
            numbers.append(int(rng.integers(depth)))
    return np.array(numbers)


def _mean(losses: Sequence[MaskLoss], name: str) -> tuple[Tensor, dict[str, float]]:
    dices = [one.dice for one in losses if one.dice == one.dice]
    return torch.stack([one.total for one in losses]).mean(), {
        f"{name}_dice": float(np.mean(dices)) if dices else float("nan"),
        f"{name}_score": float(np.mean([one.score_accuracy for one in losses])),
    }
