"""First stage of the language path: the vision encoder learns to see, cell by cell, before it has to speak.

Each place of the stem's and of every stage's output stands for a cell of the vision grid. Linear heads, which no
checkpoint keeps, read from it how much of each organ lies in the cell and which findings do. What they can read from
the stages that go on, a projector can; the finer ones teach what is small where it still fills its cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from medvl.contracts.checkpoint import Checkpoint
from medvl.embedded.anatomy import ORGANS
from medvl.embedded.truth import FindingKind
from medvl.network.modules import Modules
from medvl.network.vision import STEM_STRIDE, VisionEncoder
from medvl.training.cases import Case, CaseStore

_BATCH = 2
_KINDS = 1 + len(ORGANS) + len(FindingKind)
"""What a voxel can be: nothing, an organ, a finding."""
_LEAST_VOXELS, _LEAST_SHARE = 6, 0.2
"""Of a finding, for it to be in a cell: so many voxels, or so much of it."""
_AMOUNT_SCALE = 8.0
_STATISTICS_STEPS = 300
"""After these the statistics of the batch norms stand still: volumes of one batch are too few to go on with."""
_MOST_CROPPED = 0.35
_FINDING_WEIGHT, _AMOUNT_WEIGHT = 2.0, 1.0


@dataclass(frozen=True, slots=True)
class Cells:
    """What is in each cell, cells in C order of d, h, w."""

    organs: NDArray[np.float32]
    """[cells, organs], share of the cell."""
    findings: NDArray[np.float32]
    """[cells, kinds], 0 or 1."""
    amounts: NDArray[np.float32]
    """[cells, kinds], log(1 + voxels) / 8."""


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
        with torch.autocast("cpu", torch.bfloat16):
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
        Cases.
    cases
        How many there are; they come again and again.
    """

    def __init__(self, checkpoint: Checkpoint, modules: Modules, store: CaseStore, cases: int) -> None:
        self._checkpoint = checkpoint
        self._store = store
        self._cases = cases
        vision = checkpoint.vision
        self.module = Seeing(modules.vision_encoder, vision.dims[: max(vision.feature_stages) + 1])
        self.module.encoder.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.module.train()

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, Mapping[str, float]]:
        """Return the loss of a batch of volumes."""
        if step >= _STATISTICS_STEPS:
            freeze_statistics(self.module)
        cases = [self._store.draw(rng, step, self._cases) for _ in range(_BATCH)]
        grids, labels = zip(*(self._view(case, rng) for case in cases), strict=True)
        window = torch.tensor([self._checkpoint.windows[self._checkpoint.vision.window]] * _BATCH)
        losses: list[Tensor] = []
        shown: dict[str, float] = {}
        counts = [counted(label, STEM_STRIDE) for label in labels]
        for level, read in enumerate(self.module(torch.from_numpy(np.stack(grids)), window)):
            loss, seen = read_cells(read, [cells_of_counts(one) for one in counts])
            counts = [pooled(one, (2, 2, 2)) for one in counts]
            losses.append(loss)
            shown |= {f"{name}_{level}": value for name, value in seen.items()}
        return torch.stack(losses).sum(), shown

    def _view(self, case: Case, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return a random part of a case on the vision grid, FP32 HU, and its label map by finding kind."""
        part = _cropped(case, rng)
        hu = part.grid(self._checkpoint).astype(np.float32)
        hu = hu * rng.normal(1.0, 0.03) + rng.normal(0.0, 15.0)
        if rng.random() < 0.5:
            hu += rng.uniform(0.0, 15.0) * rng.standard_normal(hu.shape, np.float32)
        return hu, by_kind(case)[part.label_grid(self._checkpoint)]


def freeze_statistics(module: nn.Module) -> None:
    """Let batch norms use the statistics that they have gathered."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm3d):
            part.eval()


def _cropped(case: Case, rng: np.random.Generator) -> Case:
    slices = []
    for length in case.hu.shape:
        size = int(length * (1.0 - rng.uniform(0.0, _MOST_CROPPED) * (rng.random() < 0.6)))
        start = int(rng.integers(length - size + 1))
        slices.append(slice(start, start + size))
    box = tuple(slices)
    return Case(case.seed, np.ascontiguousarray(case.hu[box]), case.labels[box], case.geometry, case.truth)


def by_kind(case: Case) -> NDArray[np.uint8]:
    """Return a table from values of the label map to what a voxel can be: 0, organs from 1, then kinds of findings."""
    table = np.arange(256, dtype=np.uint8)
    for finding in case.truth.findings:
        if finding.value is not None:
            table[finding.value] = 1 + len(ORGANS) + tuple(FindingKind).index(finding.kind)
    return table


def counted(labels: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Return how many voxels of a label map [D, R, C] are what, FP32 [d, h, w, kinds], in cells of ``size`` a side.

    The last cells of an axis may be smaller.
    """
    cells = [np.arange(n) // size for n in labels.shape]
    d, h, w = (int(c[-1]) + 1 for c in cells)
    index = (cells[0][:, None, None] * h + cells[1][None, :, None]) * w + cells[2][None, None, :]
    counts = np.bincount((index * _KINDS + labels).ravel(), minlength=d * h * w * _KINDS)
    return counts.reshape(d, h, w, _KINDS).astype(np.float32)


def pooled(counts: NDArray[np.float32], by: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return the counts of cells that are so many times as large along each axis."""
    padded = np.pad(counts, [*((0, -n % p) for n, p in zip(counts.shape[:3], by, strict=True)), (0, 0)])
    d, h, w = (n // p for n, p in zip(padded.shape[:3], by, strict=True))
    summed: NDArray[np.float32] = padded.reshape(d, by[0], h, by[1], w, by[2], -1).sum((1, 3, 5))
    return summed


def cells_of_counts(counts: NDArray[np.float32]) -> Cells:
    """Return what cells hold, from their counts [..., kinds]."""
    flat = counts.reshape(-1, _KINDS)
    kinds = flat[:, 1 + len(ORGANS) :]
    enough = np.minimum(_LEAST_VOXELS, _LEAST_SHARE * kinds.sum(0, keepdims=True))
    return Cells(
        organs=flat[:, 1 : 1 + len(ORGANS)] / flat.sum(1, keepdims=True),
        findings=((kinds > 0) & (kinds >= enough)).astype(np.float32),
        amounts=(np.log1p(kinds) / _AMOUNT_SCALE).astype(np.float32),
    )


def read_cells(read: Tensor, cells: Sequence[Cells]) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of what the heads read, [B, tokens, organs + 2 kinds], and how well they do."""
    organs, kinds, amounts = (
        torch.from_numpy(np.stack([getattr(c, part) for c in cells])) for part in ("organs", "findings", "amounts")
    )
    sizes = [organs.shape[-1], kinds.shape[-1], kinds.shape[-1]]
    said_organs, said_kinds, said_amounts = torch.split(read, sizes, -1)
    organ_loss = binary_cross_entropy_with_logits(said_organs, organs, reduction="none").sum(-1).mean()
    weight = torch.tensor(4.0)
    kind_loss = binary_cross_entropy_with_logits(said_kinds, kinds, pos_weight=weight, reduction="none").sum(-1).mean()
    amount_loss = mse_loss(said_amounts, amounts, reduction="none").sum(-1).mean()
    with torch.no_grad():
        hit = ((said_kinds > 0) & (kinds > 0)).sum().item()
        said, there = (said_kinds > 0).sum().item(), (kinds > 0).sum().item()
        error = (said_organs.sigmoid() - organs).abs().sum(-1).mean().item()
    shown = {
        "organs": error,
        "recall": hit / there if there else float("nan"),
        "precision": hit / said if said else float("nan"),
    }
    return organ_loss + _FINDING_WEIGHT * kind_loss + _AMOUNT_WEIGHT * amount_loss, shown
