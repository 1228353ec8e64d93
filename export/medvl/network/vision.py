"""The 3D vision encoder: DCFormer, with the parameter names and the arithmetic of the public Med3DVLM weights.

A state dict of Med3DVLM's DCFormer loads unchanged. Facts (names, kernel sizes, axis order, strides) were read in
``src/model/encoder/dcformer.py`` of github.com/mirthAI/Med3DVLM; the network is described in arXiv 2502.05091.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv3d

from medvl.contracts.checkpoint import VisionSpec
from medvl.contracts.errors import CheckpointError
from medvl.network.regions import CUBE, NOTHING, Regions

STEM_KERNEL = 7
STEM_STRIDE = 4
LAYER_SCALE = 1e-6
"""Initial factor of a block's residual branch in the public training code."""


class NormedConv(nn.Sequential):
    """A convolution, its batch norm and what follows.

    Where gradients are wanted and statistics stand still, the norm is folded into the convolution: the same numbers,
    and no pass over the volume for the gradients of the norm, which took a CPU a quarter of a step.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, *, *, *] to [B, C, *, *, *]."""
        conv, norm, *rest = self
        assert isinstance(conv, nn.Conv3d)
        assert isinstance(norm, nn.BatchNorm3d)
        x = norm(conv(x)) if norm.training or not torch.is_grad_enabled() else _folded(conv, norm, x)
        for module in rest:
            x = module(x)
        return x


class DecomposedConv(nn.Module):
    """Sum of three convolutions, one along each spatial axis.

    Parameters
    ----------
    groups
        Equal to the channels for a depthwise convolution.
    activate
        Whether a GELU follows the sum.
    """

    def __init__(
        self, channels_in: int, channels: int, kernel: int, *, stride: int = 1, groups: int = 1, activate: bool = False
    ) -> None:
        super().__init__()
        self.c1, self.c2, self.c3 = (
            NormedConv(
                nn.Conv3d(
                    channels_in,
                    channels,
                    kernel_size=_along(axis, kernel, 1),
                    padding=_along(axis, kernel // 2, 0),
                    stride=stride,
                    groups=groups,
                ),
                nn.BatchNorm3d(channels),
            )
            for axis in range(3)
        )
        self.act = nn.GELU() if activate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, *, *, *] to [B, C, *, *, *], axes as in :class:`DCFormer`."""
        summed: Tensor = self.act(self.c1(x) + self.c2(x) + self.c3(x))
        return summed


class ChannelMlp(nn.Module):
    """Two linear layers on the channels; positions 0 and 3 of ``mlp`` hold the weights, as in the public code."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Identity(),
            nn.Linear(4 * channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., C] to [..., C]."""
        mapped: Tensor = self.mlp(x)
        return mapped


class ConvBlock(nn.Module):
    """Optional halving of every axis, then a decomposed depthwise convolution and an MLP on a residual branch."""

    def __init__(self, channels_in: int, channels: int, kernel: int, *, downsample: bool) -> None:
        super().__init__()
        self.downsample = downsample
        if downsample:
            self.pool = nn.MaxPool3d(3, 2, 1)
            self.proj = nn.Conv3d(channels_in, channels, 1, bias=False)
        self.dwconv = DecomposedConv(channels, channels, kernel, groups=channels)
        self.mlp = ChannelMlp(channels)
        self.scale = nn.Parameter(torch.full((channels,), LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, *, *, *] to [B, C, *, *, *]."""
        if self.downsample:
            x = self.proj(self.pool(x))
        branch = self.scale * self.mlp(self.dwconv(x).permute(0, 2, 3, 4, 1))
        summed: Tensor = x + branch.permute(0, 4, 1, 2, 3)
        return summed


class DCFormer(nn.Module):
    """Stem ``s0`` (stride 4) and stages ``s1`` to ``s4`` (stride 2 each), axes B, C, rows, columns, slices."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.last = max(spec.feature_stages)
        widths = [1] + spec.depths[0] * [spec.dims[0]]
        self.s0 = nn.Sequential(*(_stem(before, after, spec.stem) for before, after in pairwise(widths)))
        for stage in range(1, 5):
            self.add_module(f"s{stage}", _stage(spec, stage))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the output of the stem and of every stage up to the last one that is used."""
        outputs = []
        for stage in range(self.last + 1):
            x = self.get_submodule(f"s{stage}")(x)
            outputs.append(x)
        return outputs


class VisionEncoder(nn.Module):
    """CT volume to the features of two stages and to regions (model ``vision_encoder`` of the contract).

    Raises
    ------
    CheckpointError
        When there are to be more regions than cells to find them in.
    """

    nothing: Tensor

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.stages = spec.feature_stages
        self.encoder = DCFormer(spec)
        self.regions: Regions | None = None
        if spec.regions:
            fine, low = ((cells_of(spec, stage), spec.dims[stage]) for stage in (self.stages[0] - 1, self.stages[0]))
            stride, cells = STEM_STRIDE * 2 ** (self.stages[0] - 1), math.prod(fine[0])
            looks = spec.regions.looks
            wanted = max([spec.regions.count, *(look.likely + look.spots for look in looks)])
            if wanted > cells:
                raise CheckpointError(f"vision.regions: {wanted} cannot be found in {cells} cells.")
            if looks and stride > CUBE:
                raise CheckpointError(f"vision.regions.looks: cells of {stride} voxels are wider than {CUBE}.")
            # What an untrained checkpoint draws for everything else is the same with regions and without.
            with torch.random.fork_rng(devices=[]):
                self.regions = Regions(spec.regions, fine, low, stride)
        self.fine_cells = cells_of(spec, self.stages[0] - 1)
        self.register_buffer("nothing", torch.tensor(NOTHING), persistent=False)

    def forward(self, volume_hu: Tensor, window_hu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode volumes.

        Parameters
        ----------
        volume_hu
            FP16 or FP32 [B, d, h, w], HU, axes superior, posterior, left.
        window_hu
            FP32 [B, 2], the HU that become 0 and 1; values outside are clipped.

        Returns
        -------
        tuple[Tensor, Tensor, Tensor]
            ``features_low`` FP32 [B, T_low, C_low] and ``features_high`` FP32 [B, T_high, C_high], tokens in C order
            of d, h, w; and ``regions`` FP32 [B, G, n_region], see :meth:`medvl.network.regions.Regions.forward`.
        """
        scaled = scaled_to(volume_hu, window_hu)
        levels = self.levels(scaled)
        low, high = (levels[stage] for stage in self.stages)
        if self.regions is None:
            return low, high, self.nothing.expand(low.shape[0], -1, -1)
        return low, high, self.regions(levels[self.stages[0] - 1], low, scaled)

    def read_regions(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return :meth:`medvl.network.regions.Regions.read` of the outputs of the stem and of every stage."""
        assert self.regions is not None
        return self.regions.read(*levels[self.stages[0] - 1 : self.stages[0] + 1])

    def levels(self, scaled: Tensor) -> list[Tensor]:
        """Return the tokens of the stem and of every stage up to the last one that goes on; see :func:`scaled_to`."""
        return [_tokens(output) for output in self.encoder(scaled.permute(0, 2, 3, 1).unsqueeze(1))]


def scaled_to(volume_hu: Tensor, window_hu: Tensor) -> Tensor:
    """Return volumes FP32 [B, d, h, w] from 0 to 1; see :meth:`VisionEncoder.forward`."""
    lower, upper = (window_hu[:, i].float().reshape(-1, 1, 1, 1) for i in (0, 1))
    return ((volume_hu.float() - lower) / (upper - lower)).clamp(0.0, 1.0)


def cells_of(spec: VisionSpec, stage: int) -> tuple[int, int, int]:
    """Return how many cells the output of a stage has along d, h and w; stage 0 is the stem."""
    stride = STEM_STRIDE * 2**stage
    d, h, w = (-(-length // stride) for length in spec.grid)
    return d, h, w


def _folded(conv: nn.Conv3d, norm: nn.BatchNorm3d, x: Tensor) -> Tensor:
    """Return what a norm makes of a convolution's output, by one convolution."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert conv.bias is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    weight, bias = conv.weight * scale.reshape(-1, 1, 1, 1, 1), (conv.bias - norm.running_mean) * scale + norm.bias
    # One channel in: in BF16, the gradients of the first convolution took a CPU six times as long.
    exact = x.device.type == "cpu" and conv.in_channels == conv.groups
    with torch.autocast("cpu", enabled=False) if exact else nullcontext():
        return conv3d(x.float() if exact else x, weight, bias, conv.stride, conv.padding, groups=conv.groups)


def _along(axis: int, value: int, other: int) -> tuple[int, int, int]:
    first, second, third = (value if i == axis else other for i in range(3))
    return first, second, third


def _stem(channels_in: int, channels: int, kind: Literal["decomposed", "full"]) -> nn.Sequential:
    first = (
        DecomposedConv(channels_in, channels, STEM_KERNEL, stride=STEM_STRIDE, activate=True)
        if kind == "decomposed"
        else NormedConv(
            nn.Conv3d(channels_in, channels, STEM_KERNEL, stride=STEM_STRIDE, padding=STEM_KERNEL // 2),
            nn.BatchNorm3d(channels),
            nn.GELU(),
        )
    )
    return nn.Sequential(
        first,
        *(DecomposedConv(channels, channels, 3, activate=True) for _ in range(3)),
    )


def _stage(spec: VisionSpec, stage: int) -> nn.Sequential:
    channels, kernel = spec.dims[stage], spec.kernel_sizes[stage - 1]
    return nn.Sequential(
        *(
            ConvBlock(spec.dims[stage - 1] if i == 0 else channels, channels, kernel, downsample=i == 0)
            for i in range(spec.depths[stage])
        )
    )


def _tokens(features: Tensor) -> Tensor:
    """Bring [B, C, h, w, d] to [B, d * h * w, C]."""
    return features.permute(0, 4, 2, 3, 1).flatten(1, 3)
