"""First stage of the language path: the vision encoder learns to see, cell by cell, before it has to speak.

Each place of the stem's and of every stage's output stands for a cell of the vision grid. Linear heads, which no
checkpoint keeps, read from it how much of each organ lies in the cell and which findings do. What they can read from
the stages that go on, a projector can; the finer ones teach what is small where it still fills its cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss, pad
from torch.nn.utils.rnn import pad_sequence

from medvl.contracts.checkpoint import Checkpoint
from medvl.embedded.anatomy import ORGANS
from medvl.embedded.truth import FindingKind, Truth
from medvl.network.modules import Modules
from medvl.network.regions import SELDOM_LOGIT
from medvl.network.vision import STEM_STRIDE, VisionEncoder, scaled_to
from medvl.training.cases import Case, CaseStore
from medvl.training.regions import lesions, padded, region_loss

_KINDS = 1 + len(ORGANS) + len(FindingKind)
"""What a voxel can be: nothing, an organ, a finding."""
_LEAST_VOXELS, _LEAST_SHARE = 6, 0.2
"""Of a finding, for it to be in a cell: so many voxels, or so much of it."""
_AMOUNT_SCALE = 8.0
_STATISTICS_STEPS = 300
"""After these the statistics of the batch norms stand still: volumes of one batch are too few to go on with."""
_MOST_CROPPED = 0.35
_SPARE = 0.25
"""Share of a GPU's memory that cases leave to the networks."""
_FINDING_WEIGHT, _AMOUNT_WEIGHT = 0.1, 1.0
REGION_WEIGHT = 0.3
"""Of the loss of regions beside that of what the heads read."""
_FEWEST = 0.25
"""Cells with a kind of finding, by volume, that its loss is divided by at least."""
_SCALED, _SHIFTED_HU, _NOISE_HU = 0.03, 15.0, 15.0
"""Spread of a scanner's calibration, and the most noise that is added to every second volume."""


@dataclass(frozen=True, eq=False)
class Parts:
    """Parts of B cases."""

    seeds: tuple[int, ...]
    edges: Tensor
    """INT64 [B, 3, 2], first voxel along slices, rows and columns and the one behind the last; there is air outside."""
    lesions: Tensor
    """FP32 [B, M, NUMBERS], what :func:`medvl.training.regions.lesions` says of each."""

    @classmethod
    def of(cls, cases: Iterable[Case], within: Iterable[NDArray[np.intp]] | None = None) -> Parts:
        """Return whole cases, or what lies ``within`` edges [3, 2] of each of them."""
        cases = tuple(cases)
        whole = [_edges(case) for case in cases]
        edges = whole if within is None else [w[:, :1] + part for w, part in zip(whole, within, strict=True)]
        shown = padded([lesions(*each) for each in zip(cases, whole, edges, strict=True)])
        return cls(tuple(case.seed for case in cases), torch.from_numpy(np.stack(edges)), shown)


@dataclass(frozen=True, eq=False)
class Views:
    """B volumes on the vision grid."""

    hu: Tensor
    """FP32 [B, d, h, w]."""
    kinds: Tensor
    """UINT8 [B, d, h, w], what each voxel is: 0, organs from 1, then kinds of findings."""


class Grids:
    """Puts parts of cases on the vision grid, on torch's device.

    On a GPU each case that was looked at stays there while a quarter of its memory is free: reading them again and
    again costs more than learning from them.
    """

    def __init__(self, checkpoint: Checkpoint, store: CaseStore) -> None:
        self._grid = checkpoint.vision.grid
        self._window = checkpoint.windows[checkpoint.vision.window]
        self._store = store
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def views(self, seeds: Sequence[int], edges: Tensor) -> Views:
        """Return :class:`Parts` as the vision encoder takes them: what ``to_grid`` makes of a padded or cut volume."""
        voxels = [self.voxels(seed) for seed in seeds]
        lower, upper = self._window
        shown = pad_sequence([grey for grey, _ in voxels], batch_first=True).float()
        depth, rows, columns = (_linear(edges[:, axis], n, shown.shape[1 + axis]) for axis, n in enumerate(self._grid))
        planes = rows[:, None] @ (shown @ columns[:, None].mT)
        volumes = (depth @ planes.flatten(2)).reshape(len(seeds), *self._grid)
        labels = [_nearest(own, edge, self._grid) for (_, own), edge in zip(voxels, edges, strict=True)]
        return Views(lower + volumes * ((upper - lower) / 255.0), torch.stack(labels))

    def voxels(self, seed: int) -> tuple[Tensor, Tensor]:
        """Return what is stored of a case, UINT8 [D, R, C]: grey values and what each voxel is."""
        if seed in self._kept:
            return self._kept[seed]
        case, device = self._store.get(seed), torch.get_default_device()
        stored = (case.voxels.grey, case.voxels.labels, by_kind(case.truth))
        grey, labels, table = (torch.from_numpy(np.array(array)).to(device) for array in stored)
        own = grey, table[labels.int()]
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info()
            if free > _SPARE * total:
                self._kept[seed] = own
        return own


def _edges(case: Case) -> NDArray[np.intp]:
    """Return where a case with its air begins and ends, in stored voxels, [3, 2]."""
    (above, below), (left, right) = case.air
    d, r, c = case.voxels.shape
    return np.array([[0, d], [-above, r + below], [-left, c + right]])


def _linear(edges: Tensor, count: int, stored: int) -> Tensor:
    """Return how much of each stored voxel is in ``count`` ones between edges [B, 2], FP32 [B, count, stored]."""
    first, last = edges[:, :1], edges[:, 1:]
    at = first + (torch.arange(count) + 0.5) * ((last - first) / count) - 0.5
    at = at.clamp(first, last - 1)
    return (1.0 - (at[..., None] - torch.arange(stored)).abs()).clamp(min=0.0)


def _nearest(stored: Tensor, edges: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Return a label map [D, R, C] on the grid between edges [3, 2], 0 outside."""
    for axis, (count, (first, last)) in enumerate(zip(grid, edges, strict=True)):
        at = (first + (torch.arange(count) + 0.5) * ((last - first) / count)).floor().long()
        known = (at >= 0) & (at < stored.shape[axis])
        shape = [count if i == axis else 1 for i in range(3)]
        stored = stored.index_select(axis, at.clamp(0, stored.shape[axis] - 1)) * known.reshape(shape)
    return stored


@dataclass(frozen=True, slots=True)
class Cells:
    """What is in each cell of B volumes, cells in C order of d, h, w."""

    organs: Tensor
    """FP32 [B, cells, organs], share of the cell."""
    findings: Tensor
    """FP32 [B, cells, kinds], 0 or 1."""
    amounts: Tensor
    """FP32 [B, cells, kinds], log(1 + voxels) / 8."""


READ = len(ORGANS) + 2 * len(FindingKind)
"""Numbers that a head reads from a cell."""


def heads(channels: Sequence[int]) -> nn.ModuleList:
    """Return what reads from the cells of the stem and of every stage, of so many channels."""
    made = [nn.Linear(c, READ) for c in channels]
    for head in made:
        nn.init.constant_(head.bias[len(ORGANS) : -len(FindingKind)], SELDOM_LOGIT)
    return nn.ModuleList(made)


class Seeing(nn.Module):
    """The vision encoder with a head for its stem and for every stage up to the last one that goes on."""

    def __init__(self, encoder: VisionEncoder, channels: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = heads(channels)

    def forward(self, volume_hu: Tensor, window_hu: Tensor) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
        """Return what each head reads, FP32 [B, cells, organs + 2 kinds], and what is read of regions."""
        with torch.autocast(volume_hu.device.type, torch.bfloat16):
            levels = self.encoder.levels(scaled_to(volume_hu, window_hu))
            scores, outlines = self.encoder.read_regions(levels)
        read = [head(level.float()) for head, level in zip(self.heads, levels, strict=True)]
        return read, (scores.float(), outlines.float())


class PerceptionLearner:
    """Trains the vision encoder on cropped and jittered cases.

    Parameters
    ----------
    checkpoint
        Sizes and windows.
    modules
        What is trained, in part ``vision_encoder``.
    store
        Cases; they come again and again.
    batch
        Volumes of a step.
    """

    def __init__(self, checkpoint: Checkpoint, modules: Modules, store: CaseStore, batch: int) -> None:
        self._checkpoint = checkpoint
        self._store = store
        self._batch = batch
        self._grids = Grids(checkpoint, store)
        vision = checkpoint.vision
        self.module = Seeing(modules.vision_encoder, vision.dims[: max(vision.feature_stages) + 1])
        lay_out(self.module.encoder)
        self.module.train()

    def draw(self, step: int, rng: np.random.Generator) -> Parts:
        """Return random parts of cases."""
        cases = [self._store.draw(rng, step) for _ in range(self._batch)]
        return Parts.of(cases, [_part(case.geometry.shape, rng) for case in cases])

    def loss(self, step: int, drawn: Parts) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the loss of a batch of volumes."""
        if step >= _STATISTICS_STEPS:
            freeze_statistics(self.module)
        views = self._grids.views(drawn.seeds, drawn.edges)
        read, (scores, outlines) = self.module(jittered(views.hu), window_of(self._checkpoint, len(views.hu)))
        loss, shown = read_levels(read, counts_of(views.kinds, len(read)))
        extra, more = region_loss(scores, outlines, drawn.lesions, self.module.encoder.fine_cells)
        return loss + REGION_WEIGHT * extra, shown | more


def lay_out(encoder: VisionEncoder) -> None:
    """Put the weights of an encoder in the order that its device learns fastest with."""
    if torch.get_default_device().type == "cpu":
        # On a GPU, cuDNN would go through the channels of a depthwise convolution one by one.
        encoder.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def freeze_statistics(module: nn.Module) -> None:
    """Let batch norms use the statistics that they have gathered."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm3d):
            part.eval()


def window_of(checkpoint: Checkpoint, batch: int) -> Tensor:
    """Return the window of the vision encoder, FP32 [batch, 2]."""
    return torch.tensor([checkpoint.windows[checkpoint.vision.window]] * batch)


def jittered(hu: Tensor) -> Tensor:
    """Return volumes FP32 [B, d, h, w] as other scanners might have stored them, every second one with more noise."""
    each = (len(hu), 1, 1, 1)
    noise = _NOISE_HU * torch.rand(each) * (torch.rand(each) < 0.5)
    scaled = hu * (1.0 + _SCALED * torch.randn(each)) + _SHIFTED_HU * torch.randn(each)
    return scaled + noise * torch.randn(hu.shape)


def _part(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.intp]:
    edges = []
    for length in shape:
        size = int(length * (1.0 - rng.uniform(0.0, _MOST_CROPPED) * (rng.random() < 0.6)))
        start = int(rng.integers(length - size + 1))
        edges.append((start, start + size))
    return np.array(edges)


def by_kind(truth: Truth) -> NDArray[np.uint8]:
    """Return a table from values of the label map to what a voxel can be: 0, organs from 1, then kinds of findings."""
    table = np.arange(256, dtype=np.uint8)
    for finding in truth.findings:
        if finding.value is not None:
            table[finding.value] = 1 + len(ORGANS) + tuple(FindingKind).index(finding.kind)
    return table


def counted(kinds: Tensor, size: int) -> Tensor:
    """Return how many voxels of maps UINT8 [B, D, R, C] are what, FP32 [B, d, h, w, kinds].

    The cells have ``size`` voxels a side; the last ones of an axis may be smaller.
    """
    batch, *cells = (torch.arange(n) // s for n, s in zip(kinds.shape, (1, size, size, size), strict=True))
    d, h, w = (int(c[-1]) + 1 for c in cells)
    planes = (batch[:, None] * d + cells[0])[..., None, None] * h + cells[1][:, None]
    index = (planes * w + cells[2]) * _KINDS + kinds
    counts = torch.bincount(index.flatten(), minlength=len(batch) * d * h * w * _KINDS)
    return counts.reshape(len(batch), d, h, w, _KINDS).float()


def pooled(counts: Tensor, by: tuple[int, int, int]) -> Tensor:
    """Return the counts [B, d, h, w, kinds] of cells that are so many times as large along each axis."""
    d, h, w = (-n % p for n, p in zip(counts.shape[1:4], by, strict=True))
    padded = pad(counts, (0, 0, 0, w, 0, h, 0, d))
    d, h, w = (n // p for n, p in zip(padded.shape[1:4], by, strict=True))
    return padded.reshape(len(counts), d, by[0], h, by[1], w, by[2], -1).sum((2, 4, 6))


def counts_of(kinds: Tensor, levels: int) -> list[Tensor]:
    """Return what :func:`counted` says of the cells of the stem and of every stage, of maps UINT8 [B, d, h, w]."""
    counts = [counted(kinds, STEM_STRIDE)]
    while len(counts) < levels:
        counts.append(pooled(counts[-1], (2, 2, 2)))
    return counts


def cells_of_counts(counts: Tensor) -> Cells:
    """Return what cells hold, from their counts [B, ..., kinds]."""
    flat = counts.flatten(1, -2)
    kinds = flat[..., 1 + len(ORGANS) :]
    enough = (_LEAST_SHARE * kinds.sum(1, keepdim=True)).clamp(max=_LEAST_VOXELS)
    return Cells(
        organs=flat[..., 1 : 1 + len(ORGANS)] / flat.sum(-1, keepdim=True),
        findings=((kinds > 0) & (kinds >= enough)).float(),
        amounts=kinds.log1p() / _AMOUNT_SCALE,
    )


def read_levels(read: Sequence[Tensor], counts: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of what the heads of all levels read, and how well they do."""
    losses: list[Tensor] = []
    shown: dict[str, Tensor] = {}
    for level, (own, held) in enumerate(zip(read, counts, strict=True)):
        loss, seen = read_cells(own, cells_of_counts(held))
        losses.append(loss)
        shown |= {f"{name}_{level}": value for name, value in seen.items()}
    return torch.stack(losses).sum(), shown


def _focal(logits: Tensor, there: Tensor) -> Tensor:
    """Return the focal loss (arXiv 1708.02002) of kinds [B, cells, kinds], a mean over the cells that have each kind.

    A mean over all cells would teach next to nothing of what is in one of thousands.
    """
    plain = binary_cross_entropy_with_logits(logits, there, reduction="none")
    wrong = (logits.sigmoid() - there).abs()
    each = (wrong.square() * plain).sum((0, 1)) / there.sum((0, 1)).clamp(min=len(there) * _FEWEST)
    return each.sum()


def read_cells(read: Tensor, cells: Cells) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of what the heads read, [B, cells, organs + 2 kinds], and how well they do."""
    organs, kinds, amounts = cells.organs, cells.findings, cells.amounts
    sizes = [organs.shape[-1], kinds.shape[-1], kinds.shape[-1]]
    said_organs, said_kinds, said_amounts = torch.split(read, sizes, -1)
    organ_loss = binary_cross_entropy_with_logits(said_organs, organs, reduction="none").sum(-1).mean()
    kind_loss = _focal(said_kinds, kinds)
    amount_loss = mse_loss(said_amounts, amounts, reduction="none").sum(-1).mean()
    with torch.no_grad():
        said, there = said_kinds > 0, kinds > 0
        hit = (said & there).sum()
        shown = {
            "organs": (said_organs.sigmoid() - organs).abs().sum(-1).mean(),
            "recall": hit / there.sum(),
            "precision": hit / said.sum(),
        }
    return organ_loss + _FINDING_WEIGHT * kind_loss + _AMOUNT_WEIGHT * amount_loss, shown
