"""Training of SAM2: prompts on single slices first, then clips of slices through its memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sam2.modeling.sam2_base import NO_OBJ_SCORE, SAM2Base
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate

from medvl.contracts.checkpoint import Checkpoint
from medvl.embedded.anatomy import ORGANS
from medvl.embedded.parts import BODY
from medvl.network.memory_bank import POINTERS, MemoryBank
from medvl.network.modules import Modules
from medvl.network.prompts import PADDING, SlicePrompt, prompt_arrays
from medvl.network.sam2_heads import AllMasks, decode_all, given, remember
from medvl.network.sam2_parts import MaskDecoder, TrackStep, no_prompt, normalised
from medvl.network.steps import Bank, Decoded, Remembered
from medvl.training.cases import Case, CaseStore
from medvl.training.clicks import box, click, corrections
from medvl.training.descriptors import KIND_NAMES, LENGTH, Target, Teacher, absent, descriptor, targets
from medvl.training.losses import MaskLoss, mask_loss

PromptKind = Literal["language", "point", "box", "clicks", "mask"]
_KINDS: tuple[PromptKind, ...] = ("language", "point", "box", "clicks", "mask")
_CHANCES = (0.42, 0.2, 0.15, 0.18, 0.05)
_PLACED = 0.8
"""Share of language prompts that tell the place."""
_SLICES, _OBJECTS, _ABSENT = 3, 6, 2
_CLIP, _CLIP_OBJECTS = 5, 5
_CORRECTED, _PROMPTED, _FAR = 0.75, 0.25, 0.6
"""Share of clips that are corrected; of these, on the prompted slice itself; of the others, far away from it."""
_NEAREST, _NEAR, _FURTHEST = 2, 5, 30
"""Slices between the prompted one and one that is corrected: at least; near it, and at all, less than."""
_MISTAKEN, _LEAKED = 0.5, 0.5
"""Share of corrected objects whose mask has gone over to another one; share of these in which it holds both."""
_FINDING_WEIGHT = 3.0
"""Of a cell of a finding for the head."""
_LEAST_PIXELS = 6
"""Of the S x S slice, for an object to be prompted on it."""
_STRIDE = 4
"""Pixels of a slice along a side of its finest features."""
_POINTS = 4
"""Of an object on a slice at most."""
_LARGEST_LOGIT = 32.0
"""Of a mask that goes back into the prompt encoder, as in SAM2."""
_SCALED, _SHIFTED, _CURVED = 0.06, 8.0, 0.15
"""Spread of the contrast, brightness (in grey values of 256) and exponent of slices."""

Maps = tuple[Tensor, Tensor, Tensor]
"""f0, f1 and f2 of the slice of each object, [N, ...]."""


class Segmenter(nn.Module):
    """SAM2 with the teacher of its language prompts, and a head that reads from its finest features what each place is.

    The head is in no checkpoint. It teaches the image encoder what there is to tell apart long before prompts do.
    """

    def __init__(self, modules: Modules) -> None:
        super().__init__()
        self.sam = modules.sam2
        self.teacher = Teacher(self.sam.hidden_dim)
        self.places = nn.Conv2d(self.sam.hidden_dim, 1 + len(KIND_NAMES), 1)

    def features(self, slices: Tensor) -> tuple[Maps, Tensor]:
        """Return f0, f1 and f2 of slices UINT8 [B, S, S], and the head's logits [B, kinds + 1, f_4, f_4], FP32.

        A GPU computes them in bfloat16, in which its attention is fast.
        """
        device, decoder = slices.device.type, self.sam.sam_mask_decoder
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            fine, middle, coarse = self.sam.image_encoder(normalised(slices))["backbone_fpn"]
            maps = decoder.conv_s0(fine), decoder.conv_s1(middle), coarse
            places = self.places(fine)
        f0, f1, f2 = (each.float() for each in maps)
        return (f0, f1, f2), places.float()


@dataclass(frozen=True, eq=False)
class Prompted:
    """B clips of T slices, and N objects, each prompted on the first slice of its clip."""

    slices: Tensor
    """UINT8 [B, T, S, S]."""
    kinds: Tensor
    """UINT8 [B, T, f_4, f_4], what the middle of each place is: 0, or one of ``KIND_NAMES`` from 1."""
    clip: Tensor
    """INT64 [N]."""
    planes: Tensor
    """UINT8 [B, T, S, S], label maps."""
    values: Tensor
    """BOOL [N, 256], which of their values are the object."""
    points: Tensor
    """FP32 [N, P, 2]."""
    labels: Tensor
    """INT32 [N, P]."""
    descriptors: Tensor
    """FP32 [N, LENGTH]."""
    spoken: Tensor
    """BOOL [N], whether words prompt the object."""
    drawn: Tensor
    """BOOL [N], whether its mask does."""
    clicks: Tensor
    """INT64 [N], corrective clicks on the prompted slice."""
    numbers: Tensor
    """INT64 [T], of the slices, in the order of tracking, counted from the prompted one in its direction."""
    corrected: Tensor
    """INT64 [1], which of them is corrected; -1 for none."""
    mistaken: Tensor
    """BOOL [N, 256], values of what an object was taken for when it is corrected; none where it was not."""

    def masks(self, at: int) -> Tensor:
        """Return the objects on one of the slices, BOOL [N, S, S], empty where an object is not on it."""
        return self._on(at, self.values)

    def mistakes(self, at: int) -> Tensor:
        """Return what they were taken for on one of the slices, BOOL [N, S, S]."""
        return self._on(at, self.mistaken)

    def _on(self, at: int, values: Tensor) -> Tensor:
        planes = self.planes[self.clip, at]
        return values.gather(1, planes.flatten(1).long()).reshape(planes.shape)


class SegmentationLearner:
    """One stage of SAM2's training.

    Parameters
    ----------
    checkpoint
        Sizes and windows.
    modules
        What is trained, in part ``sam2``.
    store
        Cases; they come again and again.
    batch
        Clips of a step; three times as many single slices.
    clips
        Whether to train the memory on clips, too.
    """

    def __init__(self, checkpoint: Checkpoint, modules: Modules, store: CaseStore, batch: int, *, clips: bool) -> None:
        self._checkpoint = checkpoint
        self._store = store
        self._batch = batch
        self._clips = clips
        self.module = Segmenter(modules)
        self.module.train()
        sam = self.module.sam
        self._decoder = MaskDecoder(sam, modules.seg_projector)
        self._tracker = TrackStep(sam)

    def draw(self, step: int, rng: np.random.Generator) -> Prompted:
        """Return prompted slices; clips on three of four steps where they are trained."""
        clips = self._clips and step % 4 > 0
        numbers, corrected = clip_slices(rng) if clips else ((0,), -1)
        drawn: list[Prompted] = []
        while len(drawn) < self._batch * (1 if clips else _SLICES) or not sum(len(d.clip) for d in drawn):
            case = self._store.draw(rng, step)
            found = targets(case.truth, case.places)
            starts = _slices_with_findings(case, found, 1 if clips else _SLICES, rng)
            drawn.extend(self._draw_clip(case, found, int(n), numbers, corrected, rng) for n in starts)
        return replace(_joined(drawn), numbers=torch.tensor(numbers), corrected=torch.tensor([corrected]))

    def loss(self, step: int, drawn: Prompted) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the loss of a step."""
        features, seen = self.module.features(_brightened(drawn.slices).flatten(0, 1))
        length = drawn.slices.shape[1]
        maps = [_rows(features, drawn.clip * length + i) for i in range(length)]
        if length > 1:
            return self._clip_loss(drawn, maps)
        masks, multimask, _ = self._decode(maps[0], drawn)
        found = mask_loss(masks, drawn.masks(0).float(), multimask)
        rare = torch.ones(1 + len(KIND_NAMES))
        rare[1 + len(ORGANS) :] = _FINDING_WEIGHT
        places = cross_entropy(seen, drawn.kinds.flatten(0, 1).long(), rare)
        return found.total + places, {**_shown(found, "slice"), "places": places}

    def _clip_loss(self, drawn: Prompted, maps: Sequence[Maps]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of prompted slices and of those that are tracked from them, one of which may be corrected.

        One that is corrected conditions what is tracked after it, as the prompted one does; what was tracked before it
        is forgotten, because it would be tracked again.
        """
        masks, multimask, prompted = self._decode(maps[0], drawn)
        first = mask_loss(masks, drawn.masks(0).float(), multimask)
        remembered = self._remember(maps[0][2], masks, multimask)
        remembered = self._with_given(remembered, maps[0], drawn.masks(0), drawn.drawn)
        total, shown, tracked = first.total, _shown(first, "slice"), []
        every = torch.ones(len(drawn.clip), dtype=torch.bool)
        corrected = int(drawn.corrected)
        if corrected == 0:
            remembered = self._mistaken(remembered, maps[0], drawn, 0)
        bank = MemoryBank({0: remembered}, POINTERS, 1, self._checkpoint.segmentation.max_conditioning_slices)
        if corrected == 0:
            image = self._conditioned(maps[0][2], bank.view(0))
            after, remembered = self._correct(image, maps[0], remembered, prompted, drawn.masks(0))
            total, shown = total + after.total, shown | _shown(after, "corrected")
            bank.conditioning = {0: remembered}
        for at, own in enumerate(maps[1:], 1):
            number, wanted = int(drawn.numbers[at]), drawn.masks(at)
            # What lies below all that conditions it has been tracked downward.
            bank.step = 1 if number > min(bank.conditioning) else -1
            image = self._conditioned(own[2], bank.view(number))
            tokens, dense = no_prompt(self.module.sam, len(every))
            masks = decode_all(self.module.sam, image, own[:2], tokens, dense)
            tracked.append(mask_loss(masks, wanted.float(), every))
            remembered = self._remember(own[2], masks, every)
            if at <= corrected:
                remembered = self._mistaken(remembered, own, drawn, at)
            if at == corrected:
                after, remembered = self._correct(image, own, remembered, None, wanted, drawn.masks(0))
                total, shown = total + after.total, shown | _shown(after, "corrected")
                bank.conditioning = {**bank.conditioning, number: remembered}
                bank.tracked.clear()
            else:
                bank.add(number, remembered)
        dice = torch.stack([one.dice for one in tracked]).nanmean()
        score = torch.stack([one.score_accuracy for one in tracked]).mean()
        total = total + torch.stack([one.total for one in tracked]).mean()
        return total, {**shown, "track_dice": dice, "track_score": score}

    def _draw_clip(  # noqa: PLR0917 - a case, a clip of it, and the dice
        self,
        case: Case,
        found: Sequence[Target],
        start: int,
        relative: Sequence[int],
        corrected: int,
        rng: np.random.Generator,
    ) -> Prompted:
        """Return one clip that is prompted on a slice, upward or downward, whichever has more room for it."""
        last, spec = case.geometry.shape[0] - 1, self._checkpoint.segmentation
        steps = sorted((1, -1), key=lambda s: (sum(not 0 <= start + s * n <= last for n in relative), rng.random()))
        # Where a series ends before, its last slice stands for those beyond.
        numbers = np.clip(start + steps[0] * np.array(relative), 0, last)
        planes = case.planes(numbers, spec)
        kinds = np.zeros(256, np.uint8)
        for target in found:
            kinds[target.values[0]] = 1 + KIND_NAMES.index(target.kind)
        alone = len(relative) == 1
        chosen, told = _choose(found, planes[0], rng, _OBJECTS if alone else _CLIP_OBJECTS, _ABSENT if alone else 0)
        prompts = [_prompt(kind, t, planes[0], rng) for t, kind in zip(chosen, told, strict=True)]
        points, labels = _points(prompts, spec.side)
        words = [
            descriptor(t, rng, placed=rng.random() < _PLACED) if kind == "language" else np.zeros(LENGTH, np.float32)
            for t, kind in zip(chosen, told, strict=True)
        ]
        return Prompted(
            slices=torch.from_numpy(case.slices(numbers, spec))[None],
            kinds=torch.from_numpy(kinds[planes[:, _STRIDE // 2 :: _STRIDE, _STRIDE // 2 :: _STRIDE]])[None],
            clip=torch.zeros(len(chosen), dtype=torch.long),
            planes=torch.from_numpy(planes)[None],
            values=torch.from_numpy(np.array([_members(t) for t in chosen], np.bool_).reshape(-1, 256)),
            points=torch.from_numpy(points),
            labels=torch.from_numpy(labels),
            descriptors=torch.from_numpy(np.array(words, np.float32).reshape(-1, LENGTH)),
            spoken=torch.tensor([kind == "language" for kind in told], dtype=torch.bool),
            drawn=torch.tensor([kind == "mask" for kind in told], dtype=torch.bool),
            clicks=torch.tensor([(kind == "clicks") * rng.integers(1, _POINTS) for kind in told], dtype=torch.long),
            numbers=torch.tensor(relative),
            corrected=torch.tensor([corrected]),
            mistaken=torch.from_numpy(_mistakes(chosen, found, None if corrected < 0 else planes[corrected], rng)),
        )

    def _decode(self, maps: Maps, drawn: Prompted) -> tuple[AllMasks, Tensor, Prompted]:
        """Decode the prompted slices after as many corrections as each object gets.

        Returns
        -------
        tuple[AllMasks, Tensor, Prompted]
            The masks; BOOL [N], which are given three; and what was drawn, with the corrections among its points.
        """
        wanted = drawn.masks(0)
        for done in range(_POINTS - 1):
            going = torch.nonzero(drawn.clicks > done)[:, 0]
            if not len(going):
                break
            with torch.no_grad():
                found, multimask = self._heads(_rows(maps, going), _some(drawn, going))
                points, labels = corrections(wanted[going], self._full(_chosen(self.module.sam, found, multimask)))
            drawn = replace(
                drawn,
                points=drawn.points.index_put((going, torch.tensor(1 + done)), points),
                labels=drawn.labels.index_put((going, torch.tensor(1 + done)), labels),
            )
        return *self._heads(maps, drawn), drawn

    def _heads(self, maps: Maps, drawn: Prompted) -> tuple[AllMasks, Tensor]:
        f0, f1, f2 = maps
        words, given_masks = drawn.spoken[:, None].float(), drawn.drawn[:, None].float()
        tokens = self._decoder.tokens(drawn.points, drawn.labels, self.module.teacher(drawn.descriptors), words)
        dense = self._decoder.dense(20.0 * avg_pool2d(drawn.masks(0)[:, None].float(), _STRIDE) - 10.0, given_masks)
        found = decode_all(self.module.sam, self._decoder.image(f2), (f0, f1), tokens, dense)
        return found, (drawn.labels >= 0).sum(1) <= 1

    def _correct(  # noqa: PLR0917 - what SAM2 sees, and what the user does
        self,
        image: Tensor,
        maps: Maps,
        last: Remembered[Tensor],
        prompted: Prompted | None,
        wanted: Tensor,
        elsewhere: Tensor | None = None,
    ) -> tuple[MaskLoss, Remembered[Tensor]]:
        """Correct a slice with a click, as SAM2 does: memories, last mask and points so far stay beside the click."""
        sam = self.module.sam
        point, label = corrections(wanted, self._full(last.decoded), elsewhere)
        points, labels = point[:, None], label[:, None]
        if prompted is not None:
            points, labels = torch.cat([prompted.points, points], 1), torch.cat([prompted.labels, labels], 1)
        none = torch.zeros(len(wanted), 1)
        tokens = self._decoder.tokens(points, labels, none.expand(-1, sam.hidden_dim), none)
        logits = last.decoded.mask_logits.detach().clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)
        masks = decode_all(sam, image, maps[:2], tokens, self._decoder.dense(logits, none + 1))
        multimask = (labels >= 0).sum(1) <= 1
        return mask_loss(masks, wanted.float(), multimask), self._remember(maps[2], masks, multimask)

    def _conditioned(self, f2: Tensor, bank: Bank[Tensor]) -> Tensor:
        return self._tracker.conditioned(
            f2,
            torch.stack(list(bank.memories)),
            torch.tensor(bank.rows),
            torch.stack(list(bank.pointers)),
            torch.tensor(bank.distances, dtype=torch.float32),
        )

    def _mistaken(self, found: Remembered[Tensor], maps: Maps, drawn: Prompted, at: int) -> Remembered[Tensor]:
        """Replace what was found of objects by what they are to be mistaken for."""
        return self._with_given(found, maps, drawn.mistakes(at), drawn.mistaken.any(1))

    def _with_given(self, decoded: Remembered[Tensor], maps: Maps, masks: Tensor, which: Tensor) -> Remembered[Tensor]:
        """Replace what was decoded of some objects by masks BOOL [N, S, S], as SAM2 takes those that are given."""
        at = torch.nonzero(which)[:, 0]
        if not len(at):
            return decoded
        f0, f1, f2 = _rows(maps, at)
        tokens, _ = no_prompt(self.module.sam, len(at))
        own, memory = given(self.module.sam, f2, (f0, f1), masks[at, None].float(), tokens)
        return Remembered(
            Decoded(
                decoded.decoded.mask_logits.index_copy(0, at, own.mask_logits),
                decoded.decoded.iou.index_copy(0, at, own.iou),
                decoded.decoded.object_pointer.index_copy(0, at, own.object_pointer),
                decoded.decoded.object_score.index_copy(0, at, own.object_score),
            ),
            decoded.memory.index_copy(0, at, memory),
        )

    def _remember(self, f2: Tensor, masks: AllMasks, multimask: Tensor) -> Remembered[Tensor]:
        decoded = _chosen(self.module.sam, masks, multimask)
        return Remembered(decoded, remember(self.module.sam, f2, decoded.mask_logits, decoded.object_score))

    def _full(self, decoded: Decoded[Tensor]) -> Tensor:
        """Return masks BOOL [N, S, S]."""
        side = self._checkpoint.segmentation.side
        return interpolate(decoded.mask_logits, size=(side, side), mode="bilinear")[:, 0] > 0


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


def _brightened(slices: Tensor) -> Tensor:
    """Return slices UINT8 [B, T, S, S] with the brightness and contrast of other scanners, the same along a clip."""
    each = (len(slices), 1, 1, 1)
    curved = 255.0 * (slices.float() / 255.0) ** torch.exp(_CURVED * torch.randn(each))
    changed = curved * (1.0 + _SCALED * torch.randn(each)) + _SHIFTED * torch.randn(each)
    # What is black is air, or beside the slice.
    return torch.where(slices > 0, changed.clamp(0, 255), 0).to(torch.uint8)


def clip_slices(rng: np.random.Generator) -> tuple[tuple[int, ...], int]:
    """Draw the slices of a clip, counted from the prompted one, and which of them is corrected, -1 for none.

    A tracked slice is corrected behind the one before it. Then tracking begins anew, somewhere in its upward course:
    between the prompted and the corrected slice, or behind both.
    """
    if rng.random() >= _CORRECTED:
        return tuple(range(_CLIP)), -1
    if rng.random() < _PROMPTED:
        return tuple(range(_CLIP)), 0
    last = _FURTHEST if rng.random() < _FAR else _NEAR
    far = int(rng.integers(_NEAREST, last)) * int(rng.choice([-1, 1]))
    before = far - int(np.sign(far))
    start = int(rng.integers(min(0, far) + 1, max(0, far) + 2))
    behind = (n for n in range(start, start + _CLIP) if n not in {0, far})
    return (0, before, far, *islice(behind, _CLIP - 3)), 2


def _choose(
    found: Sequence[Target], plane: NDArray[np.uint8], rng: np.random.Generator, most: int, absent_ones: int
) -> tuple[list[Target], list[PromptKind]]:
    """Choose objects of a slice and how to prompt them, findings first; with words for some that are not on it."""
    areas = np.bincount(plane.ravel(), minlength=256)
    here = [t for t in found if areas[list(t.values)].sum() >= _LEAST_PIXELS]
    findings, organs = ([t for t in here if t.is_finding is wanted] for wanted in (True, False))
    rng.shuffle(findings)
    rng.shuffle(organs)
    chosen = (findings[:3] + organs)[:most]
    kinds: list[PromptKind] = list(rng.choice(np.array(_KINDS), size=len(chosen), p=_CHANCES))
    elsewhere = [t for t in found if not areas[list(t.values)].any()]
    missing = [absent(k) for k in KIND_NAMES if k != BODY and all(t.kind != k for t in found)]
    for pool in (elsewhere, missing)[:absent_ones]:
        if pool:
            chosen.append(pool[rng.integers(len(pool))])
            kinds.append("language")
    return chosen, kinds


def _mistakes(
    chosen: Sequence[Target], found: Sequence[Target], plane: NDArray[np.uint8] | None, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Return what each target is taken for on the corrected slice, bool [n, 256]: another object, both, or nothing."""
    mistaken = np.zeros((len(chosen), 256), np.bool_)
    if plane is None:
        return mistaken
    areas = np.bincount(plane.ravel(), minlength=256)
    here = [t for t in found if areas[list(t.values)].sum() >= _LEAST_PIXELS]
    for row, target in enumerate(chosen):
        others = [t for t in here if t is not target]
        if others and rng.random() < _MISTAKEN:
            mistaken[row] = _members(others[rng.integers(len(others))])
            if rng.random() < _LEAKED:
                mistaken[row] |= _members(target)
    return mistaken


def _members(target: Target) -> NDArray[np.bool_]:
    """Return which values of a label map are a target, bool [256]."""
    members = np.zeros(256, np.bool_)
    members[list(target.values)] = True
    return members


def _prompt(kind: PromptKind, target: Target, plane: NDArray[np.uint8], rng: np.random.Generator) -> SlicePrompt:
    """Prompt a target on a slice, uint8 [S, S].

    Who clicks on a lesion means the lesion, so organs are clicked on what is only theirs.
    """
    if kind == "box":
        return SlicePrompt(box(_members(target)[plane], rng))
    if kind not in {"point", "clicks"}:
        return SlicePrompt()
    own = plane == target.values[0]
    return SlicePrompt((click(own if own.any() else _members(target)[plane], rng),))


def _points(prompts: Sequence[SlicePrompt], side: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return points FP32 [N, P, 2] and labels INT32 [N, P] with room for corrections."""
    points = np.zeros((len(prompts), _POINTS, 2), np.float32)
    labels = np.full((len(prompts), _POINTS), PADDING, np.int32)
    if prompts:
        arrays = prompt_arrays(prompts, side=side, hidden_size=1)
        given_points = arrays["labels"].shape[1]
        points[:, :given_points], labels[:, :given_points] = arrays["points"], arrays["labels"]
    return points, labels


def _slices_with_findings(
    case: Case, found: Sequence[Target], count: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Return slices, every second one where a finding is."""
    depth = case.geometry.shape[0]
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


def _rows(maps: Maps, at: Tensor) -> Maps:
    f0, f1, f2 = maps
    return f0[at], f1[at], f2[at]


def _some(drawn: Prompted, at: Tensor) -> Prompted:
    """Return some of the objects, on all of the clips."""
    return replace(drawn, **{name: getattr(drawn, name)[at] for name in _OF_OBJECTS})


def _joined(parts: Sequence[Prompted]) -> Prompted:
    """Return several clips as one batch."""
    own = {f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Prompted)}
    return Prompted(**{**own, "clip": torch.cat([p.clip + i for i, p in enumerate(parts)])})


_OF_CLIPS = {"slices", "planes", "kinds", "numbers", "corrected"}
_OF_OBJECTS = tuple(f.name for f in fields(Prompted) if f.name not in _OF_CLIPS)


def _shown(found: MaskLoss, name: str) -> dict[str, Tensor]:
    return {f"{name}_dice": found.dice, f"{name}_score": found.score_accuracy}
