"""Regions: the places where something small is most likely, found one by one.

A vision token covers many cells, and lesions that share one are hard to count from it. Here the cells of a finer stage
are scored for kinds of lesions, as CenterNet does (arXiv 1904.07850), and where the middle of a lesion is and how far
it reaches is read from the same cells. What is too small for a cell, or differs too little from what lies about it, is
looked at once more in the voxels, as computer-aided detection does it: few candidates, a small network on a cube around
each. The cells that score highest and see a middle of their own are regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d, dropout, gelu, interpolate, max_pool3d, pad, softplus

from medvl.contracts.checkpoint import LookSpec, RegionSpec
from medvl.network.region_choice import NO_REGION_LOGIT, OUTLINE

SELDOM_LOGIT = -4.5
"""Logit of what few cells hold, before anything is learnt: with none, the first losses are of 20,000 and more."""
_DROPPED_INPUT, _DROPPED = 0.1, 0.2
"""Shares of what is left out in training."""
_AMONG = 64
"""Cells among which regions are sought: those that score highest."""
_APART = 0.2
"""Cells, beside half extents, by which two middles differ at least."""

_OUTLINE_CHANNELS = 64
NOTHING = ((0.0,) * OUTLINE + (NO_REGION_LOGIT,),)
"""The regions [1, OUTLINE + 1] of an encoder that finds none."""

_KERNELS, _STRIDES = (4, 3, 3, 3, 3), (2, 1, 1, 1, 1)
"""Of the convolutions of a look, none of which is padded."""
CUBE = 20
"""Voxels along a side of what a look sees; they leave one place behind the last convolution."""
_DOUBTFUL, _LESS = -2.4, 0.1
"""Logit above which one that a look turns down still tells, and how far: what cells find likely, tokens show, too."""
_BARRED = -1e4
"""Added to what is left out of a sum of exponentials."""
_SPOT = (1, 2, 2)
"""Voxels of a spot along d, h and w."""
_SURROUNDINGS, _DARK = 5, 0.42
"""Of a spot: how many spots they are wide, and how bright on average at most, lung being 0.1 and tissue 0.75."""

Cells = tuple[int, int, int]


class Look(nn.Module):
    """Scores some kinds of lesions once more, from the voxels of the cells that are likely to hold one.

    Parameters
    ----------
    spec
        What is looked for, where, and how wide the network is.
    cells
        Along d, h, w.
    stride
        Voxels along a side of a cell.
    """

    places: Tensor
    corners: Tensor
    offsets: Tensor

    def __init__(self, spec: LookSpec, cells: Cells, stride: int) -> None:
        super().__init__()
        self.kinds, self.likely, self.spots, self.window = spec.kinds, spec.likely, spec.spots, spec.window
        self.cells, self.stride = cells, stride
        widths = (2, *spec.channels)
        self.convs = nn.ModuleList(
            nn.Conv3d(before, after, kernel, by)
            for (before, after), kernel, by in zip(pairwise(widths), _KERNELS, _STRIDES, strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for width in spec.channels[:-1])
        self.score = nn.Linear(widths[-1], 1)
        self.whether, self.which = nn.Linear(2, 1), nn.Linear(len(spec.kinds) + 3, len(spec.kinds))
        nn.init.constant_(self.score.bias, SELDOM_LOGIT)
        self._leave_scores()
        padded = tuple(n * stride + CUBE - stride for n in cells)
        self.register_buffer("places", places_of(cells), persistent=False)
        self.register_buffer("corners", _numbers(cells, padded, stride), persistent=False)
        self.register_buffer("offsets", _numbers((CUBE,) * 3, padded, 1), persistent=False)

    @torch.no_grad()
    def _leave_scores(self) -> None:
        """Begin with what the scores of the cells tell, whatever is seen."""
        self.whether.weight.copy_(torch.tensor([[0.0, 1.0]]))
        self.which.weight.copy_(torch.eye(*self.which.weight.shape))
        self.whether.bias.zero_()
        self.which.bias.zero_()

    def forward(self, scores: Tensor, volume: Tensor) -> Tensor:
        """Return the logits FP32 [B, cells, own kinds] of :meth:`Regions.read` anew.

        Parameters
        ----------
        scores
            FP32 [B, cells, kinds].
        volume
            FP32 [B, d, h, w] from 0 to 1.
        """
        at = self.candidates(scores, volume)
        own = _rows(scores, at)
        anew = self.weighed(self.seen(self.cubes(volume, at)), own, at).maximum(self.doubtful(own))
        passed_by = torch.full_like(scores[..., self.kinds], NO_REGION_LOGIT)
        return passed_by.scatter(1, at[..., None].expand_as(anew), anew)

    def candidates(self, scores: Tensor, volume: Tensor) -> Tensor:
        """Return the cells INT64 [B, likely + spots] to look at: likely ones, then those whose spots stand out."""
        likely = scores[..., self.kinds].amax(-1)
        _, first = likely.topk(self.likely, 1)
        if not self.spots:
            return first
        bright = spots(volume, self.cells, self.stride)
        _, more = bright.scatter(1, first, -1.0).topk(self.spots, 1)
        return torch.cat([first, more], 1)

    def cubes(self, volume: Tensor, at: Tensor) -> Tensor:
        """Return the voxels FP32 [B, n, CUBE, CUBE, CUBE] about cells INT64 [B, n]; air where the volume ends."""
        margin = (CUBE - self.stride) // 2
        ends = [
            n * self.stride + CUBE - self.stride - margin - s for n, s in zip(self.cells, volume.shape[1:], strict=True)
        ]
        around = pad(volume, [v for end in reversed(ends) for v in (margin, end)]).flatten(1)
        which = (self.corners[at][..., None] + self.offsets).flatten(1)
        return around.gather(1, which).reshape(*at.shape, CUBE, CUBE, CUBE)

    def seen(self, cubes: Tensor) -> Tensor:
        """Return the logits FP32 [B, n, 1] of a lesion's middle in middle cells of cubes [B, n, CUBE, CUBE, CUBE].

        Their voxels are seen twice, as they are and within the window.
        """
        lower, upper = self.window
        plain = cubes.flatten(0, 1)
        x = torch.stack([plain, ((plain - lower) / (upper - lower)).clamp(0.0, 1.0)], 1)
        for conv, norm in zip(self.convs, self.norms, strict=False):
            x = gelu(norm(conv(x)))
        x = gelu(self.convs[-1](x)).flatten(1)
        seen: Tensor = self.score(dropout(x, _DROPPED, self.training))
        return seen.reshape(*cubes.shape[:2], 1)

    def weighed(self, seen: Tensor, scores: Tensor, at: Tensor) -> Tensor:
        """Return the logits FP32 [B, n, own kinds] of cells INT64 [B, n].

        What is seen tells, with how cells have scored FP32 [B, n, kinds], whether there is a lesion. Both sides look
        alike in a cube: which kind it is, these scores and the place tell. The likelihood of a kind is their product.
        """
        own = scores[..., self.kinds]
        whether: Tensor = self.whether(torch.cat([seen, own.logsumexp(-1, keepdim=True)], -1))
        which: Tensor = self.which(torch.cat([own, 2.0 * self.places[at] - 1.0], -1))
        kind = which.log_softmax(-1)
        others = (kind[..., None, :] + _BARRED * torch.eye(len(self.kinds), device=kind.device)).logsumexp(-1)
        # The logit of the product of two likelihoods, whose exponentials are never written.
        return kind + whether - softplus(others + whether)

    def doubtful(self, scores: Tensor) -> Tensor:
        """Return what the logits FP32 [B, n, own kinds] of cells are at least, whatever a look sees; in their order."""
        own = scores[..., self.kinds]
        return own.minimum(_DOUBTFUL + _LESS * (own - _DOUBTFUL))


class Regions(nn.Module):
    """Finds regions in the cells of two stages, and in voxels.

    Parameters
    ----------
    spec
        How many, of how many kinds.
    fine, low
        Cells (d, h, w) and channels of the stage before the low level, and of the low level.
    stride
        Voxels along a side of a cell of the former.
    """

    places: Tensor
    share: Tensor

    def __init__(self, spec: RegionSpec, fine: tuple[Cells, int], low: tuple[Cells, int], stride: int) -> None:
        super().__init__()
        (self.cells, fine_channels), (self.low_cells, low_channels), width = fine, low, spec.channels
        self.count = spec.count
        self.fine_norm, self.low_norm = nn.LayerNorm(fine_channels), nn.LayerNorm(low_channels)
        self.fine, self.low, self.place = (nn.Linear(n, width) for n in (fine_channels, low_channels, 3))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv3d(width, width, 3, padding=1) for _ in range(2))
        self.score = nn.Linear(width, spec.kinds)
        self.around = nn.Conv3d(width, _OUTLINE_CHANNELS, 3, padding=1)
        self.outline = nn.Linear(_OUTLINE_CHANNELS, OUTLINE)
        self.looks = nn.ModuleList(Look(look, self.cells, stride) for look in spec.looks)
        nn.init.constant_(self.score.bias, SELDOM_LOGIT)
        self.register_buffer("places", places_of(self.cells), persistent=False)
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

    def forward(self, fine: Tensor, low: Tensor, volume: Tensor) -> Tensor:
        """Find regions.

        Parameters
        ----------
        fine, low
            FP32 [B, T, C] of both stages, tokens in C order of d, h, w.
        volume
            FP32 [B, d, h, w] from 0 to 1.

        Returns
        -------
        Tensor
            FP32 [B, G, OUTLINE + kinds], the most likely first: their middle and half extents in shares of d, h and w,
            and their logits. One whose middle lies within the extents of a more likely one tells of the same lesion: it
            comes last, with logits of no region.
        """
        scores, outlines = self.read(fine, low)
        scores = self.looked_at(scores, volume)
        best, at = scores.amax(-1).topk(min(max(_AMONG, self.count), scores.shape[1]), 1)
        scores, outlines, places = _rows(scores, at), _rows(outlines, at), self.places[at]
        middle, half = outlines[..., :3] * self.share + places, outlines[..., 3:].exp() * self.share
        room = half + _APART * self.share
        same = ((middle[:, :, None] - middle[:, None]).abs() <= room[:, None]).all(-1)
        own = same.tril(-1).any(-1).logical_not()
        scores = torch.where(own[..., None], scores, NO_REGION_LOGIT)
        _, first = torch.where(own, best, best + NO_REGION_LOGIT).topk(self.count, 1)
        return _rows(torch.cat([middle, half, scores], -1), first)

    def looked_at(self, scores: Tensor, volume: Tensor) -> Tensor:
        """Return the logits FP32 [B, cells, kinds] of cells, those that are looked for more closely anew."""
        columns = list(scores.unbind(-1))
        for look in self.looks:
            assert isinstance(look, Look)
            for kind, anew in zip(look.kinds, look(scores, volume).unbind(-1), strict=True):
                columns[kind] = anew
        return torch.stack(columns, -1)

    def _dropped(self, x: Tensor, share: float) -> Tensor:
        return dropout(x, share, self.training)


def places_of(cells: Cells) -> Tensor:
    """Return the middles FP32 [cells, 3] of cells, in shares of d, h and w."""
    centres = torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in cells), indexing="ij")
    return torch.stack(centres, -1).flatten(0, 2)


def spots(volume: Tensor, cells: Cells, stride: int) -> Tensor:
    """Return how far the brightest spot of each cell stands out of dark surroundings, FP32 [B, cells].

    Parameters
    ----------
    volume
        FP32 [B, d, h, w] from 0 to 1.
    cells
        Along d, h, w.
    stride
        Voxels along a side of a cell.
    """
    ends = [n * stride - s for n, s in zip(cells, volume.shape[1:], strict=True)]
    whole = pad(volume, [v for end in reversed(ends) for v in (0, end)]).unsqueeze(1)
    spot = avg_pool3d(whole, _SPOT)
    around = spot
    for axis in range(3):
        kernel = [_SURROUNDINGS if i == axis else 1 for i in range(3)]
        around = avg_pool3d(around, kernel, 1, [n // 2 for n in kernel], count_include_pad=False)
    out = torch.where(around < _DARK, spot - around, 0.0)
    return max_pool3d(out, [stride // n for n in _SPOT]).flatten(1)


def _numbers(counts: Cells, shape: Sequence[int], step: int) -> Tensor:
    """Return which elements of an array of a shape lie at every multiple of a step, INT64 [counts]."""
    axes = torch.meshgrid(*(torch.arange(n) * step for n in counts), indexing="ij")
    return ((axes[0] * shape[1] + axes[1]) * shape[2] + axes[2]).flatten()


def _rows(tokens: Tensor, at: Tensor) -> Tensor:
    """Return the tokens [B, T, C] at indices [B, R]."""
    return tokens.gather(1, at[..., None].expand(-1, -1, tokens.shape[-1]))


def _planes(tokens: Tensor, cells: Cells) -> Tensor:
    """Bring [B, d * h * w, C] to [B, C, d, h, w]."""
    return tokens.mT.reshape(tokens.shape[0], tokens.shape[2], *cells)
