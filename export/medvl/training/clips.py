"""What SAM2 is trained on: slices and clips of cases, objects on them, and how somebody might prompt these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medvl.contracts.checkpoint import SegmentationSpec
from medvl.embedded.parts import BODY
from medvl.network.prompts import PADDING, SlicePrompt, prompt_arrays
from medvl.training.cases import Case, CaseStore
from medvl.training.clicks import box, click
from medvl.training.descriptors import KIND_NAMES, Target, absent, targets
from medvl.training.words import Speaker, Words

PromptKind = Literal["language", "point", "box", "clicks", "mask"]
_KINDS: tuple[PromptKind, ...] = ("language", "point", "box", "clicks", "mask")
_OTHERS = np.array([0.3, 0.1, 0.25, 0.05])
"""How often the kinds behind the first are drawn, beside one another."""
_SLICES, _OBJECTS, _ABSENT = 3, 5, 2
_WITH_FINDINGS, _AT_ENDS = 0.75, 0.1
"""Share of slices where a finding is; and of slices at an end of the series, where little is left of what it cuts."""
_CLIP, _CLIP_OBJECTS = 5, 5
_CORRECTED, _PROMPTED, _FAR = 0.75, 0.25, 0.6
"""Share of clips that are corrected; of these, on the prompted slice itself; of the others, far away from it."""
_NEAREST, _NEAR, _FURTHEST = 2, 5, 30
"""Slices between the prompted one and one that is corrected: at least; near it, and at all, less than."""
_MISTAKEN, _LEAKED = 0.5, 0.5
"""Share of corrected objects whose mask has gone over to another one; share of these in which it holds both."""
_LEAST_PIXELS = 6
"""Of the S x S slice, for an object to be prompted on it."""
STRIDE = 4
"""Pixels of a slice along a side of its finest features."""
POINTS = 4
"""Of an object on a slice at most."""


@dataclass(frozen=True, eq=False)
class Prompted:
    """B clips of T slices, and N objects, each prompted on the first slice of its clip."""

    slices: Tensor
    """UINT8 [B, T, S, S]."""
    kinds: Tensor
    """UINT8 [B, T, f_4, f_4], what the middle of each place is: 0, or one of ``KIND_NAMES`` from 1."""
    clip: Tensor
    """INT64 [N]."""
    planes: Tensor
    """UINT8 [B, T, S, S], label maps."""
    values: Tensor
    """BOOL [N, 256], which of their values are the object."""
    points: Tensor
    """FP32 [N, P, 2]."""
    labels: Tensor
    """INT32 [N, P]."""
    said: Tensor
    """FP32 [N, W], what words say of the object (:class:`medvl.training.words.Words`); 0 where they do not prompt."""
    spoken: Tensor
    """BOOL [N], whether words prompt the object."""
    drawn: Tensor
    """BOOL [N], whether its mask does."""
    clicks: Tensor
    """INT64 [N], corrective clicks on the prompted slice."""
    numbers: Tensor
    """INT64 [T], of the slices, in the order of tracking, counted from the prompted one in its direction."""
    corrected: Tensor
    """INT64 [1], which of them is corrected; -1 for none."""
    mistaken: Tensor
    """BOOL [N, 256], values of what an object was taken for when it is corrected; none where it was not."""

    def masks(self, at: int) -> Tensor:
        """Return the objects on one of the slices, BOOL [N, S, S], empty where an object is not on it."""
        return self._on(at, self.values)

    def mistakes(self, at: int) -> Tensor:
        """Return what they were taken for on one of the slices, BOOL [N, S, S]."""
        return self._on(at, self.mistaken)

    def _on(self, at: int, values: Tensor) -> Tensor:
        planes = self.planes[self.clip, at]
        return values.gather(1, planes.flatten(1).long()).reshape(planes.shape)

    def some(self, at: Tensor) -> Prompted:
        """Return some of the objects, INT64 [n], on all of the clips."""
        return replace(self, **{name: getattr(self, name)[at] for name in _OF_OBJECTS})


def draw_prompted(  # noqa: PLR0917 - cases, how many of them, and the dice
    store: CaseStore,
    speaker: Speaker,
    spec: SegmentationSpec,
    batch: int,
    step: int,
    rng: np.random.Generator,
    *,
    clips: bool,
) -> Prompted:
    """Return prompted slices of cases that a step knows, or with ``clips`` the slices about them.

    Parameters
    ----------
    batch
        Clips; three times as many single slices.
    """
    numbers, corrected = clip_slices(rng) if clips else ((0,), -1)
    drawn: list[Prompted] = []
    while len(drawn) < batch * (1 if clips else _SLICES) or not sum(len(d.clip) for d in drawn):
        case, words = speaker.draw(store, rng, step)
        found = targets(case.truth, case.places)
        starts = _slices_with_findings(case, found, 1 if clips else _SLICES, rng)
        drawn.extend(_draw_clip(case, words, spec, found, int(n), numbers, corrected, rng) for n in starts)
    return replace(_joined(drawn), numbers=torch.tensor(numbers), corrected=torch.tensor([corrected]))


def clip_slices(rng: np.random.Generator) -> tuple[tuple[int, ...], int]:
    """Draw the slices of a clip, counted from the prompted one, and which of them is corrected, -1 for none.

    A tracked slice is corrected behind the one before it. Then tracking begins anew, somewhere in its upward course:
    between the prompted and the corrected slice, or behind both.
    """
    if rng.random() >= _CORRECTED:
        return tuple(range(_CLIP)), -1
    if rng.random() < _PROMPTED:
        return tuple(range(_CLIP)), 0
    last = _FURTHEST if rng.random() < _FAR else _NEAR
    far = int(rng.integers(_NEAREST, last)) * int(rng.choice([-1, 1]))
    before = far - int(np.sign(far))
    start = int(rng.integers(min(0, far) + 1, max(0, far) + 2))
    behind = (n for n in range(start, start + _CLIP) if n not in {0, far})
    return (0, before, far, *islice(behind, _CLIP - 3)), 2


def _draw_clip(  # noqa: PLR0917 - a case, a clip of it, and the dice
    case: Case,
    words: Words,
    spec: SegmentationSpec,
    found: Sequence[Target],
    start: int,
    relative: Sequence[int],
    corrected: int,
    rng: np.random.Generator,
) -> Prompted:
    """Return one clip that is prompted on a slice, upward or downward, whichever has more room for it."""
    last = case.geometry.shape[0] - 1
    steps = sorted((1, -1), key=lambda s: (sum(not 0 <= start + s * n <= last for n in relative), rng.random()))
    # Where a series ends before, its last slice stands for those beyond.
    numbers = np.clip(start + steps[0] * np.array(relative), 0, last)
    planes = case.planes(numbers, spec)
    kinds = np.zeros(256, np.uint8)
    for target in found:
        kinds[target.values[0]] = 1 + KIND_NAMES.index(target.kind)
    alone = len(relative) == 1
    chosen, told = _choose(found, words, planes[0], rng, _OBJECTS if alone else _CLIP_OBJECTS, _ABSENT if alone else 0)
    prompts = [_prompt(kind, t, planes[0], rng) for t, kind in zip(chosen, told, strict=True)]
    points, labels = _points(prompts, spec.side)
    said = [
        words.say(t, rng) if kind == "language" else np.zeros(words.width, np.float32)
        for t, kind in zip(chosen, told, strict=True)
    ]
    return Prompted(
        slices=torch.from_numpy(case.slices(numbers, spec))[None],
        kinds=torch.from_numpy(kinds[planes[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]])[None],
        clip=torch.zeros(len(chosen), dtype=torch.long),
        planes=torch.from_numpy(planes)[None],
        values=torch.from_numpy(np.array([_members(t) for t in chosen], np.bool_).reshape(-1, 256)),
        points=torch.from_numpy(points),
        labels=torch.from_numpy(labels),
        said=torch.from_numpy(np.array(said, np.float32).reshape(-1, words.width)),
        spoken=torch.tensor([kind == "language" for kind in told], dtype=torch.bool),
        drawn=torch.tensor([kind == "mask" for kind in told], dtype=torch.bool),
        clicks=torch.tensor([(kind == "clicks") * rng.integers(1, POINTS) for kind in told], dtype=torch.long),
        numbers=torch.tensor(relative),
        corrected=torch.tensor([corrected]),
        mistaken=torch.from_numpy(_mistakes(chosen, found, None if corrected < 0 else planes[corrected], rng)),
    )


def _choose(  # noqa: PLR0917 - what there is, what can be said of it, and the dice
    found: Sequence[Target],
    words: Words,
    plane: NDArray[np.uint8],
    rng: np.random.Generator,
    most: int,
    absent_ones: int,
) -> tuple[list[Target], list[PromptKind]]:
    """Choose objects of a slice and how to prompt them, findings first; with words for some that are not on it."""
    areas = np.bincount(plane.ravel(), minlength=256)
    here = [t for t in found if areas[list(t.values)].sum() >= _LEAST_PIXELS]
    findings, organs = ([t for t in here if t.is_finding is wanted] for wanted in (True, False))
    chosen = (_smaller_first(findings, areas, rng)[:3] + _smaller_first(organs, areas, rng))[:most]
    chances = (words.share, *(1.0 - words.share) * _OTHERS / _OTHERS.sum())
    kinds: list[PromptKind] = list(rng.choice(np.array(_KINDS), size=len(chosen), p=chances))
    kinds = ["point" if k == "language" and not words.can_say(t) else k for t, k in zip(chosen, kinds, strict=True)]
    elsewhere = [t for t in found if not areas[list(t.values)].any()]
    missing = [absent(k) for k in KIND_NAMES if k != BODY and all(t.kind != k for t in found)]
    for candidates in (elsewhere, missing)[:absent_ones]:
        if pool := [t for t in candidates if words.can_say(t)]:
            chosen.append(pool[rng.integers(len(pool))])
            kinds.append("language")
    return chosen, kinds


def _smaller_first(objects: Sequence[Target], areas: NDArray[np.intp], rng: np.random.Generator) -> list[Target]:
    """Shuffle objects; one of an eighth of another's area on the slice comes first twice as often."""
    sizes = np.array([areas[list(t.values)].sum() for t in objects])
    # The least of exponential times belongs to each with a chance in proportion to its rate.
    times = rng.exponential(size=len(objects)) * np.cbrt(sizes)
    return [objects[i] for i in times.argsort()]


def _mistakes(
    chosen: Sequence[Target], found: Sequence[Target], plane: NDArray[np.uint8] | None, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Return what each target is taken for on the corrected slice, bool [n, 256]: another object, both, or nothing."""
    mistaken = np.zeros((len(chosen), 256), np.bool_)
    if plane is None:
        return mistaken
    areas = np.bincount(plane.ravel(), minlength=256)
    here = [t for t in found if areas[list(t.values)].sum() >= _LEAST_PIXELS]
    for row, target in enumerate(chosen):
        others = [t for t in here if t is not target]
        if others and rng.random() < _MISTAKEN:
            mistaken[row] = _members(others[rng.integers(len(others))])
            if rng.random() < _LEAKED:
                mistaken[row] |= _members(target)
    return mistaken


def _members(target: Target) -> NDArray[np.bool_]:
    """Return which values of a label map are a target, bool [256]."""
    members = np.zeros(256, np.bool_)
    members[list(target.values)] = True
    return members


def _prompt(kind: PromptKind, target: Target, plane: NDArray[np.uint8], rng: np.random.Generator) -> SlicePrompt:
    """Prompt a target on a slice, uint8 [S, S].

    Who clicks on a lesion means the lesion, so organs are clicked on what is only theirs.
    """
    if kind == "box":
        return SlicePrompt(box(_members(target)[plane], rng))
    if kind not in {"point", "clicks"}:
        return SlicePrompt()
    own = plane == target.values[0]
    return SlicePrompt((click(own if own.any() else _members(target)[plane], rng),))


def _points(prompts: Sequence[SlicePrompt], side: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return points FP32 [N, P, 2] and labels INT32 [N, P] with room for corrections."""
    points = np.zeros((len(prompts), POINTS, 2), np.float32)
    labels = np.full((len(prompts), POINTS), PADDING, np.int32)
    if prompts:
        arrays = prompt_arrays(prompts, side=side, hidden_size=1)
        given_points = arrays["labels"].shape[1]
        points[:, :given_points], labels[:, :given_points] = arrays["points"], arrays["labels"]
    return points, labels


def _slices_with_findings(
    case: Case, found: Sequence[Target], count: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Return slices, most of them where a finding is, seldom a large one."""
    depth = case.geometry.shape[0]
    spans = [t.place for t in found if t.is_finding and t.place is not None]
    chances = np.array([1.0 / np.cbrt(np.prod(place.half_extent)) for place in spans])
    numbers = []
    for _ in range(count):
        dice = rng.random()
        if dice < _AT_ENDS:
            numbers.append(int(rng.choice([0, depth - 1])))
        elif spans and dice < _AT_ENDS + _WITH_FINDINGS:
            place = spans[rng.choice(len(spans), p=chances / chances.sum())]
            at = place.centre[0] + rng.uniform(-1, 1) * place.half_extent[0]
            numbers.append(min(depth - 1, max(0, int(at * depth))))
        else:
            numbers.append(int(rng.integers(depth)))
    return np.array(numbers)


def _joined(parts: Sequence[Prompted]) -> Prompted:
    """Return several clips as one batch."""
    own = {f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Prompted)}
    return Prompted(**{**own, "clip": torch.cat([p.clip + i for i, p in enumerate(parts)])})


_OF_CLIPS = {"slices", "planes", "kinds", "numbers", "corrected"}
_OF_OBJECTS = tuple(f.name for f in fields(Prompted) if f.name not in _OF_CLIPS)
