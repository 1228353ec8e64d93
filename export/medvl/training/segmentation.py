"""Training of SAM2: prompts on single slices first, then clips of slices through its memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from sam2.modeling.sam2_base import NO_OBJ_SCORE, SAM2Base
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate

from medvl.contracts.checkpoint import Checkpoint
from medvl.embedded.anatomy import ORGANS
from medvl.network.memory_bank import POINTERS, MemoryBank
from medvl.network.modules import Modules
from medvl.network.prompts import logits_of
from medvl.network.sam2_heads import AllMasks, decode_all, given, remember
from medvl.network.sam2_parts import LARGEST_LOGIT, MaskDecoder, TrackStep, no_prompt, normalised
from medvl.network.steps import Bank, Decoded, Remembered
from medvl.training.cases import CaseStore
from medvl.training.clicks import corrections
from medvl.training.clips import POINTS, STRIDE, Prompted, draw_prompted
from medvl.training.descriptors import KIND_NAMES, Teacher
from medvl.training.losses import MaskLoss, mask_loss
from medvl.training.words import Descriptions, Speaker

_FINDING_WEIGHT = 3.0
"""Of a cell of a finding for the head."""
_SCALED, _SHIFTED, _CURVED = 0.06, 8.0, 0.15
"""Spread of the contrast, brightness (in grey values of 256) and exponent of slices."""

Maps = tuple[Tensor, Tensor, Tensor]
"""f0, f1 and f2 of the slice of each object, [N, ...]."""


class Segmenter(nn.Module):
    """SAM2 with the teacher of its language prompts, and a head that reads from its finest features what each place is.

    Neither is in a checkpoint. The head teaches the image encoder what there is to tell apart long before prompts do.
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
    speaker
        Says [SEG] states, of which the seg projector of ``modules`` makes tokens; by default descriptors are said, of
        which the teacher makes them.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        modules: Modules,
        store: CaseStore,
        batch: int,
        *,
        clips: bool,
        speaker: Speaker | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._store = store
        self._batch = batch
        self._clips = clips
        self._speaker = speaker or Descriptions()
        self.module = Segmenter(modules)
        self.module.train()
        sam = self.module.sam
        self._token = modules.seg_projector.requires_grad_(requires_grad=False) if speaker else self.module.teacher
        self._decoder = MaskDecoder(sam, modules.seg_projector)
        self._tracker = TrackStep(sam)

    def draw(self, step: int, rng: np.random.Generator) -> Prompted:
        """Return prompted slices; clips on every second step where they are trained."""
        clips = self._clips and step % 2 > 0
        spec = self._checkpoint.segmentation
        return draw_prompted(self._store, self._speaker, spec, self._batch, step, rng, clips=clips)

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

    def _decode(self, maps: Maps, drawn: Prompted) -> tuple[AllMasks, Tensor, Prompted]:
        """Decode the prompted slices after as many corrections as each object gets.

        Returns
        -------
        tuple[AllMasks, Tensor, Prompted]
            The masks; BOOL [N], which are given three; and what was drawn, with the corrections among its points.
        """
        wanted = drawn.masks(0)
        for done in range(POINTS - 1):
            going = torch.nonzero(drawn.clicks > done)[:, 0]
            if not len(going):
                break
            with torch.no_grad():
                found, multimask = self._heads(_rows(maps, going), drawn.some(going))
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
        tokens = self._decoder.tokens(drawn.points, drawn.labels, self._token(drawn.said), words)
        covered = avg_pool2d(drawn.masks(0)[:, None].float(), STRIDE)
        dense = self._decoder.dense(logits_of(covered), given_masks)
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
        logits = last.decoded.mask_logits.detach().clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
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
        both = zip(decoded.decoded.astuple(), own.astuple(), strict=True)
        laid_over = Decoded(*(every.index_copy(0, at, some) for every, some in both))
        return Remembered(laid_over, decoded.memory.index_copy(0, at, memory))

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


def _rows(maps: Maps, at: Tensor) -> Maps:
    f0, f1, f2 = maps
    return f0[at], f1[at], f2[at]


def _shown(found: MaskLoss, name: str) -> dict[str, Tensor]:
    return {f"{name}_dice": found.dice, f"{name}_score": found.score_accuracy}
