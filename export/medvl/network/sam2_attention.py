"""SAM2's attention written for export: real-valued RoPE, and tokens that can be masked out.

The modules of the ``sam2`` package hold the weights; here is only the arithmetic that their ``forward`` cannot express.
"""

from __future__ import annotations

import torch
from sam2.modeling.sam.transformer import Attention, RoPEAttention, TwoWayAttentionBlock, TwoWayTransformer
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention


class RotaryAttention(nn.Module):
    """Attention of ``RoPEAttention`` in real arithmetic and with fewer products: the same result, to rounding.

    It has one head, so that values need not be projected before they are summed, where they are narrowest and R times
    as many: both projections behind the sum are one matrix, and weights that sum to one pass a bias on. What rotation
    turns channels into is a product of its own, with rows of the weights swapped.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, attention: RoPEAttention) -> None:
        super().__init__()
        self.attention = attention
        for name, part in (("cos", attention.freqs_cis.real), ("sin", attention.freqs_cis.imag)):
            self.register_buffer(name, part.float().repeat_interleave(2, dim=1), persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, k_unplaced: Tensor | None = None) -> Tensor:
        """Attend.

        Parameters
        ----------
        q
            FP32 [N, HW, C].
        k
            FP32 [N, R * HW, Ck]: R maps, each of which is rotated as ``q`` is.
        v
            FP32 [N, R * HW + K, Ck].
        k_unplaced
            FP32 [N, K, Ck]: keys without a place on the map.
        """
        a = self.attention
        keys = self._rotated(a.k_proj, k)
        if k_unplaced is not None:
            keys = torch.cat([keys, _project(k_unplaced, a.k_proj.weight, a.k_proj.bias)], dim=1)
        attended = scaled_dot_product_attention(self._rotated(a.q_proj, q)[:, None], keys[:, None], v[:, None])
        weight = a.out_proj.weight @ a.v_proj.weight
        return _project(attended[:, 0], weight, a.out_proj.weight @ a.v_proj.bias + a.out_proj.bias)

    def _rotated(self, projection: nn.Linear, x: Tensor) -> Tensor:
        """Project R maps [N, R * HW, Ck] and rotate pairs of channels by the angles of their place: [N, R * HW, C]."""
        places, width = self.cos.shape
        both = _project(x, *(torch.cat([own, _turned(own)]) for own in (projection.weight, projection.bias)))
        own, turned = both.reshape(-1, places, 2 * width).chunk(2, dim=2)
        rotated: Tensor = own * self.cos + turned * self.sin
        return rotated.reshape(x.shape[0], -1, width)


def _turned(rows: Tensor) -> Tensor:
    """Return rows [C, ...] with each pair (a, b) as (-b, a)."""
    first, second = rows[0::2], rows[1::2]
    return torch.stack([-second, first], dim=1).flatten(0, 1)


def _project(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply a linear layer to [N, K, C]: as one matrix, whose product takes the bias along."""
    return linear(x.flatten(0, 1), weight, bias).reshape(x.shape[0], -1, weight.shape[0])


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
