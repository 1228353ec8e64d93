"""Regions: the places where something small is most likely, told to the language model one by one.

A vision token covers many cells, and lesions that share one are hard to count from it. Here the cells of a finer stage
are scored for kinds of lesions, as CenterNet does (arXiv 1904.07850): one that scores higher than its neighbours is a
region, and the best of them go on, each with what it looks like, how it scores and where it lies. Where the middle of a
lesion is between cells, and how far it reaches, is read from the same cells.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, gelu, interpolate, max_pool3d

from medvl.contracts.checkpoint import RegionSpec
from medvl.network.region_choice import OUTLINE

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

_OUTLINE_CHANNELS = 64
NOTHING = ((0.0,) * OUTLINE + (_BESIDE,),)
"""The regions [1, OUTLINE + 1] of an encoder that finds none."""

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
    share: Tensor

    def __init__(self, spec: RegionSpec, fine: tuple[Cells, int], low: tuple[Cells, int]) -> None:
        super().__init__()
        (self.cells, fine_channels), (self.low_cells, low_channels), width = fine, low, spec.channels
        self.count = spec.tokens
        self.fine_norm, self.low_norm = nn.LayerNorm(fine_channels), nn.LayerNorm(low_channels)
        self.fine, self.low, self.place = (nn.Linear(n, width) for n in (fine_channels, low_channels, 3))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv3d(width, width, 3, padding=1) for _ in range(2))
        self.score = nn.Linear(width, spec.kinds)
        self.around = nn.Conv3d(width, _OUTLINE_CHANNELS, 3, padding=1)
        self.outline = nn.Linear(_OUTLINE_CHANNELS, OUTLINE)
        self.embed = nn.Linear(fine_channels + 2 * spec.kinds + 3, low_channels)
        nn.init.constant_(self.score.bias, _SELDOM)
        centres = torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in self.cells), indexing="ij")
        self.register_buffer("places", torch.stack(centres, -1).flatten(0, 2), persistent=False)
        self.register_buffer("share", 1.0 / torch.tensor(self.cells), persistent=False)

    def read(self, fine: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is read from every cell; see :meth:`forward`.

        Returns
        -------
        tuple[Tensor, Tensor]
            Logits FP32 [B, cells, kinds] of lesions whose middle is in a cell; and of a lesion whose middle is in it or
            beside it FP32 [B, cells, OUTLINE] how far that is from the cell's, and the logarithms of its half extents,
            in cells.
        """
        coarse = self.low(self._dropped(self.low_norm(low), _DROPPED_INPUT))
        coarse = interpolate(_planes(coarse, self.low_cells), size=self.cells, mode="trilinear", align_corners=False)
        seen = self.fine(self._dropped(self.fine_norm(fine), _DROPPED_INPUT))
        x = gelu(seen + coarse.flatten(2).mT + self.place(2.0 * self.places - 1.0))
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = x + gelu(conv(_planes(norm(x), self.cells)).flatten(2).mT)
        around = gelu(self.around(_planes(x, self.cells))).flatten(2).mT
        return self.score(self._dropped(x, _DROPPED)), self.outline(self._dropped(around, _DROPPED))

    def forward(self, fine: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        """Find regions.

        Parameters
        ----------
        fine, low
            FP32 [B, T, C] of both stages, tokens in C order of d, h, w.

        Returns
        -------
        tuple[Tensor, Tensor]
            The most likely first: what the language model is told of them, FP32 [B, G, C_low]; and FP32
            [B, G, OUTLINE + kinds] their middle and half extents in shares of d, h and w, and their logits.
        """
        scores, outlines = self.read(fine, low)
        best = _planes(scores.amax(-1, keepdim=True), self.cells)
        around = max_pool3d(best, _NEIGHBOURS, 1, _NEIGHBOURS // 2)
        _, at = torch.where(best == around, best, _BESIDE).flatten(1).topk(self.count, 1)
        places = self.places.expand(fine.shape[0], -1, -1)
        told = torch.cat([self.fine_norm(fine), scores, (_SHARPNESS * scores).sigmoid(), places], -1)
        middle, half = outlines[..., :3] * self.share + places, outlines[..., 3:].exp() * self.share
        found = torch.cat([middle, half, scores], -1)
        return self.embed(_rows(told, at)), _rows(found, at)

    def _dropped(self, x: Tensor, share: float) -> Tensor:
        return dropout(x, share, self.training)


def _rows(tokens: Tensor, at: Tensor) -> Tensor:
    """Return the tokens [B, T, C] at indices [B, R]."""
    return tokens.gather(1, at[..., None].expand(-1, -1, tokens.shape[-1]))


def _planes(tokens: Tensor, cells: Cells) -> Tensor:
    """Bring [B, d * h * w, C] to [B, C, d, h, w]."""
    return tokens.mT.reshape(tokens.shape[0], tokens.shape[2], *cells)
