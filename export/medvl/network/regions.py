"""Regions: the places where something small is most likely, told to the language model one by one.

A vision token covers many cells, and lesions that share one are hard to count from it. Here the cells of a finer stage
are scored for kinds of lesions, as CenterNet does (arXiv 1904.07850): one that scores higher than its neighbours is a
region, and the best of them go on, each with what it looks like, how it scores and where it lies.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, gelu, interpolate, max_pool3d

from medvl.contracts.checkpoint import RegionSpec

_NEIGHBOURS = 3
"""Cells along a side among which a region is the best."""
_BESIDE = -30.0
"""Logit of cells that are not."""
_SELDOM = -4.5
"""Logit of every cell before anything is learnt."""
_SHARPNESS = 2.0
"""Of what is told of a score beside its logit: hardly more than whether a lesion is there."""
_DROPPED_INPUT, _DROPPED = 0.1, 0.2
"""Shares of what is left out in training."""

Cells = tuple[int, int, int]


class Regions(nn.Module):
    """Finds regions in the cells of two stages.

    Parameters
    ----------
    spec
        How many, of how many kinds.
    fine, low
        Cells (d, h, w) and channels of the stage before the low level, and of the low level.
    """

    places: Tensor

    def __init__(self, spec: RegionSpec, fine: tuple[Cells, int], low: tuple[Cells, int]) -> None:
        super().__init__()
        (self.cells, fine_channels), (self.low_cells, low_channels), width = fine, low, spec.channels
        self.count = spec.tokens
        self.fine_norm, self.low_norm = nn.LayerNorm(fine_channels), nn.LayerNorm(low_channels)
        self.fine, self.low, self.place = (nn.Linear(n, width) for n in (fine_channels, low_channels, 3))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv3d(width, width, 3, padding=1) for _ in range(2))
        self.score = nn.Linear(width, spec.kinds)
        self.embed = nn.Linear(fine_channels + 2 * spec.kinds + 3, low_channels)
        nn.init.constant_(self.score.bias, _SELDOM)
        centres = torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in self.cells), indexing="ij")
        self.register_buffer("places", torch.stack(centres, -1).flatten(0, 2), persistent=False)

    def scores(self, fine: Tensor, low: Tensor) -> Tensor:
        """Return the logits FP32 [B, cells, kinds] of lesions whose middle is in a cell; see :meth:`forward`."""
        coarse = self.low(self._dropped(self.low_norm(low), _DROPPED_INPUT))
        coarse = interpolate(_planes(coarse, self.low_cells), size=self.cells, mode="trilinear", align_corners=False)
        seen = self.fine(self._dropped(self.fine_norm(fine), _DROPPED_INPUT))
        x = gelu(seen + coarse.flatten(2).mT + self.place(2.0 * self.places - 1.0))
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = x + gelu(conv(_planes(norm(x), self.cells)).flatten(2).mT)
        scores: Tensor = self.score(self._dropped(x, _DROPPED))
        return scores

    def forward(self, fine: Tensor, low: Tensor) -> Tensor:
        """Find regions.

        Parameters
        ----------
        fine, low
            FP32 [B, T, C] of both stages, tokens in C order of d, h, w.

        Returns
        -------
        Tensor
            FP32 [B, R, C_low], the most likely first.
        """
        scores = self.scores(fine, low)
        best = _planes(scores.amax(-1, keepdim=True), self.cells)
        around = max_pool3d(best, _NEIGHBOURS, 1, _NEIGHBOURS // 2)
        _, at = torch.where(best == around, best, _BESIDE).flatten(1).topk(self.count, 1)
        places = self.places.expand(fine.shape[0], -1, -1)
        told = torch.cat([self.fine_norm(fine), scores, (_SHARPNESS * scores).sigmoid(), places], -1)
        regions: Tensor = self.embed(told.gather(1, at[..., None].expand(-1, -1, told.shape[-1])))
        return regions

    def _dropped(self, x: Tensor, share: float) -> Tensor:
        return dropout(x, share, self.training)


def _planes(tokens: Tensor, cells: Cells) -> Tensor:
    """Bring [B, d * h * w, C] to [B, C, d, h, w]."""
    return tokens.mT.reshape(tokens.shape[0], tokens.shape[2], *cells)
