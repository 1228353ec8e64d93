"""[SEG] states learn to choose: among what a text's masks show, and among the regions that the encoder finds.

Everything else stands still. A case is looked at once, as the torch reference does it, and what was found is kept: the
[SEG] state of each request, its proposals as :mod:`medvl.network.proposals` compares them and how well the best slice
of each shows what was meant, and regions as :mod:`medvl.network.region_choice` compares them and which is meant.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medvl.contracts.checkpoint import load_checkpoint
from medvl.contracts.errors import InvalidRequest
from medvl.embedded.facts import findings_named
from medvl.embedded.preset import PROPOSAL_RULE, REGION_RULE
from medvl.embedded.report_reader import parse_report
from medvl.embedded.requests import request_pool
from medvl.imaging.volume import Volume
from medvl.imaging.windows import Window
from medvl.network.groups import scores_of
from medvl.network.model import Encoded, ReferenceModel
from medvl.network.modules import ProposalMap
from medvl.network.prompts import SlicePrompt
from medvl.network.propagation import MAX_OBJECTS
from medvl.network.proposal_finder import ProposalFinder
from medvl.network.proposals import FEATURES, features_of
from medvl.network.region_choice import features_of_regions, likely_regions
from medvl.network.torch_steps import SliceSource
from medvl.training.cases import Case, CaseStore, keep_arrays
from medvl.training.descriptors import Place, Target, finding_target
from medvl.training.language import target_of
from medvl.training.regions import LESIONS

_SHARES = {("finding", True): 0.5, ("organ", True): 0.2, ("class", True): 0.2, ("finding", False): 0.3}
"""Of what can be asked for; one of several findings is always asked for."""
_SEVERAL = "one of several"
_WEIGHTS = {_SEVERAL: 2.0, "finding": 1.0, "organ": 0.3, "class": 0.3}
_MEANT = 0.4
"""Dice on its best slice from which on a proposal shows what is meant."""
_SHOWN_HALF_EXTENTS = 1.2
"""Half extents along each axis between the middle of what is meant and that of a region that shows it, at most."""
_COVERED = 0.3
"""Share of a cell from which on it belongs to an object."""
_SHRINK = 1e-4
"""Of squared weights that choose regions, in the loss."""
_KEPT = ("state", "features", "dice", "regions", "meant")
"""Of an example, beside its weight."""
_STATE_NOISE = 0.16
"""Spread of what is added to states, whose own is 0.3: requests are few beside the numbers of a state."""


@dataclass(frozen=True, eq=False)
class Example:
    """A request and what it can choose from.

    Attributes
    ----------
    state
        FP32 [H].
    features
        FP32 [N, F] of its proposals; none where nothing is there that they could show.
    dice
        FP32 [N], of the mask and what is meant, on the best slice of each.
    regions
        FP32 [G + 1, F] of the likely regions and of none of them.
    meant
        FP32 [G + 1], 1 for those that show what is meant, or for none of them.
    weight
        In the loss.
    """

    state: NDArray[np.float32]
    features: NDArray[np.float32]
    dice: NDArray[np.float32]
    regions: NDArray[np.float32]
    meant: NDArray[np.float32]
    weight: float


@dataclass(frozen=True, eq=False)
class Compared:
    """B requests that choose among at most N things each."""

    states: Tensor
    """FP32 [B, H]."""
    features: Tensor
    """FP32 [B, N, F]."""
    worth: Tensor
    """FP32 [B, N], how well each shows what is meant, 0 to 1; -1 behind the last one of a request."""
    weight: Tensor
    """FP32 [B]."""

    def loss(self, chooser: nn.Linear) -> tuple[Tensor, Tensor]:
        """Return how unlikely those are that show what is meant, and the mean worth of what is chosen."""
        there, meant = self.worth >= 0, self.worth >= _MEANT
        weights = chooser(self.states + _STATE_NOISE * torch.randn_like(self.states))
        scores = torch.einsum("bnf,bf->bn", self.features, weights).masked_fill(~there, -torch.inf)
        likely = scores.log_softmax(1).masked_fill(~meant, -torch.inf).logsumexp(1)
        chosen = self.worth.gather(1, scores.argmax(1, keepdim=True))[:, 0]
        return -(likely * self.weight).sum() / self.weight.sum(), chosen.mean()


@dataclass(frozen=True, eq=False)
class Choices:
    """Requests of some cases with their proposals, and with their regions."""

    proposals: Compared
    regions: Compared


class ProposalLearner:
    """The stage ``proposals``.

    Parameters
    ----------
    reference
        A checkpoint folder with everything else.
    store
        Cases; they come again and again.
    folder
        Where what was found is kept, by seed.
    batch
        Cases of a step.
    """

    def __init__(self, reference: Path, store: CaseStore, folder: Path, batch: int) -> None:
        self._reference_folder = reference
        self._reference: ReferenceModel | None = None
        self._store = store
        self._folder = folder
        self._batch = batch
        checkpoint = load_checkpoint(reference)
        kinds = checkpoint.vision.regions.kinds if checkpoint.vision.regions else 0
        self.module = ProposalMap(checkpoint.language.hidden_size, kinds)

    def draw(self, step: int, rng: np.random.Generator) -> Choices:
        """Return the requests of some cases, with their proposals and with their regions."""
        seeds = [self._store.seed(rng, step) for _ in range(self._batch)]
        found = [example for seed in seeds for example in self._examples(seed)]
        return Choices(among_proposals(found), among_regions(found))

    def loss(self, step: int, drawn: Choices) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return how unlikely the proposals and the regions are that show what is meant."""
        loss, dice = drawn.proposals.loss(self.module)
        shown = {"dice": dice, "best": drawn.proposals.worth.amax(1).mean()}
        if self.module.regions is not None:
            more, right = drawn.regions.loss(self.module.regions)
            # Few requests tell apart more regions than they should from so many numbers of a state.
            loss = loss + more + _SHRINK * self.module.regions.weight.square().sum()
            shown["regions"] = right
        return loss, shown

    def keep(self, seed: int, found: Sequence[Example]) -> None:
        """Keep what was found in a case."""
        arrays = {f"{name}_{i}": getattr(e, name) for i, e in enumerate(found) for name in _KEPT}
        keep_arrays(self._path(seed), {"weights": np.array([e.weight for e in found]), **arrays})

    def _examples(self, seed: int) -> list[Example]:
        if not self._path(seed).is_file():
            if self._reference is None:
                self._reference = ReferenceModel.load(self._reference_folder)
            rng = np.random.default_rng([seed, len(FEATURES)])
            self.keep(seed, list(examples(self._store.shown(seed), self._reference, rng)))
        with np.load(self._path(seed)) as kept:
            return [
                Example(**{name: kept[f"{name}_{i}"] for name in _KEPT}, weight=float(weight))
                for i, weight in enumerate(kept["weights"])
            ]

    def _path(self, seed: int) -> Path:
        return self._folder / f"{seed}.npz"


def among_proposals(drawn: Sequence[Example]) -> Compared:
    """Return requests and their proposals; those without one that shows what is meant teach nothing.

    Raises
    ------
    InvalidRequest
        When there is none that does.
    """
    useful = [e for e in drawn if e.dice.max(initial=0.0) >= _MEANT]
    if not useful:
        raise InvalidRequest("Nothing that was asked for in these cases is seen: proposals need a trained checkpoint.")
    return _compared(useful, [e.features for e in useful], [e.dice for e in useful])


def among_regions(drawn: Sequence[Example]) -> Compared:
    """Return requests and the likely regions."""
    return _compared(drawn, [e.regions for e in drawn], [e.meant for e in drawn])


def _compared(
    drawn: Sequence[Example], features: Sequence[NDArray[np.float32]], worth: Sequence[NDArray[np.float32]]
) -> Compared:
    longest = max(map(len, worth))
    rows = np.zeros((len(drawn), longest, features[0].shape[1]), np.float32)
    values = np.full((len(drawn), longest), -1.0, np.float32)
    for row, (own, each) in enumerate(zip(features, worth, strict=True)):
        rows[row, : len(own)], values[row, : len(each)] = own, each
    return Compared(
        torch.from_numpy(np.stack([e.state for e in drawn])),
        torch.from_numpy(rows),
        torch.from_numpy(values),
        torch.tensor([e.weight for e in drawn]),
    )


def examples(case: Case, reference: ReferenceModel, rng: np.random.Generator) -> Iterator[Example]:
    """Look for what can be asked for in a case, and for what its report names."""
    checkpoint, depth = reference.checkpoint, case.geometry.shape[0]
    spec = checkpoint.segmentation
    volume = case.volume(Window(*checkpoint.windows[spec.window]))
    encoded = reference.encode(volume)
    likely = likely_regions(encoded.regions, REGION_RULE)
    compared, nothing = features_of_regions(likely), np.zeros((0, len(FEATURES)), np.float32)
    source = reference.slice_source(volume, spec.window)
    planes = case.planes(np.arange(depth), spec)
    for state, meant, weight in _said(case, volume, encoded, reference, rng):
        example = Example(state, nothing, nothing[:, 0], compared, shows(likely, _region(meant)), weight)
        if not meant.values:
            yield example
            continue
        masks, scores = asyncio.run(_seen(reference, source, depth, state))
        finder = ProposalFinder(depth, PROPOSAL_RULE)
        for number in range(depth):
            finder.see(number, masks[number], scores[number])
        if found := finder.found():
            truth = np.isin(planes, meant.values)
            dice = [_dice(masks[key], truth[key]) for key in (int(p.scores.argmax()) for p in found)]
            example = replace(example, features=features_of(found), dice=np.array(dice, np.float32))
        yield example


def _said(
    case: Case, volume: Volume, encoded: Encoded, reference: ReferenceModel, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.float32], Target, float]]:
    """Yield [SEG] states, what they mean, and their weights: of requests, and of the report as it would be written."""
    language, extent_mm = reference.checkpoint.language, volume.geometry.extent_mm
    prompts = language.prompts
    for wanted in request_pool(case.truth):
        if not wanted.one_of_several and rng.random() >= _SHARES.get(wanted.stratum, 0.0):
            continue
        request = wanted.phrased(rng)
        prompt = (prompts.for_label if request.by_class else prompts.for_text)(request.text, extent_mm)
        state = reference.language.seg_state(encoded.tokens, prompt, prompts.segment_answer)
        yield state, target_of(request, case), _WEIGHTS[_SEVERAL if wanted.one_of_several else wanted.stratum[0]]
    report = reference.language.answer(encoded.tokens, prompts.for_report(extent_mm), language.max_report_tokens)
    for seg, _, number in findings_named(case.truth, parse_report(report.text)):
        if number is not None:
            finding = case.truth.findings[number]
            several = len(case.truth.of(finding.kind, finding.organ)) > 1
            meant = finding_target(finding, case.places)
            yield report.seg_hidden[seg], meant, _WEIGHTS[_SEVERAL if several else "finding"]


def _region(meant: Target) -> Place | None:
    """Return the place of what is meant, if it is of a kind that regions show."""
    return meant.place if any(kind == meant.kind for kind, _ in LESIONS) else None


def shows(regions: NDArray[np.float32], place: Place | None) -> NDArray[np.float32]:
    """Return 1 FP32 [G + 1] for the regions whose middle is in a place, or else for none of them."""
    shown = np.zeros(len(regions) + 1, np.float32)
    if place is not None:
        away = np.abs(regions[:, :3] - np.array(place.centre)) / np.array(place.half_extent)
        shown[:-1] = (away <= _SHOWN_HALF_EXTENTS).all(1)
    shown[-1] = not shown.any()
    return shown


async def _seen(
    reference: ReferenceModel, source: SliceSource, depth: int, state: NDArray[np.float32]
) -> tuple[NDArray[np.bool_], list[float]]:
    """Return the masks bool [D, f_4, f_4] that a state makes of single slices, and their scores."""
    masks, scores = [], []
    for start in range(0, depth, MAX_OBJECTS):
        features = await source.get(range(start, min(start + MAX_OBJECTS, depth)))
        decoded = await reference.steps.decode(features, [SlicePrompt(seg_hidden=state)] * len(features))
        masks.append(decoded.masks)
        scores.extend(scores_of(decoded))
    return np.concatenate(masks), scores


def _dice(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Return the Dice of a mask of cells and a truth of pixels, of which a cell has to be covered to a share."""
    size = len(truth) // len(mask)
    covered = truth.reshape(len(mask), size, len(mask), size).mean((1, 3)) > _COVERED
    both, each = int(np.count_nonzero(mask & covered)), int(np.count_nonzero(mask)) + int(np.count_nonzero(covered))
    return 2 * both / max(1, each)
