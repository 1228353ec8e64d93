"""SAM2 as the five networks of the contract: arguments and results are exactly its tensors, in its order."""

from __future__ import annotations

import torch
from sam2.modeling.sam2_base import SAM2Base
from sam2.modeling.sam2_utils import get_1d_sine_pe
from torch import Tensor, nn

from medvl.network.prompts import PADDING
from medvl.network.sam2_attention import RotaryAttention
from medvl.network.sam2_heads import Tokens, decode, given, remember
from medvl.network.sam2_trunk import neck, trunk
from medvl.network.seg_projector import SegProjector

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""What SAM2's trunk was trained with, of values in 0 to 1."""

LARGEST_LOGIT = 32.0
"""To which SAM2's video predictor clamps the last mask of a slice before it corrects it."""


def normalised(slices: Tensor) -> Tensor:
    """Return slices UINT8 [B, S, S] as the trunk takes them, FP32 [B, 3, S, S]."""
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    # TensorRT takes UINT8 nowhere but into a conversion, so that comes first.
    return (slices.float().unsqueeze(1) / 255.0 - mean) / std


class ImageEncoder(nn.Module):
    """Model ``sam2_image_encoder``."""

    def __init__(self, sam: SAM2Base) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, slices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode slices UINT8 [B, S, S] to f0 [B, C_8, f_4, f_4], f1 [B, C_4, f_2, f_2] and f2 [B, C, f, f]."""
        encoder, decoder = self.sam.image_encoder, self.sam.sam_mask_decoder
        maps = neck(encoder.neck, trunk(encoder.trunk, normalised(slices)))
        f0, f1, f2 = maps[: len(maps) - encoder.scalp]
        return decoder.conv_s0(f0), decoder.conv_s1(f1), f2


class MaskDecoder(nn.Module):
    """Model ``sam2_mask_decoder``: B prompts, each on its own slice, without memory."""

    def __init__(self, sam: SAM2Base, seg_projector: SegProjector) -> None:
        super().__init__()
        self.sam = sam
        self.seg_projector = seg_projector

    def forward(  # noqa: PLR0917 - the tensors of the contract
        self,
        f0: Tensor,
        f1: Tensor,
        f2: Tensor,
        points: Tensor,
        labels: Tensor,
        mask_input: Tensor,
        mask_flag: Tensor,
        seg_hidden: Tensor,
        seg_flag: Tensor,
        multimask_flag: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Decode prompts.

        The sparse tokens are the points, then SAM2's own "not a point", then the language token; padding points
        (label -2) and a language token with ``seg_flag`` 0 are masked out of every attention.

        Parameters
        ----------
        f0, f1, f2
            FP32 [B, ...], features of the slice of each prompt.
        points, labels
            FP32 [B, P, 2] in pixels with centres at +0.5 (SAM2's own interface adds that half itself), INT32 [B, P].
        mask_input, mask_flag
            FP32 [B, 1, f_4, f_4] logits, [B, 1].
        seg_hidden, seg_flag
            FP32 [B, H], [B, 1].
        multimask_flag
            FP32 [B, 1].

        Returns
        -------
        tuple[Tensor, Tensor, Tensor, Tensor]
            ``mask_logits`` [B, 1, f_4, f_4], ``iou`` [B, 1], ``object_pointer`` [B, C], ``object_score`` [B, 1].
        """
        tokens = self.tokens(points, labels, self.seg_projector(seg_hidden), seg_flag)
        image, dense = self.image(f2), self.dense(mask_input, mask_flag)
        return decode(self.sam, image, (f0, f1), tokens, dense, multimask_flag[:, 0] > 0).astuple()

    def image(self, f2: Tensor) -> Tensor:
        """Return ``f2`` [B, C, f, f] as the mask heads take it where there is no memory."""
        image: Tensor = f2 + self.sam.no_mem_embed.reshape(1, -1, 1, 1)
        return image

    def tokens(self, points: Tensor, labels: Tensor, language: Tensor, language_flag: Tensor) -> Tokens:
        """Return the sparse tokens of prompts; ``language`` is FP32 [B, C], its flag [B, 1]."""
        told = point_tokens(self.sam, points, labels)
        values = torch.cat([told.values, language[:, None]], dim=1)
        return Tokens(values, torch.cat([told.counts, language_flag > 0], dim=1))

    def dense(self, mask_input: Tensor, mask_flag: Tensor) -> Tensor:
        """Return the embedding [B, C, f, f] of mask prompts."""
        return mask_embedding(self.sam, mask_input, mask_flag)


class MemoryEncoder(nn.Module):
    """Model ``sam2_memory_encoder``."""

    def __init__(self, sam: SAM2Base) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, f2: Tensor, mask_logits: Tensor, object_score: Tensor) -> Tensor:
        """Return the memory [N, HW, Cm] of f2 [1, C, f, f], mask_logits [N, 1, f_4, f_4], object_score [N, 1]."""
        return remember(self.sam, f2, mask_logits, object_score)


class MaskPrompt(nn.Module):
    """Model ``sam2_mask_prompt``: masks that somebody gave for one slice of N objects."""

    def __init__(self, sam: SAM2Base) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, f0: Tensor, f1: Tensor, f2: Tensor, given_mask: Tensor) -> tuple[Tensor, ...]:
        """Take masks UINT8 [N, 1, S, S] for what is on the slice of f0, f1 and f2 [1, ...].

        Returns
        -------
        tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
            As :class:`MaskDecoder`, with N objects, an IoU of 1 and scores of 10 or -10, and the memory [N, HW, Cm].
        """
        tokens, _ = no_prompt(self.sam, given_mask.shape[0])
        decoded, memory = given(self.sam, f2, (f0, f1), given_mask.float(), tokens)
        return *decoded.astuple(), memory


class TrackStep(nn.Module):
    """Model ``sam2_track_step``: memory attention, mask heads and memory of one slice for N objects.

    A corrected slice differs from a tracked one in its prompts only: SAM2 decodes both with their memories.
    """

    image_position: Tensor
    memory_position: Tensor

    def __init__(self, sam: SAM2Base) -> None:
        super().__init__()
        self.sam = sam
        layers = sam.memory_attention.layers
        self.self_attention = nn.ModuleList(RotaryAttention(layer.self_attn) for layer in layers)
        self.cross_attention = nn.ModuleList(RotaryAttention(layer.cross_attn_image) for layer in layers)
        image, memory = sam.image_encoder.neck.position_encoding, sam.memory_encoder.position_encoding
        self.register_buffer("image_position", _positions(sam, image), persistent=False)
        self.register_buffer("memory_position", _positions(sam, memory), persistent=False)

    def forward(  # noqa: PLR0917 - the tensors of the contract
        self,
        f0: Tensor,
        f1: Tensor,
        f2: Tensor,
        points: Tensor,
        labels: Tensor,
        mask_input: Tensor,
        mask_flag: Tensor,
        multimask_flag: Tensor,
        bank_memory: Tensor,
        bank_row: Tensor,
        bank_pointer: Tensor,
        bank_distance: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Track N objects onto a slice, or correct them there.

        Parameters
        ----------
        f0, f1, f2
            FP32 [1, ...], features of the slice.
        points, labels, mask_input, mask_flag, multimask_flag
            As :class:`MaskDecoder`, with N objects; ``mask_input`` is what was last found there, clamped here as SAM2
            clamps it. What is only tracked has one point of label -1 and the flags 0 and 1.
        bank_memory, bank_row
            FP32 [R, N, HW, Cm] and INT64 [R], row of the temporal table: 6 for a conditioning slice, distance - 1
            for a tracked one. Their order has no effect.
        bank_pointer, bank_distance
            FP32 [Q, N, C] and [Q], signed slice distance / (min(slices, 16) - 1).

        Returns
        -------
        tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
            As :class:`MaskDecoder`, with N objects, and the memory [N, HW, Cm].
        """
        image = self.conditioned(f2, bank_memory, bank_row, bank_pointer, bank_distance)
        tokens = point_tokens(self.sam, points, labels)
        dense = mask_embedding(self.sam, mask_input.clamp(-LARGEST_LOGIT, LARGEST_LOGIT), mask_flag)
        decoded = decode(self.sam, image, (f0, f1), tokens, dense, multimask_flag[:, 0] > 0)
        return *decoded.astuple(), remember(self.sam, f2, decoded.mask_logits, decoded.object_score)

    def conditioned(self, f2: Tensor, memory: Tensor, row: Tensor, pointer: Tensor, distance: Tensor) -> Tensor:
        """Return ``f2`` [1, C, f, f] with the memories of N objects in it, [N, C, f, f]; arguments as for the step."""
        keys, values = self._memories(memory, row)
        unplaced, more = self._pointers(pointer, distance)
        return self._attended(f2, keys, unplaced, torch.cat([values, more], dim=1))

    def _memories(self, memory: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [N, R * HW, Cm] of the spatial memories."""
        values = memory.transpose(0, 1)
        temporal = self.sam.maskmem_tpos_enc[:, 0, 0][row]
        keys = values + (self.memory_position + temporal[:, None, :])
        return keys.flatten(1, 2), values.flatten(1, 2)

    def _pointers(self, pointer: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [N, Q * C / Cm, Cm] of the object pointers, each split into tokens."""
        split = self.sam.hidden_dim // self.sam.mem_dim
        count, objects = pointer.shape[0], pointer.shape[1]
        values = pointer.reshape(count, objects, split, self.sam.mem_dim).transpose(0, 1).flatten(1, 2)
        position = self.sam.obj_ptr_tpos_proj(get_1d_sine_pe(distance, dim=self.sam.hidden_dim))
        keys = values + position[:, None].expand(-1, split, -1).flatten(0, 1)
        return keys, values

    def _attended(self, f2: Tensor, keys: Tensor, unplaced: Tensor, values: Tensor) -> Tensor:
        """Run the memory attention: [1, C, f, f] to [N, C, f, f]."""
        x = f2.flatten(2).transpose(1, 2) + 0.1 * self.image_position
        attention = self.sam.memory_attention
        for layer, own, cross in zip(attention.layers, self.self_attention, self.cross_attention, strict=True):
            normed = layer.norm1(x)
            # One row for all objects in the first layer: nothing has told them apart yet.
            x = x + own(normed, normed, normed)
            x = x.expand(keys.shape[0], -1, -1)
            x = x + cross(layer.norm2(x), keys, values, unplaced)
            x = x + layer.linear2(layer.activation(layer.linear1(layer.norm3(x))))
        conditioned: Tensor = attention.norm(x).transpose(1, 2).reshape(-1, *f2.shape[1:])
        return conditioned


def point_tokens(sam: SAM2Base, points: Tensor, labels: Tensor) -> Tokens:
    """Return the sparse tokens [B, P + 1, C] of points FP32 [B, P, 2] with labels INT32 [B, P], and "not a point"."""
    encoder = sam.sam_prompt_encoder
    # The encoder's own ``forward_with_coords`` writes in place, which no parser of ONNX at the GPU takes.
    places = encoder.pe_layer._pe_encoding(points / sam.image_size)
    kinds = torch.cat([e.weight for e in encoder.point_embeddings])
    label = labels.clamp(min=0).long()
    embedded = torch.where((labels >= 0)[..., None], places + kinds[label], encoder.not_a_point_embed.weight)
    last = encoder.not_a_point_embed.weight.expand(points.shape[0], 1, -1)
    counts = torch.cat([labels != PADDING, torch.ones_like(labels[:, :1], dtype=torch.bool)], dim=1)
    return Tokens(torch.cat([embedded, last], dim=1), counts)


def mask_embedding(sam: SAM2Base, mask_input: Tensor, mask_flag: Tensor) -> Tensor:
    """Return the dense embedding [B, C, f, f] of masks FP32 [B, 1, f_4, f_4], of none where the flag [B, 1] is 0."""
    encoder = sam.sam_prompt_encoder
    absent = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    return torch.where(mask_flag[..., None, None] > 0, encoder.mask_downscaling(mask_input), absent)


def no_prompt(sam: SAM2Base, objects: int) -> tuple[Tokens, Tensor]:
    """Return the sparse tokens and the dense embedding of objects that nobody prompts on a slice."""
    encoder = sam.sam_prompt_encoder
    # SAM2 decodes "no prompt" as two tokens: an empty point and the padding behind every list of points.
    empty = encoder.not_a_point_embed.weight.expand(objects, 2, -1)
    tokens = Tokens(empty, torch.ones_like(empty[..., 0], dtype=torch.bool))
    return tokens, encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)


def _positions(sam: SAM2Base, encoding: nn.Module) -> Tensor:
    """Return the positions [1, HW, C] that an encoding gives to the coarse map."""
    side = sam.sam_image_embedding_size
    positions: Tensor = encoding(torch.zeros(1, 1, side, side))
    return positions.flatten(2).transpose(1, 2)
