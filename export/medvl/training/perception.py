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

from medvl.contracts.checkpoint import Checkpoint
from medvl.embedded.anatomy import ORGANS
from medvl.embedded.truth import FindingKind, Truth
from medvl.network.modules import Modules
from medvl.network.vision import STEM_STRIDE, VisionEncoder
from medvl.training.cases import Case, CaseStore, label_grid, volume_grid

_KINDS = 1 + len(ORGANS) + len(FindingKind)
"""What a voxel can be: nothing, an organ, a finding."""
_LEAST_VOXELS, _LEAST_SHARE = 6, 0.2
"""Of a finding, for it to be in a cell: so many voxels, or so much of it."""
_AMOUNT_SCALE = 8.0
_STATISTICS_STEPS = 300
"""After these the statistics of the batch norms stand still: volumes of one batch are too few to go on with."""
_MOST_CROPPED = 0.35
_FINDING_WEIGHT, _AMOUNT_WEIGHT = 2.0, 1.0
_SCALED, _SHIFTED_HU, _NOISE_HU = 0.03, 15.0, 15.0
"""Spread of a scanner's calibration, and the most noise that is added to every second volume."""


@dataclass(frozen=True, eq=False)
class Views:
    """B volumes on the vision grid."""

    hu: Tensor
    """FP16 [B, d, h, w]."""
    kinds: Tensor
    """UINT8 [B, d, h, w], what each voxel is: 0, organs from 1, then kinds of findings."""

    @classmethod
    def of(cls, views: Iterable[tuple[NDArray[np.float16], NDArray[np.uint8]]]) -> Views:
        """Stack volumes and what their voxels are."""
        hu, kinds = zip(*views, strict=True)
        return cls(torch.from_numpy(np.stack(hu)), torch.from_numpy(np.stack(kinds)))


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


class Seeing(nn.Module):
    """The vision encoder with a head for its stem and for every stage up to the last one that goes on."""

    def __init__(self, encoder: VisionEncoder, channels: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(nn.Linear(c, READ) for c in channels)

    def forward(self, volume_hu: Tensor, window_hu: Tensor) -> list[Tensor]:
        """Return what each head reads, FP32 [B, cells, organs + 2 kinds]."""
        with torch.autocast(volume_hu.device.type, torch.bfloat16):
            levels = self.encoder.levels(volume_hu, window_hu)
        return [head(level.float()) for head, level in zip(self.heads, levels, strict=True)]


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
        vision = checkpoint.vision
        self.module = Seeing(modules.vision_encoder, vision.dims[: max(vision.feature_stages) + 1])
        if torch.get_default_device().type == "cpu":
            # On a GPU, cuDNN would go through the channels of a depthwise convolution one by one.
            self.module.encoder.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.module.train()

    def draw(self, step: int, rng: np.random.Generator) -> Views:
        """Return random parts of cases."""
        cases = [self._store.draw(rng, step) for _ in range(self._batch)]
        return Views.of(view(case, self._checkpoint, _part(case.hu.shape, rng)) for case in cases)

    def loss(self, step: int, drawn: Views) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the loss of a batch of volumes."""
        if step >= _STATISTICS_STEPS:
            freeze_statistics(self.module)
        losses: list[Tensor] = []
        shown: dict[str, Tensor] = {}
        counts = counted(drawn.kinds, STEM_STRIDE)
        window = window_of(self._checkpoint, len(drawn.hu))
        for level, read in enumerate(self.module(jittered(drawn.hu), window)):
            loss, seen = read_cells(read, cells_of_counts(counts))
            counts = pooled(counts, (2, 2, 2))
            losses.append(loss)
            shown |= {f"{name}_{level}": value for name, value in seen.items()}
        return torch.stack(losses).sum(), shown


def freeze_statistics(module: nn.Module) -> None:
    """Let batch norms use the statistics that they have gathered."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm3d):
            part.eval()


def window_of(checkpoint: Checkpoint, batch: int) -> Tensor:
    """Return the window of the vision encoder, FP32 [batch, 2]."""
    return torch.tensor([checkpoint.windows[checkpoint.vision.window]] * batch)


def view(
    case: Case, checkpoint: Checkpoint, part: tuple[slice, ...] = (slice(None),)
) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Return a part of a case on the vision grid: HU, and what each voxel is."""
    return volume_grid(case.hu[part], checkpoint), by_kind(case.truth)[label_grid(case.labels[part], checkpoint)]


def jittered(hu: Tensor) -> Tensor:
    """Return volumes FP32 [B, d, h, w] as other scanners might have stored them, every second one with more noise."""
    each = (len(hu), 1, 1, 1)
    noise = _NOISE_HU * torch.rand(each) * (torch.rand(each) < 0.5)
    scaled = hu.float() * (1.0 + _SCALED * torch.randn(each)) + _SHIFTED_HU * torch.randn(each)
    return scaled + noise * torch.randn(hu.shape)


def _part(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[slice, ...]:
    slices = []
    for length in shape:
        size = int(length * (1.0 - rng.uniform(0.0, _MOST_CROPPED) * (rng.random() < 0.6)))
        start = int(rng.integers(length - size + 1))
        slices.append(slice(start, start + size))
    return tuple(slices)


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


def read_cells(read: Tensor, cells: Cells) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of what the heads read, [B, cells, organs + 2 kinds], and how well they do."""
    organs, kinds, amounts = cells.organs, cells.findings, cells.amounts
    sizes = [organs.shape[-1], kinds.shape[-1], kinds.shape[-1]]
    said_organs, said_kinds, said_amounts = torch.split(read, sizes, -1)
    organ_loss = binary_cross_entropy_with_logits(said_organs, organs, reduction="none").sum(-1).mean()
    weight = torch.tensor(4.0)
    kind_loss = binary_cross_entropy_with_logits(said_kinds, kinds, pos_weight=weight, reduction="none").sum(-1).mean()
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
