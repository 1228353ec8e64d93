"""The encoder learns to look closer at voxels, and the projector how to say what is found: by erasing lesions.

What lies in the cells that it looks at is kept, and so is what each lesion changes in the vision tokens of its place:
the difference between the image as it is and without it, filled with what lies about it. The projector adds the mean of
such differences, which the language model reads as a lesion without having learnt to, as far as the tokens do not show
one already: that is read from them, and learnt from the same pairs. A case is looked at once, and has to be new to the
encoder, which is surer of what it has learnt from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from medvl.contracts.checkpoint import load_checkpoint
from medvl.contracts.errors import CheckpointError
from medvl.embedded.findings import MOST_HIDDEN
from medvl.embedded.truth import FindingKind
from medvl.imaging.resample import to_grid
from medvl.imaging.windows import Window
from medvl.network.modules import Modules
from medvl.network.projector import Told, cell_at
from medvl.network.regions import CUBE, Look
from medvl.network.vision import scaled_to
from medvl.training.cases import Case, CaseStore, keep_arrays
from medvl.training.regions import LESIONS, lesions

Array = NDArray[np.float32]

_UNDECIDED_CELLS = 0.7
"""Cells along each axis, beside its half extents, from the middle of a lesion up to which a cell is neither right nor
wrong."""
_SEEN_WEIGHT, _TOLD_WEIGHT = 4.0, 1.0
_LEAST_HALF = 0.8
_MARGIN = 0.9
"""Voxels; half extents of a lesion that is erased, at least, and what is added to them: its edge is soft."""
_FILLED, _ABOUT = 1.1, (1.15, 1.7)
"""Half extents from its middle up to which a lesion is filled, and between which what fills it lies."""
_LIKE, _FEW = 0.1, 8
"""Share of the window by which voxels about a lesion differ from their median at most; fewer of them fill nothing."""
_AIRY = 0.4
"""Share of the window that voxels of a lung have at most."""

_BESIDE_VOXELS, _MOVED = 4, 0.5
"""How far a cube may be moved from its cell along each axis, and the share that is: a look is to see a lesion wherever
in the middle of its cube it lies."""

_PASTED, _INNER = 8, slice(8, 12)
"""Nodules that are pasted into cubes of each case, whose middle is in a lung."""
_DIAMETER_MM, _NODULE = (6.0, 30.0), (0.725, 0.764)
"""Of pasted nodules: how large they are, the small ones more often, and their share of the window, 15 to 70 HU."""
_SLICE_MM, _SOFT_MM, _LUMPY, _NOISE = (0.8, 5.0), (0.3, 0.65), 0.18, (0.002, 0.024)
"""How far their edges are blurred between and within slices, how uneven they are, and their noise."""
_ABOUT_PASTED = 1.25
"""Half extents from the middle of a pasted nodule within which there is air for the most part."""

_OF_CELLS = ("cubes", "scores", "cells", "moved", "right")
"""Fields of :class:`Looked` with something of each cell."""


@dataclass(frozen=True, eq=False)
class Looked:
    """B cases as they are looked at; n cells of each, those of one look behind those of another."""

    cubes: Tensor
    """UINT8 [B, n, CUBE, CUBE, CUBE]."""
    pasted: Tensor
    """UINT8 [p, CUBE, CUBE, CUBE], others of what looks for nodules, with one in the middle cell."""
    scores: Tensor
    """FP32 [B, n, kinds] of the cells."""
    cells: Tensor
    """INT64 [B, n]."""
    moved: Tensor
    """BOOL [B, n], cubes that lie beside their cells: nothing is to be learnt from these of how cells have scored."""
    right: Tensor
    """FP32 [B, n, kinds]: 1 where the middle of one lies in the middle of the cube, NaN beside it."""
    kinds: Tensor
    """INT64 [m], which of the kinds that are told look like the lesions that were erased."""
    changed: Tensor
    """FP32 [m, 2, H], what each changes in the vision tokens of its place, of the low and of the high level."""
    tokens: Tensor
    """FP32 [m, 2, H], these tokens with it."""

    def of(self, look: Look, span: slice) -> Looked:
        """Return what one look sees, in cells of its own, and what is right of its kinds."""
        own = {name: getattr(self, name)[:, span] for name in _OF_CELLS}
        own["right"] = own["right"][..., look.kinds]
        return replace(self, **own, pasted=self.pasted if _seeks_nodules(look) else self.pasted[:0])


class Looking(nn.Module):
    """What is learnt."""

    def __init__(self, looks: nn.ModuleList, told: Told) -> None:
        super().__init__()
        self.looks = looks
        self.told = told

    @classmethod
    def of(cls, modules: Modules) -> Looking:
        """Return what is learnt of the parts of a checkpoint.

        Raises
        ------
        CheckpointError
            When its encoder does not look closer, or its projector tells nothing.
        """
        regions, told = modules.vision_encoder.regions, modules.projector.told
        if regions is None or not regions.looks or told is None:
            raise CheckpointError("vision.regions.looks and projector.told: both are needed to learn what they do.")
        return cls(regions.looks, told)

    def spans(self) -> Iterator[tuple[Look, slice]]:
        """Yield each look, and which of the cells that are looked at are its own."""
        end = 0
        for look in self.looks:
            assert isinstance(look, Look)
            begin, end = end, end + look.likely + look.spots
            yield look, slice(begin, end)


class LookLearner:
    """The stage ``looks``.

    Parameters
    ----------
    reference
        A checkpoint folder whose vision encoder and projector have been trained.
    store
        Cases that the encoder has not learnt from.
    folder
        Where what was seen is kept, by seed.
    batch
        Cases of a step.

    Raises
    ------
    CheckpointError
        When its encoder does not look closer, or its projector tells nothing.
    """

    def __init__(self, reference: Path, store: CaseStore, folder: Path, batch: int) -> None:
        self._store = store
        self._folder = folder
        self._batch = batch
        self._checkpoint = load_checkpoint(reference)
        with torch.device("cpu"):
            modules = Modules.load(reference, self._checkpoint)
        self._before = Looking.of(modules)
        self._encoder, self._projector = modules.vision_encoder, modules.projector
        # Weights that were loaded are mapped from their file and cannot be changed.
        self.module = deepcopy(self._before).train().requires_grad_(True)
        self.module.to(torch.get_default_device())

    def draw(self, step: int, rng: np.random.Generator) -> Looked:
        """Return what is looked at in cases, with nodules pasted into it, and what their lesions change."""
        cases = [self._store.shown(self._store.seed(rng, step)) for _ in range(self._batch)]
        seen = [self._cut(self._looked(case), rng) for case in cases]
        pasted = [np.zeros((0, CUBE, CUBE, CUBE), np.uint8)]
        for case, own in zip(cases, seen, strict=True):
            voxel_mm = np.array(case.geometry.extent_mm) / self._checkpoint.vision.grid
            for span in (span for look, span in self._before.spans() if _seeks_nodules(look)):
                cubes = own["cubes"][span]
                airy = cubes[cubes[:, _INNER, _INNER, _INNER].mean((1, 2, 3)) < 255 * _AIRY]
                nodules = [with_nodule(cube, voxel_mm, rng) for cube in rng.permutation(airy)[:_PASTED]]
                pasted.extend(cube[None] for cube in nodules if cube is not None)
        joined = {name: np.concatenate([own[name] for own in seen]) for name in ("kinds", "changed", "tokens")}
        stacked = {name: np.stack([own[name] for own in seen]) for name in _OF_CELLS}
        arrays = {**stacked, **joined, "pasted": np.concatenate(pasted)}
        arrays |= {name: flipped(arrays[name], rng) for name in ("cubes", "pasted")}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return Looked(**{name: t.float() if t.dtype == torch.float16 else t for name, t in tensors.items()})

    def loss(self, step: int, drawn: Looked) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return how wrong cells are scored, hard ones counting more, and how far what is told is from what changed."""
        told = self.module.told
        each = [_scored(look, drawn.of(look, span)) for look, span in self.module.spans()]
        losses, *scored = zip(*each, strict=True)
        seen, there, weighed, right = (torch.cat(t) for t in scored)
        shown = {
            "found": (seen > 0)[there == 1].float().mean(),
            "beside": (seen > 0)[there == 0].float().mean(),
            "sides": (weighed > 0)[right == 1].float().mean(),
        }
        loss = torch.stack(losses).sum()
        if len(drawn.kinds):
            says = torch.stack([told.low[drawn.kinds], told.high[drawn.kinds]], 1)
            telling, reading = mse_loss(says, drawn.changed), misread(told, drawn)
            loss, shown["told"], shown["read"] = loss + _TOLD_WEIGHT * (telling + reading), telling, reading
        return loss, shown

    def _cut(self, seen: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return what was seen of a case with the cubes about its cells, which of them are moved, and what is right."""
        look, _ = next(self._before.spans())
        at = np.stack(np.unravel_index(seen["cells"], look.cells), 1)
        moved = rng.random(len(at)) < _MOVED
        by = rng.integers(-_BESIDE_VOXELS, _BESIDE_VOXELS + 1, at.shape) * moved[:, None]
        corners = at * look.stride + by - (CUBE - look.stride) // 2
        places = ((at + 0.5 + by / look.stride) / look.cells).astype(np.float32)
        right = right_of(places, seen["found"], look.cells, range(seen["scores"].shape[-1]))
        return {**seen, "cubes": cubes_at(seen["volume"], corners), "moved": moved, "right": right}

    def _looked(self, case: Case) -> dict[str, np.ndarray]:
        path = self._folder / f"{case.seed}.npz"
        if not path.is_file():
            keep_arrays(path, self._seen(case))
        with np.load(path) as kept:
            return dict(kept)

    @torch.inference_mode()
    def _seen(self, case: Case) -> dict[str, np.ndarray]:
        checkpoint = self._checkpoint
        volume = case.volume(Window(*checkpoint.windows[checkpoint.segmentation.window]))
        grid = torch.from_numpy(to_grid(volume.hu, checkpoint.vision.grid))[None]
        scaled = scaled_to(grid, torch.tensor([checkpoint.windows[checkpoint.vision.window]]))
        found, looks = lesions_of(case), [look for look, _ in self._before.spans()]
        levels = self._encoder.levels(scaled)
        scores, _ = self._encoder.read_regions(levels)
        cells = torch.cat([look.candidates(scores, scaled) for look in looks], 1)[0]
        return {
            "volume": np.rint(255 * scaled[0].numpy()).astype(np.uint8),
            "scores": scores[0, cells].half().numpy(),
            "cells": cells.numpy(),
            "found": found,
            **self._changes(scaled, self._projector.seen(*(levels[n] for n in self._encoder.stages)), found, case.seed),
        }

    def _changes(self, scaled: Tensor, tokens: Tensor, found: Array, seed: int) -> dict[str, np.ndarray]:
        """Return kinds, tokens and changes of :class:`Looked` by lesions FP32 [n, NUMBERS] of an image [1, d, h, w]."""
        rng, kinds, rows = np.random.default_rng([seed, CUBE]), [], []
        for lesion in found:
            like = kinds_like(int(lesion[0]), self._before.told.spec.kinds)
            without = erased(scaled[0].numpy(), lesion, rng) if like else None
            if without is not None:
                kinds.extend(like)
                rows.extend([self._with_and_without(tokens, without, lesion[1:4])] * len(like))
        with_it, without_it = np.array(rows, np.float16).reshape(-1, 2, 2, tokens.shape[-1]).swapaxes(0, 1)
        return {"kinds": np.array(kinds, np.int64), "tokens": with_it, "changed": with_it - without_it}

    def _with_and_without(self, tokens: Tensor, without: Array, place: Array) -> Array:
        """Return the tokens FP32 [2, 2, H] of a place, of [1, T, H] and of an image [d, h, w] without the lesion."""
        spec, levels = self._before.told.spec, self._encoder.levels(torch.from_numpy(without)[None])
        both = torch.cat([tokens, self._projector.seen(*(levels[n] for n in self._encoder.stages))])
        low, high = (int(cell_at(torch.from_numpy(place), cells)) for cells in (spec.low_cells, spec.high_cells))
        return both[:, [low, int(np.prod(spec.low_cells)) + high]].numpy()


def _seeks_nodules(look: Look) -> bool:
    return all(LESIONS[kind][0] is FindingKind.LUNG_NODULE for kind in look.kinds)


def _scored(look: Look, drawn: Looked) -> tuple[Tensor, ...]:
    """Return how wrong a look is, what it sees and what is there, what it weighs and what is right."""
    with torch.autocast(drawn.cubes.device.type, torch.bfloat16):
        natural, pasted = (look.seen(cubes.float() / 255.0).float() for cubes in (drawn.cubes, drawn.pasted[None]))
    seen = torch.cat([natural.flatten(), pasted.flatten()])
    there = torch.cat([drawn.right.amax(-1).flatten(), torch.ones_like(pasted.flatten())])
    known, sure = there.isfinite(), drawn.right.isfinite() & ~drawn.moved[..., None]
    off = (seen.detach().sigmoid() - there)[known].square()
    plain = binary_cross_entropy_with_logits(seen[known], there[known], reduction="none")
    finding = (plain * (off + 0.05)).sum() / there[known].sum().clamp(min=1)
    weighed, right = look.weighed(natural.detach(), drawn.scores, drawn.cells)[sure], drawn.right[sure]
    return _SEEN_WEIGHT * finding + binary_cross_entropy_with_logits(weighed, right), seen, there, weighed, right


def misread(told: Told, drawn: Looked) -> Tensor:
    """Return how far what is read with lesions and without is from what they change, squared, in units of tokens.

    These bound it while what is told, which it does not teach, is still small.
    """
    with torch.no_grad():
        tokens, changed = told.alike(drawn.tokens), told.alike(drawn.changed)
        unit = torch.stack([told.low, told.high]).square().mean((0, 2)).sqrt()
        right = torch.stack([changed.mean(-1), torch.zeros(changed.shape[:-1])])
    off = unit * (told.shown(torch.stack([tokens, tokens - changed])) - right)
    return off.gather(-1, drawn.kinds.expand(2, -1)[..., None]).square().mean()


def cubes_at(volume: NDArray[np.uint8], corners: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Return cubes UINT8 [n, CUBE, CUBE, CUBE] at corners [n, 3] of a volume [d, h, w], with air beyond its ends."""
    before, after = np.maximum(0, -corners.min(0)), np.maximum(0, corners.max(0) + CUBE - volume.shape)
    padded = np.pad(volume, np.stack([before, after], 1))
    cubes: NDArray[np.uint8] = sliding_window_view(padded, (CUBE,) * 3)[tuple((corners + before).T)]
    return cubes


def lesions_of(case: Case) -> Array:
    """Return all lesions FP32 [n, NUMBERS] of a case; see :func:`medvl.training.regions.lesions`."""
    whole = np.array([[0, n] for n in case.geometry.shape])
    return lesions(case, whole, whole)


def kinds_like(kind: int, told: Sequence[int]) -> list[int]:
    """Return which of the kinds that are told look like one, the same on both sides, by their place among these."""
    return [place for place, other in enumerate(told) if LESIONS[other][0] is LESIONS[kind][0]]


def right_of(places: Array, found: Array, cells: tuple[int, int, int], kinds: Sequence[int]) -> Array:
    """Return 1 FP32 [n, kinds] where the middle of a lesion of a kind lies in a cell, NaN where it lies beside it.

    Parameters
    ----------
    places
        FP32 [n, 3], middles of cells in shares of d, h and w.
    found
        FP32 [m, NUMBERS].
    cells
        Along d, h, w.
    kinds
        Numbers of :data:`medvl.training.regions.LESIONS`.
    """
    right = np.zeros((len(places), len(kinds)), np.float32)
    for kind, *rest in found:
        if kind in kinds:
            away = np.abs(places - rest[:3]) * cells
            column = right[:, kinds.index(int(kind))]
            column[(away <= np.array(rest[3:]) * cells + _UNDECIDED_CELLS).all(1) & (column == 0)] = np.nan
            column[(away <= 0.5).all(1)] = 1.0
    return right


def erased(volume: Array, lesion: Array, rng: np.random.Generator) -> Array | None:
    """Return a volume FP32 [d, h, w] from 0 to 1 without a lesion FP32 [NUMBERS]; None where nothing can fill it."""
    shape = np.array(volume.shape)
    middle, half = lesion[1:4] * shape, np.maximum(lesion[4:] * shape, _LEAST_HALF)
    reach = _ABOUT[1] * (half + _MARGIN) + 1.0
    box = tuple(
        slice(max(0, int(m - r)), min(int(n), int(m + r) + 1)) for m, r, n in zip(middle, reach, shape, strict=True)
    )
    axes = np.ix_(*(np.arange(s.start, s.stop) + 0.5 for s in box))
    away = np.sqrt(sum(((a - m) / (h + _MARGIN)) ** 2 for a, m, h in zip(axes, middle, half, strict=True)))
    about = volume[box][(away > _ABOUT[0]) & (away < _ABOUT[1])]
    if LESIONS[int(lesion[0])][0] is FindingKind.LUNG_NODULE:
        about = about[about < _AIRY]
    if len(about):
        about = about[np.abs(about - np.median(about)) < _LIKE]
    if len(about) < _FEW:
        return None
    inside = away <= _FILLED
    without = volume.copy()
    without[box][inside] = rng.choice(about, int(inside.sum()))
    return without


def with_nodule(
    cube: NDArray[np.uint8], voxel_mm: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.uint8] | None:
    """Return a cube UINT8 [CUBE, CUBE, CUBE] with a nodule whose middle is in its middle cell.

    None where it would not be told from what is about it: too much of that is no air.
    """
    least, most = _DIAMETER_MM
    diameter = least + (most - least) * rng.beta(1.1, 2.2)
    half = diameter / 2 * np.array([1.0, *rng.uniform(0.82, 1.0, 2)])
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    middle = CUBE / 2 + rng.uniform(-4.0, 4.0, 3)
    voxels = np.stack(np.meshgrid(*[np.arange(CUBE) + 0.5] * 3, indexing="ij"), -1)
    away = (voxels - middle) * voxel_mm
    if (cube[np.linalg.norm((away @ turn) / half, axis=-1) < _ABOUT_PASTED] > 255 * _AIRY).mean() > MOST_HIDDEN:
        return None
    waves = rng.normal(size=(3, 3)) * 2 * np.pi / (0.9 * diameter)
    lumps = _LUMPY * half.mean() * np.sin(away @ waves + rng.uniform(0.0, 2 * np.pi, 3)).mean(-1)
    soft, share = rng.uniform(*_SOFT_MM), np.zeros(cube.shape)
    thick = np.clip(rng.gamma(3.0, 0.8), *_SLICE_MM)
    for step in (-1 / 3, 0.0, 1 / 3):
        moved = away + np.array([step * thick, 0.0, 0.0])
        depth = half.mean() * (1.0 - np.linalg.norm((moved @ turn) / half, axis=-1)) - lumps
        share += 1.0 / (1.0 + np.exp(np.clip(-depth / soft, -30.0, 30.0))) / 3
    noise = rng.uniform(*_NOISE) * rng.normal(size=cube.shape)
    grey = cube * (1 - share) + 255 * share * (rng.uniform(*_NODULE) + noise)
    pasted: NDArray[np.uint8] = np.rint(grey.clip(0, 255)).astype(np.uint8)
    return np.where(cube > 255 * _NODULE[1], cube, pasted)


def flipped(cubes: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return cubes [..., CUBE, CUBE, CUBE], each turned over along some of its axes."""
    turned = cubes.copy()
    for axis in range(-3, 0):
        which = rng.random(cubes.shape[:-3]) < 0.5
        turned[which] = np.flip(turned[which], axis)
    return turned
