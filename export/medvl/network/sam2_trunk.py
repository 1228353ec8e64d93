"""SAM2's image trunk (Hiera) and neck with less arithmetic; their modules hold the weights.

The ``sam2`` package fills the windows of a map up before it projects them, projects queries, keys and values of the
filling too, and projects what attention makes of it. All that it fills with is the bias. Here tokens are projected
where they stand, and only keys and values are filled up, with that bias: the same result, to rounding, in less time.
Where a map of 16 x 16 has windows of 14, two thirds of the projected tokens are filling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sam2.modeling.backbones.hieradet import Hiera, MultiScaleAttention, MultiScaleBlock
from sam2.modeling.backbones.image_encoder import FpnNeck
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear, pad, scaled_dot_product_attention


def trunk(hiera: Hiera, images: Tensor) -> list[Tensor]:
    """Return the maps FP32 [B, C, h, w] of images FP32 [B, 3, S, S], one after each stage, finest first."""
    x = hiera.patch_embed(images)
    x = x + hiera._get_pos_embed(x.shape[1:3])
    maps = []
    for number, block in enumerate(hiera.blocks):
        x = _block(block, x)
        if number in hiera.stage_ends:
            maps.append(x.permute(0, 3, 1, 2))
    return maps


def neck(fpn: FpnNeck, maps: Sequence[Tensor]) -> list[Tensor]:
    """Return the feature pyramid of the trunk's maps, finest first.

    The package computes positions beside it, which nobody reads here: 90 MB of an export at 1024 pixels.
    """
    pyramid: list[Tensor] = []
    for level, lateral in zip(range(len(maps) - 1, -1, -1), fpn.convs, strict=True):
        own: Tensor = lateral(maps[level])
        if pyramid and level in fpn.fpn_top_down_levels:
            own = own + interpolate(pyramid[0], scale_factor=2.0, mode="nearest")
        pyramid.insert(0, own)
    return pyramid


@dataclass(frozen=True, slots=True)
class _Windows:
    """How a map of some rows and columns is cut into square windows; 0 takes it as one."""

    rows: int
    cols: int
    side: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Windows below one another, rows of one, windows beside one another, columns of one."""
        if not self.side:
            return 1, self.rows, 1, self.cols
        return -(-self.rows // self.side), self.side, -(-self.cols // self.side), self.side

    @property
    def filling(self) -> tuple[int, int]:
        """Rows and columns that are missing in the last windows."""
        down, rows, across, cols = self.shape
        return down * rows - self.rows, across * cols - self.cols

    def cut(self, x: Tensor, heads: int) -> Tensor:
        """Bring a filled map [B, rows, cols, heads * D] to [B * windows, heads, tokens, D]."""
        down, rows, across, cols = self.shape
        parts = x.reshape(-1, down, rows, across, cols, heads, x.shape[-1] // heads)
        return parts.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, heads, rows * cols, x.shape[-1] // heads)

    def join(self, x: Tensor) -> Tensor:
        """Bring [B * windows, heads, tokens, D] back to the map [B, rows, cols, heads * D], without the filling."""
        down, rows, across, cols = self.shape
        heads, width = x.shape[1], x.shape[3]
        parts = x.reshape(-1, down, across, heads, rows, cols, width).permute(0, 1, 4, 2, 5, 3, 6)
        return parts.reshape(-1, down * rows, across * cols, heads * width)[:, : self.rows, : self.cols]


def _block(block: MultiScaleBlock, x: Tensor) -> Tensor:
    """Run one block: [B, H, W, C] to [B, H, W, C'], or to half as many rows and columns at the end of a stage."""
    normed = block.norm1(x)
    if block.dim != block.dim_out:
        x = _pooled(block.pool, _project(block.proj.weight, block.proj.bias, normed))
    x = x + _attention(block.attn, normed, block.window_size)
    mixed: Tensor = block.mlp(block.norm2(x).flatten(0, 2))
    return x + mixed.reshape(x.shape)


def _attention(attention: MultiScaleAttention, x: Tensor, window: int) -> Tensor:
    heads, pool = attention.num_heads, attention.q_pool
    weights, biases = attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3)
    windows = _Windows(x.shape[1], x.shape[2], window)
    queries, own = _project(weights[0], biases[0], x), windows
    if pool is not None:
        queries = _pooled(pool, queries)
        # Windows have an even side, so that what is pooled lies in one of them.
        own = _Windows(queries.shape[1], queries.shape[2], window // 2)
    keys, values = (_filled(w, b, x, windows) for w, b in zip(weights[1:], biases[1:], strict=True))
    down, across = own.filling
    if down or across:
        queries = pad(queries, (0, 0, 0, across, 0, down))
    attended = scaled_dot_product_attention(
        own.cut(queries, heads), windows.cut(keys, heads), windows.cut(values, heads)
    )
    return _project(attention.proj.weight, attention.proj.bias, own.join(attended))


def _filled(weight: Tensor, bias: Tensor, x: Tensor, windows: _Windows) -> Tensor:
    """Return a projection of a map [B, H, W, C], filled up to whole windows with that of nothing."""
    down, across = windows.filling
    if not (down or across):
        return _project(weight, bias, x)
    return pad(_project(weight, None, x), (0, 0, 0, across, 0, down)) + bias


def _project(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """Apply a linear layer to the last axis of [B, H, W, C]: as one matrix, whose product takes the bias along."""
    return linear(x.flatten(0, 2), weight, bias).reshape(-1, *x.shape[1:3], weight.shape[0])


def _pooled(pool: nn.Module, x: Tensor) -> Tensor:
    pooled: Tensor = pool(x.permute(0, 3, 1, 2))
    return pooled.permute(0, 2, 3, 1)
