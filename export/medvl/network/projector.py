"""The MLP-Mixer projector from encoder features to vision tokens, with the names of the public Med3DVLM weights.

Facts were read in ``src/model/projector/mlp.py`` of github.com/mirthAI/Med3DVLM (``MixerLowHighHybridMLP``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medvl.contracts.checkpoint import ProjectorSpec, ToldSpec
from medvl.contracts.errors import CheckpointError
from medvl.network.region_choice import OUTLINE

_LITTLE = 1e-6
"""Of what lesions change, squared, before anything is learnt."""


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


class Told(nn.Module):
    """Says in the vision tokens of a region's place, one of each level, what the encoder has found there.

    What a lesion of a kind changes in both tokens is added as far as a region is likely to be one and they do not show
    one already, and taken away where there are only doubtful ones.

    Parameters
    ----------
    spec
        How far, of which kinds, and which cells the tokens of the two levels stand for.
    hidden_size
        Width of the language model.
    """

    def __init__(self, spec: ToldSpec, hidden_size: int) -> None:
        super().__init__()
        self.spec = spec
        self.low, self.high = (nn.Parameter(torch.zeros(len(spec.kinds), hidden_size)) for _ in range(2))
        self.read = nn.Parameter(torch.zeros(len(spec.kinds), 3))

    def forward(self, regions: Tensor, tokens: Tensor) -> Tensor:
        """Return what is added to vision tokens FP32 [B, T, H]; ``regions`` FP32 [B, G, n_region]."""
        places, likelihood = regions[..., :3], regions[..., OUTLINE:][..., self.spec.kinds].sigmoid()
        low, high = _at(places, self.spec.low_cells), _at(places, self.spec.high_cells)
        count = low.shape[-1]
        own = torch.stack([low @ tokens[:, :count], high @ tokens[:, count:]], -2)
        missing = 1.0 - self.shown(self.alike(own)).clamp(0.0, 1.0)
        levels = ((low, self.low), (high, self.high))
        return torch.cat([self.how_far(likelihood, missing, at) @ said for at, said in levels], 1)

    def how_far(self, likelihood: Tensor, missing: Tensor, at: Tensor) -> Tensor:
        """Return how much of what lesions change is added to tokens, FP32 [B, T, kinds]; negative is taken away.

        Parameters
        ----------
        likelihood
            FP32 [B, G, kinds] of regions.
        missing
            FP32 [B, G, kinds], how much of one the tokens of their place do not show.
        at
            1 FP32 [B, G, T] in the token of their place.
        """
        spec = self.spec
        sure = ((likelihood - spec.unsure) / (spec.sure - spec.unsure)).clamp(0.0, 1.0)
        doubtful = (likelihood > spec.doubtful[0]) & (likelihood < spec.doubtful[1])
        doubted = (at.mT @ doubtful.float()).clamp(max=1.0) * (1.0 - at.mT @ sure).clamp(min=0.0)
        return at.mT @ (sure * missing) - spec.taken_away * doubted

    def shown(self, alike: Tensor) -> Tensor:
        """Return how much of a lesion the tokens of a place show, FP32 [..., kinds]; see :meth:`alike`."""
        weights, bias = self.read[:, :2], self.read[:, 2]
        return (alike * weights).sum(-1) + bias

    def alike(self, tokens: Tensor) -> Tensor:
        """Return how many times what lesions change is in both tokens FP32 [..., 2, H] of a place: [..., kinds, 2]."""
        said = torch.stack([self.low, self.high], 1)
        return (tokens.unsqueeze(-3) * said).sum(-1) / said.square().sum(-1).clamp(min=_LITTLE)


class Projector(nn.Module):
    """Encoder features and regions to vision tokens (model ``projector`` of the contract).

    Parameters
    ----------
    low, high
        Shapes of the two stages of features.
    hidden_size
        Width of the language model.

    Raises
    ------
    CheckpointError
        When both stages do not have the same number of layers, the width cannot be halved as often, or the cells that
        regions are told in are not as many as tokens.
    """

    def __init__(self, spec: ProjectorSpec, low: TokenShape, high: TokenShape, hidden_size: int) -> None:
        super().__init__()
        layers = len(spec.low_tokens)
        if layers != len(spec.high_tokens) or hidden_size % 2**layers:
            raise CheckpointError(
                f"projector: low_tokens and high_tokens must be equally long and 2 to the power of that length must "
                f"divide {hidden_size}, found {len(spec.low_tokens)} and {len(spec.high_tokens)}."
            )
        self.low_mixer = _mixer(low, spec.low_tokens, hidden_size, spec.mlp_depth)
        self.high_mixer = _mixer(high, spec.high_tokens, hidden_size, spec.mlp_depth)
        self.told = Told(spec.told, hidden_size) if spec.told else None

    def forward(self, features_low: Tensor, features_high: Tensor, regions: Tensor) -> Tensor:
        """Project features.

        Parameters
        ----------
        features_low, features_high
            FP32 [B, T_low, C_low] and [B, T_high, C_high].
        regions
            FP32 [B, G, n_region], see :meth:`medvl.network.regions.Regions.forward`.

        Returns
        -------
        Tensor
            ``vision_tokens`` FP32 [B, T, H]: the low level, the high level.
        """
        tokens = self.seen(features_low, features_high)
        return tokens if self.told is None else tokens + self.told(regions, tokens)

    def seen(self, features_low: Tensor, features_high: Tensor) -> Tensor:
        """Return the vision tokens FP32 [B, T, H] without what regions tell; see :meth:`forward`."""
        low, high = features_low, features_high
        for layer in self.low_mixer:
            low = layer(low)
        for layer in self.high_mixer:
            high = layer(high)
        return torch.cat([low, high], dim=1)


def cell_at(places: Tensor, cells: tuple[int, int, int]) -> Tensor:
    """Return which of the cells along d, h, w places FP32 [..., 3], in shares of each, lie in; INT64 [...]."""
    counts = torch.tensor(cells, device=places.device)
    d, h, w = (places * counts).long().clamp(min=0).minimum(counts - 1).unbind(-1)
    return (d * cells[1] + h) * cells[2] + w


def _at(places: Tensor, cells: tuple[int, int, int]) -> Tensor:
    """Return 1 FP32 [B, G, T] in the cells of places [B, G, 3]."""
    which = torch.arange(math.prod(cells), device=places.device)
    return (cell_at(places, cells)[..., None] == which).float()


def _mixer(before: TokenShape, tokens: Sequence[int], hidden_size: int, depth: int) -> nn.ModuleList:
    """Return layers whose width doubles up to ``hidden_size``."""
    layers = nn.ModuleList()
    for i, count in enumerate(tokens):
        after = TokenShape(count, hidden_size // 2 ** (len(tokens) - 1 - i))
        layers.append(MixerLayer(before, after, depth))
        before = after
    return layers
