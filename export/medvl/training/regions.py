"""The encoder learns to find lesions one by one: in which cell of its finer stage the middle of each is, and where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid, smooth_l1_loss

from medvl.embedded.truth import FindingKind
from medvl.training.cases import Case

LESIONS = (
    (FindingKind.LUNG_NODULE, "lung_left"),
    (FindingKind.LUNG_NODULE, "lung_right"),
    (FindingKind.KIDNEY_CYST, "kidney_left"),
    (FindingKind.KIDNEY_CYST, "kidney_right"),
    (FindingKind.LIVER_CYST, "liver"),
    (FindingKind.LIVER_MASS, "liver"),
)
"""What there can be several of, or what is small: the kinds that regions are told apart by."""
NUMBERS = 7
"""Of a lesion: its kind, and its centre (3) and half extent (3) in shares of what is shown."""
_SPREAD, _NARROWEST = 0.65, 0.6
"""Of the bump around a lesion, in its mean radius; and at least, in cells."""
_OUTLINED_CELLS = 1.05
"""Cells along each axis from the middle of a lesion up to which its outline is learnt from a cell."""
_SQUARED_BELOW = 0.1
"""Errors of an outline below which they count squared; in cells, and of logarithms."""


def lesions(case: Case, whole: NDArray[np.intp], part: NDArray[np.intp]) -> NDArray[np.float32]:
    """Return the lesions FP32 [n, NUMBERS] whose centre lies in a part of a case; both as edges [3, 2] in voxels."""
    found = []
    for finding in case.truth.findings:
        kind, place = (finding.kind, finding.organ), case.places.get(finding.value or 0)
        if kind not in LESIONS or place is None:
            continue
        length = part[:, 1] - part[:, 0]
        scale = (whole[:, 1] - whole[:, 0]) / length
        centre = (whole[:, 0] - part[:, 0]) / length + np.array(place.centre) * scale
        if (centre >= 0).all() and (centre < 1).all():
            found.append([LESIONS.index(kind), *centre, *np.array(place.half_extent) * scale])
    return np.array(found, np.float32).reshape(-1, NUMBERS)


def padded(drawn: Sequence[NDArray[np.float32]]) -> Tensor:
    """Return the lesions of B cases as FP32 [B, M, NUMBERS]; the kind of what fills them up is -1."""
    rows = np.full((len(drawn), max(1, *map(len, drawn)), NUMBERS), -1.0, np.float32)
    for row, own in zip(rows, drawn, strict=True):
        row[: len(own)] = own
    return torch.from_numpy(rows)


def region_loss(
    scores: Tensor, outlines: Tensor, drawn: Tensor, cells: tuple[int, int, int]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return CenterNet's focal loss (arXiv 1904.07850) of scores with that of outlines, and how well lesions are found.

    Parameters
    ----------
    scores, outlines
        As :meth:`medvl.network.regions.Regions.read` reads them.
    drawn
        FP32 [B, M, NUMBERS].
    cells
        Along d, h and w.
    """
    counts = torch.tensor(cells)
    kind, centre, half = drawn[..., 0].long(), drawn[..., 1:4] * counts, drawn[..., 4:] * counts
    there = kind >= 0
    places = torch.cartesian_prod(*(torch.arange(n) + 0.5 for n in cells))
    apart = (places - centre[:, :, None]).square().sum(-1)
    spread = (_SPREAD * half.clamp(min=0).prod(-1) ** (1 / 3)).clamp(min=_NARROWEST)
    # The cell that holds the middle is 1, whatever lies between the two middles.
    bump = torch.exp((apart.amin(-1, keepdim=True) - apart) / (2 * spread.square()[..., None]))
    heat = torch.zeros(len(scores), scores.shape[2], apart.shape[-1])
    of_kind = (kind[..., None] == torch.arange(scores.shape[2])) & there[..., None]
    heat = torch.where(of_kind[..., None], bump[:, :, None], heat[:, None]).amax(1).mT
    middle = heat >= 1.0
    p = scores.sigmoid()
    right = -((1 - p) ** 2) * logsigmoid(scores)
    wrong = -((1 - heat) ** 4) * p**2 * logsigmoid(-scores)
    loss = torch.where(middle, right, wrong).sum() / middle.sum().clamp(min=1)
    away = centre[:, :, None] - places
    nearest = apart.masked_fill(~there[..., None], torch.inf).argmin(1)
    own = nearest[:, None, :, None].expand(-1, 1, -1, 3)
    away = away.gather(1, own)[:, 0]
    sizes = half.clamp(min=1e-3).log().gather(1, nearest[..., None].expand(-1, -1, 3))
    close = there.any(1, keepdim=True) & (away.abs().amax(-1) <= _OUTLINED_CELLS)
    each = smooth_l1_loss(outlines, torch.cat([away, sizes], -1), beta=_SQUARED_BELOW, reduction="none").mean(-1)
    loss = loss + (each * close).sum() / close.sum().clamp(min=1)
    said = scores > 0
    off = (outlines[..., :3] - away).abs().mean(-1)
    return loss, {
        "regions": (said & middle).sum() / middle.sum(),
        "beside": (said & (heat < 0.1)).sum() / len(scores),
        "off": (off * close).sum() / close.sum(),
    }
