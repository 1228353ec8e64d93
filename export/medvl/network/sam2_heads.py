"""What the prompted and the tracked slice share: SAM2's mask heads and its memory of a slice, in exportable form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sam2.modeling.sam2_base import NO_OBJ_SCORE, SAM2Base
from torch import Tensor
from torch.nn.functional import conv2d, interpolate

from medvl.network.sam2_attention import two_way
from medvl.network.steps import Decoded

_SURE = 10.0
"""SAM2's logit of what somebody gave."""
_OBJECT, _IOU, _MASKS = 0, 1, slice(2, 6)
"""Output tokens: object score, predicted IoU, the single mask and the three of the multimask output."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Sparse prompt tokens."""

    values: Tensor
    """FP32 [N, K, C]."""
    counts: Tensor
    """BOOL [N, K], False where a token has no effect."""


def decode(  # noqa: PLR0917 - the inputs of one graph
    sam: SAM2Base, image: Tensor, fine: tuple[Tensor, Tensor], tokens: Tokens, dense: Tensor, multimask: Tensor
) -> Decoded[Tensor]:
    """Run SAM2's mask decoder and choose one of its four masks.

    Parameters
    ----------
    image
        FP32 [N, C, f, f], memory or ``no_mem_embed`` already in it.
    fine
        ``f0`` and ``f1``, batch N or 1.
    dense
        FP32 [N or 1, C, f, f], the mask prompt's embedding.
    multimask
        BOOL [N]: the best of the three masks by predicted IoU, else the single mask.
    """
    masks, keys, ious, score = _heads(sam, image, tokens, dense)
    chosen = torch.where(multimask, ious[:, 1:].argmax(dim=-1) + 1, 0)[:, None]
    logits = _pick(_weights(sam, masks), chosen) @ _upscaled(sam, keys, fine).flatten(2)
    side = fine[0].shape[-1]
    pointer = sam.obj_ptr_proj(_pick(masks, chosen)[:, 0])
    present = score > 0
    return Decoded(
        mask_logits=torch.where(present[..., None, None], logits.reshape(-1, 1, side, side), NO_OBJ_SCORE),
        iou=ious.gather(1, chosen),
        object_pointer=torch.where(present, pointer, sam.no_obj_ptr),
        object_score=score,
    )


@dataclass(frozen=True, slots=True)
class AllMasks:
    """What the mask heads say before one mask is chosen: what training looks at."""

    logits: Tensor
    """FP32 [N, 4, f_4, f_4]: the single mask, then the three of the multimask output; not overridden where absent."""
    iou: Tensor
    """FP32 [N, 4], predicted."""
    pointer: Tensor
    """FP32 [N, 4, C]."""
    object_score: Tensor
    """FP32 [N, 1], logit."""


def decode_all(sam: SAM2Base, image: Tensor, fine: tuple[Tensor, Tensor], tokens: Tokens, dense: Tensor) -> AllMasks:
    """Run SAM2's mask decoder as :func:`decode` does, and return all four masks."""
    masks, keys, ious, score = _heads(sam, image, tokens, dense)
    logits = torch.einsum("nkc,nchw->nkhw", _weights(sam, masks), _upscaled(sam, keys, fine))
    return AllMasks(logits, ious, sam.obj_ptr_proj(masks), score)


def _heads(sam: SAM2Base, image: Tensor, tokens: Tokens, dense: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mask tokens [N, 4, C], image [N, C, f, f], predicted IoUs [N, 4] and object scores [N, 1]."""
    decoder = sam.sam_mask_decoder
    own = torch.cat([decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight])
    own = own.unsqueeze(0).expand(image.shape[0], -1, -1)
    counts = torch.cat([torch.ones_like(own[..., 0], dtype=torch.bool), tokens.counts], dim=1)
    hidden, keys = two_way(
        decoder.transformer,
        image + dense,
        sam.sam_prompt_encoder.get_dense_pe(),
        torch.cat([own, tokens.values], dim=1),
        counts,
    )
    ious = decoder.iou_prediction_head(hidden[:, _IOU])
    score = decoder.pred_obj_score_head(hidden[:, _OBJECT])
    return hidden[:, _MASKS], keys.transpose(1, 2).reshape(image.shape), ious, score


def _upscaled(sam: SAM2Base, image: Tensor, fine: tuple[Tensor, Tensor]) -> Tensor:
    """Return the image [N, C_8, f_4, f_4] at the resolution of masks."""
    up1, norm, act1, up2, act2 = sam.sam_mask_decoder.output_upscaling
    f0, f1 = fine
    upscaled: Tensor = act2(up2(act1(norm(up1(image) + f1))) + f0)
    return upscaled


def _weights(sam: SAM2Base, masks: Tensor) -> Tensor:
    """Return the weights [N, 4, C_8] that each mask token gives to the channels of the upscaled image."""
    mlps = sam.sam_mask_decoder.output_hypernetworks_mlps
    return torch.stack([mlp(masks[:, i]) for i, mlp in enumerate(mlps)], dim=1)


def _pick(rows: Tensor, chosen: Tensor) -> Tensor:
    """Return the chosen row of every object: [N, K, C] and [N, 1] to [N, 1, C]."""
    return rows.gather(1, chosen[..., None].expand(-1, -1, rows.shape[2]))


def given(
    sam: SAM2Base, f2: Tensor, fine: tuple[Tensor, Tensor], mask: Tensor, tokens: Tokens
) -> tuple[Decoded[Tensor], Tensor]:
    """Take masks that somebody gave for what is on a slice, as SAM2 does: they are not decoded, only remembered.

    Parameters
    ----------
    f2, fine
        FP32 [1, ...], features of the slice, without memory.
    mask
        FP32 [N, 1, S, S], 0 or 1; an empty one says that the object is not on the slice.
    tokens
        Those of no prompt, for N objects.

    Returns
    -------
    tuple[Decoded[Tensor], Tensor]
        As of a decoded slice, with a predicted IoU of 1; and the memory FP32 [N, HW, Cm].
    """
    dense = sam.sam_prompt_encoder.mask_downscaling(sam.mask_downsample(mask))
    image = f2.expand(mask.shape[0], -1, -1, -1)
    decoded = decode(sam, image, fine, tokens, dense, torch.zeros_like(tokens.counts[:, 0]))
    present = mask.flatten(1).amax(1, keepdim=True) > 0
    sure = torch.where(present, _SURE, -_SURE)
    full = _SURE * (2.0 * mask - 1.0)
    own = Decoded(
        mask_logits=_quarter(full),
        iou=torch.ones_like(sure),
        object_pointer=torch.where(present, decoded.object_pointer, sam.no_obj_ptr),
        object_score=sure,
    )
    return own, _remembered(sam, f2, full, sure)


def _quarter(full: Tensor) -> Tensor:
    """Return a map [N, 1, S, S] at a quarter of its side, bilinear with antialiasing.

    Written as a convolution with the triangle that PyTorch's ``antialias`` uses, which other parsers do not know.
    """
    taps = torch.tensor([1.0, 3.0, 5.0, 7.0, 7.0, 5.0, 3.0, 1.0])
    kernel = (taps[:, None] * taps).reshape(1, 1, 8, 8)
    inside = conv2d(torch.ones_like(full[:1]), kernel, stride=4, padding=2)
    return conv2d(full, kernel, stride=4, padding=2) / inside


def remember(sam: SAM2Base, f2: Tensor, mask_logits: Tensor, object_score: Tensor) -> Tensor:
    """Return the memory FP32 [N, HW, Cm] of a slice.

    Parameters
    ----------
    f2
        FP32 [1, C, f, f], without memory.
    mask_logits, object_score
        FP32 [N, 1, f_4, f_4] and [N, 1].
    """
    side = sam.image_size
    full = interpolate(mask_logits, size=(side, side), mode="bilinear", align_corners=False)
    return _remembered(sam, f2, full, object_score)


def _remembered(sam: SAM2Base, f2: Tensor, full: Tensor, object_score: Tensor) -> Tensor:
    """Return the memory of masks at full size, logits FP32 [N, 1, S, S]."""
    mask = torch.sigmoid(full) * sam.sigmoid_scale_for_mem_enc + sam.sigmoid_bias_for_mem_enc
    encoder = sam.memory_encoder
    fused = encoder.fuser(encoder.pix_feat_proj(f2) + encoder.mask_downsampler(mask))
    memory = encoder.out_proj(fused).flatten(2).transpose(1, 2)
    return torch.where((object_score > 0)[..., None], memory, memory + sam.no_obj_embed_spatial)
