"""The MLP-Mixer projector from encoder features to vision tokens, with the names of the public Med3DVLM weights.

Facts were read in ``src/model/projector/mlp.py`` of github.com/mirthAI/Med3DVLM (``MixerLowHighHybridMLP``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medvl.contracts.checkpoint import ProjectorSpec
from medvl.contracts.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class TokenShape:
    """Tokens and channels of one stage of features."""

    tokens: int
    channels: int


class TokenMlp(nn.Module):
    """Linear layers with GELUs between; layer 0 is ``mm_projector.0``, layer i is ``mm_projector.i.1``."""

    def __init__(self, size_in: int, size: int, depth: int) -> None:
        super().__init__()
        self.mm_projector = nn.Sequential(
            nn.Linear(size_in, size),
            *(nn.Sequential(nn.GELU(), nn.Linear(size, size)) for _ in range(depth - 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., size_in] to [..., size]."""
        mapped: Tensor = self.mm_projector(x)
        return mapped


class MixerLayer(nn.Module):
    """Mix tokens, then channels; without residuals, as in the public code."""

    def __init__(self, before: TokenShape, after: TokenShape, depth: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(before.channels)
        self.ln2 = nn.LayerNorm(before.channels)
        self.mlp1 = TokenMlp(before.tokens, after.tokens, depth)
        self.mlp2 = TokenMlp(before.channels, after.channels, depth)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, tokens, channels] before to after."""
        mixed = self.mlp1(self.ln1(x).transpose(1, 2)).transpose(1, 2)
        mapped: Tensor = self.mlp2(self.ln2(mixed))
        return mapped


class Projector(nn.Module):
    """Encoder features to vision tokens (model ``projector`` of the contract).

    Parameters
    ----------
    low, high
        Shapes of the two stages of features, without regions.
    hidden_size
        Width of the language model.
    regions
        Tokens of the low level, the last ones, that are regions and pass the mixer by.

    Raises
    ------
    CheckpointError
        When both stages do not have the same number of layers, or the width cannot be halved as often.
    """

    def __init__(
        self, spec: ProjectorSpec, low: TokenShape, high: TokenShape, hidden_size: int, regions: int = 0
    ) -> None:
        super().__init__()
        layers = len(spec.low_tokens)
        if layers != len(spec.high_tokens) or hidden_size % 2**layers:
            raise CheckpointError(
                f"projector: low_tokens and high_tokens must be equally long and 2 to the power of that length must "
                f"divide {hidden_size}, found {len(spec.low_tokens)} and {len(spec.high_tokens)}."
            )
        self.low_mixer = _mixer(low, spec.low_tokens, hidden_size, spec.mlp_depth)
        self.high_mixer = _mixer(high, spec.high_tokens, hidden_size, spec.mlp_depth)
        with torch.random.fork_rng(devices=[]):  # as the encoder's regions
            self.region_mlp = _region_mlp(low.channels, hidden_size) if regions else None
        self.cells = low.tokens

    def forward(self, features_low: Tensor, features_high: Tensor) -> Tensor:
        """Project features.

        Parameters
        ----------
        features_low, features_high
            FP32 [B, T_low, C_low], regions included, and [B, T_high, C_high].

        Returns
        -------
        Tensor
            ``vision_tokens`` FP32 [B, T, H]: regions, where there are any, the low level, the high level.
        """
        low, high, before = features_low, features_high, []
        if self.region_mlp is not None:
            before.append(self.region_mlp(low[:, self.cells :]))
            low = low[:, : self.cells]
        for layer in self.low_mixer:
            low = layer(low)
        for layer in self.high_mixer:
            high = layer(high)
        return torch.cat([*before, low, high], dim=1)


def _region_mlp(channels: int, hidden_size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, 2 * hidden_size), nn.GELU(), nn.Linear(2 * hidden_size, hidden_size))


def _mixer(before: TokenShape, tokens: Sequence[int], hidden_size: int, depth: int) -> nn.ModuleList:
    """Return layers whose width doubles up to ``hidden_size``."""
    layers = nn.ModuleList()
    for i, count in enumerate(tokens):
        after = TokenShape(count, hidden_size // 2 ** (len(tokens) - 1 - i))
        layers.append(MixerLayer(before, after, depth))
        before = after
    return layers
