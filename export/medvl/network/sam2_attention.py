"""SAM2's attention written for export: real-valued RoPE, and tokens that can be masked out.

The modules of the ``sam2`` package hold the weights; here is only the arithmetic that their ``forward`` cannot express.
"""

from __future__ import annotations

import torch
from sam2.modeling.sam.transformer import Attention, RoPEAttention, TwoWayAttentionBlock, TwoWayTransformer
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class RotaryAttention(nn.Module):
    """Single-sequence attention of ``RoPEAttention`` in real arithmetic; matches the complex form exactly."""

    cos: Tensor
    sin: Tensor

    def __init__(self, attention: RoPEAttention) -> None:
        super().__init__()
        self.attention = attention
        self.register_buffer("cos", attention.freqs_cis.real.float().clone(), persistent=False)
        self.register_buffer("sin", attention.freqs_cis.imag.float().clone(), persistent=False)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, k_unrotated: Tensor | None = None, v_unrotated: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Parameters
        ----------
        q
            FP32 [N, HW, C].
        k, v
            FP32 [N, R * HW, Ck]: R maps, each of which is rotated as ``q`` is.
        k_unrotated, v_unrotated
            FP32 [N, K, Ck]: keys without a place on the map.
        """
        a = self.attention
        queries = self._rotate(_heads(a.q_proj(q), a.num_heads))
        keys, values = self._rotate(_heads(a.k_proj(k), a.num_heads)), _heads(a.v_proj(v), a.num_heads)
        if k_unrotated is not None:
            keys = torch.cat([keys, _heads(a.k_proj(k_unrotated), a.num_heads)], dim=2)
            values = torch.cat([values, _heads(a.v_proj(v_unrotated), a.num_heads)], dim=2)
        return _joined(a, scaled_dot_product_attention(queries, keys, values))

    def _rotate(self, x: Tensor) -> Tensor:
        """Rotate pairs of channels of [N, heads, R * HW, D] by the angles of their position."""
        objects, heads, length, width = x.shape
        pairs = x.reshape(objects, heads, -1, self.cos.shape[0], width // 2, 2)
        a, b = pairs[..., 0], pairs[..., 1]
        rotated = torch.stack([a * self.cos - b * self.sin, a * self.sin + b * self.cos], dim=-1)
        return rotated.reshape(objects, heads, length, width)


def two_way(
    transformer: TwoWayTransformer, image: Tensor, image_pe: Tensor, tokens: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor]:
    """Run SAM's two-way transformer with some tokens left out.

    Parameters
    ----------
    image, image_pe
        FP32 [B, C, f, f] and [1, C, f, f].
    tokens
        FP32 [B, K, C].
    counts
        BOOL [B, K], False where a token is to have no effect. The rest of the result is then that without the token;
        its own row of the result means nothing.

    Returns
    -------
    tuple[Tensor, Tensor]
        Tokens [B, K, C] and image [B, f * f, C].
    """
    keys, key_pe = image.flatten(2).transpose(1, 2), image_pe.flatten(2).transpose(1, 2)
    mask = counts[:, None, None, :]
    queries = tokens
    for block in transformer.layers:
        queries, keys = _two_way_block(block, queries, keys, tokens, key_pe, mask)
    attended = _attend(transformer.final_attn_token_to_image, queries + tokens, keys + key_pe, keys)
    return transformer.norm_final_attn(queries + attended), keys


def _two_way_block(  # noqa: PLR0917 - as in the package
    block: TwoWayAttentionBlock, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    if block.skip_first_layer_pe:
        queries = _attend(block.self_attn, queries, queries, queries, mask)
    else:
        q = queries + query_pe
        queries = queries + _attend(block.self_attn, q, q, queries, mask)
    queries = block.norm1(queries)
    queries = queries + _attend(block.cross_attn_token_to_image, queries + query_pe, keys + key_pe, keys)
    queries = block.norm2(queries)
    queries = block.norm3(queries + block.mlp(queries))
    attended = _attend(block.cross_attn_image_to_token, keys + key_pe, queries + query_pe, queries, mask)
    return queries, block.norm4(keys + attended)


def _attend(attention: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    heads = attention.num_heads
    q, k, v = (_heads(project(x), heads) for project, x in _projections(attention, q, k, v))
    return _joined(attention, scaled_dot_product_attention(q, k, v, attn_mask=mask))


def _projections(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> tuple[tuple[nn.Module, Tensor], ...]:
    return (attention.q_proj, q), (attention.k_proj, k), (attention.v_proj, v)


def _heads(x: Tensor, heads: int) -> Tensor:
    """Bring [B, K, C] to [B, heads, K, C / heads]."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _joined(attention: Attention, x: Tensor) -> Tensor:
    projected: Tensor = attention.out_proj(x.transpose(1, 2).flatten(2))
    return projected
