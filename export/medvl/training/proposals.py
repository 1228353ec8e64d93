"""[SEG] states learn to choose among proposals: what a text's masks show, and which of it is meant.

Everything else stands still. A case is looked at once, as the torch reference does it, and what was found is kept: the
[SEG] state of each request, its proposals as :mod:`medvl.network.proposals` compares them, and how well the best slice
of each shows what was meant.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medvl.contracts.checkpoint import load_checkpoint
from medvl.contracts.errors import InvalidRequest
from medvl.embedded.preset import PROPOSAL_RULE
from medvl.embedded.requests import request_pool
from medvl.imaging.windows import Window
from medvl.network.groups import scores_of
from medvl.network.model import ReferenceModel
from medvl.network.modules import ProposalMap
from medvl.network.prompts import SlicePrompt
from medvl.network.propagation import MAX_OBJECTS
from medvl.network.proposal_finder import ProposalFinder
from medvl.network.proposals import FEATURES, features_of
from medvl.network.torch_steps import SliceSource
from medvl.training.cases import Case, CaseStore
from medvl.training.language import target_of

_SHARES = {("finding", True): 0.5, ("organ", True): 0.2, ("class", True): 0.2}
"""Of what can be asked for and is there; one of several findings is always asked for."""
_WEIGHTS = {"one of several": 2.0, "finding": 1.0, "organ": 0.3, "class": 0.3}
_MEANT = 0.4
"""Dice on its best slice from which on a proposal shows what is meant."""
_COVERED = 0.3
"""Share of a cell from which on it belongs to an object."""
_STATE_NOISE = 0.16
"""Spread of what is added to states, whose own is 0.3: requests are few beside the numbers of a state."""


@dataclass(frozen=True, eq=False)
class Example:
    """A request and its proposals.

    Attributes
    ----------
    state
        FP32 [H].
    features
        FP32 [N, F] of its proposals.
    dice
        FP32 [N], of the mask and what is meant, on the best slice of each.
    weight
        In the loss.
    """

    state: NDArray[np.float32]
    features: NDArray[np.float32]
    dice: NDArray[np.float32]
    weight: float


@dataclass(frozen=True, eq=False)
class Compared:
    """B requests with at most N proposals each."""

    states: Tensor
    """FP32 [B, H]."""
    features: Tensor
    """FP32 [B, N, F]."""
    dice: Tensor
    """FP32 [B, N]; -1 behind the last proposal of a request."""
    weight: Tensor
    """FP32 [B]."""


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
        self.module = ProposalMap(load_checkpoint(reference).language.hidden_size)

    def draw(self, step: int, rng: np.random.Generator) -> Compared:
        """Return the requests of some cases."""
        seeds = [self._store.seed(rng, step) for _ in range(self._batch)]
        return compared([example for seed in seeds for example in self._examples(seed)])

    def loss(self, step: int, drawn: Compared) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return how unlikely the proposals are that show what is meant."""
        there, meant = drawn.dice >= 0, drawn.dice >= _MEANT
        weights = self.module(drawn.states + _STATE_NOISE * torch.randn_like(drawn.states))
        scores = torch.einsum("bnf,bf->bn", drawn.features, weights).masked_fill(~there, -torch.inf)
        likely = scores.log_softmax(1).masked_fill(~meant, -torch.inf).logsumexp(1)
        chosen = drawn.dice.gather(1, scores.argmax(1, keepdim=True))[:, 0]
        loss = -(likely * drawn.weight).sum() / drawn.weight.sum()
        return loss, {"dice": chosen.mean(), "best": drawn.dice.amax(1).mean()}

    def keep(self, seed: int, found: Sequence[Example]) -> None:
        """Keep what was found in a case."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(seed)
        arrays = {
            f"{name}_{i}": getattr(e, name) for i, e in enumerate(found) for name in ("state", "features", "dice")
        }
        # Written under the name of this process first: several may look at the same case.
        own = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(own, weights=np.array([e.weight for e in found]), **arrays)
        own.replace(path)

    def _examples(self, seed: int) -> list[Example]:
        if not self._path(seed).is_file():
            if self._reference is None:
                self._reference = ReferenceModel.load(self._reference_folder)
            rng = np.random.default_rng([seed, len(FEATURES)])
            self.keep(seed, list(examples(self._store.shown(seed), self._reference, rng)))
        with np.load(self._path(seed)) as kept:
            weights = kept["weights"].tolist()
            return [
                Example(kept[f"state_{i}"], kept[f"features_{i}"], kept[f"dice_{i}"], weight)
                for i, weight in enumerate(weights)
            ]

    def _path(self, seed: int) -> Path:
        return self._folder / f"{seed}.npz"


def compared(drawn: list[Example]) -> Compared:
    """Return requests as one batch; those without a proposal that shows what is meant teach nothing.

    Raises
    ------
    InvalidRequest
        When there is none that does.
    """
    useful = [e for e in drawn if e.dice.max() >= _MEANT]
    if not useful:
        raise InvalidRequest("Nothing that was asked for in these cases is seen: proposals need a trained checkpoint.")
    longest = max(len(e.dice) for e in useful)
    features = np.zeros((len(useful), longest, len(FEATURES)), np.float32)
    dice = np.full((len(useful), longest), -1.0, np.float32)
    for row, example in enumerate(useful):
        features[row, : len(example.dice)], dice[row, : len(example.dice)] = example.features, example.dice
    return Compared(
        torch.from_numpy(np.stack([e.state for e in useful])),
        torch.from_numpy(features),
        torch.from_numpy(dice),
        torch.tensor([e.weight for e in useful]),
    )


def examples(case: Case, reference: ReferenceModel, rng: np.random.Generator) -> Iterator[Example]:
    """Look for what can be asked for in a case and is there."""
    checkpoint, depth = reference.checkpoint, case.geometry.shape[0]
    spec, prompts = checkpoint.segmentation, checkpoint.language.prompts
    volume = case.volume(Window(*checkpoint.windows[spec.window]))
    tokens = reference.vision_tokens(volume)
    source = reference.slice_source(volume, spec.window)
    planes = case.planes(np.arange(depth), spec)
    for wanted in request_pool(case.truth):
        if not wanted.one_of_several and rng.random() >= _SHARES.get(wanted.stratum, 0.0):
            continue
        request = wanted.phrased(rng)
        meant = target_of(request, case)
        fill = prompts.for_label if request.by_class else prompts.for_text
        prompt = fill(request.text, volume.geometry.extent_mm)
        state = reference.language.seg_state(tokens, prompt, prompts.segment_answer)
        masks, scores = asyncio.run(_seen(reference, source, depth, state))
        finder = ProposalFinder(depth, PROPOSAL_RULE)
        for number in range(depth):
            finder.see(number, masks[number], scores[number])
        if found := finder.found():
            truth = np.isin(planes, meant.values)
            dice = [_dice(masks[key], truth[key]) for key in (int(p.scores.argmax()) for p in found)]
            form = "one of several" if wanted.one_of_several else wanted.stratum[0]
            yield Example(state, features_of(found), np.array(dice, np.float32), _WEIGHTS[form])


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
