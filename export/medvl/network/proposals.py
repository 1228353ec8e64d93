"""Which of several things a text means: proposals that SAM2 makes slice by slice, compared with one another in 3D.

SAM2 sees one slice at a time. For "the smaller cyst" it draws a cyst wherever one is, best of all the larger one. What
hangs together through the slices is a proposal; the [SEG] state says what counts in a comparison of proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from medvl.contracts.checkpoint import ProposalRule

FEATURES = (
    "score",
    "log_score",
    "log_volume",
    "some_larger",
    "some_smaller",
    *(f"{what}_{axis}" for what in ("centre", "off_centre", "log_extent") for axis in ("slice", "row", "column")),
)
"""What proposals are compared by, in the order of the weights; see :func:`features_of`."""
_CREDIBLE = 2.0
"""How fast a sum of scores of others counts as one that is there."""


@dataclass(frozen=True, eq=False)
class Proposal:
    """Parts of the masks of neighbouring slices that touch one another.

    Attributes
    ----------
    scores
        FP32 [D]: for each slice the score of its mask times the share of it that belongs to the proposal.
    volume
        Share of all cells.
    centre, extent
        FP32 [3], along slices, rows and columns of the fitted slices; shares of their lengths.
    """

    scores: NDArray[np.float32]
    volume: float
    centre: NDArray[np.float32]
    extent: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ProposalScorer:
    """Chooses the proposal that a [SEG] state means: a linear map of the state weighs what proposals are compared by.

    Attributes
    ----------
    weight, bias
        FP32 [F, H] and [F], F being :data:`FEATURES`.
    rule
        Of the checkpoint.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    rule: ProposalRule

    @classmethod
    def load(cls, path: Path, rule: ProposalRule) -> Self:
        """Read the weights of a checkpoint's ``proposals.safetensors``."""
        tensors = load_file(path)
        return cls(tensors["weight"].astype(np.float32), tensors["bias"].astype(np.float32), rule)

    def meant(self, proposals: Sequence[Proposal], seg_hidden: NDArray[np.float32]) -> Proposal:
        """Return the proposal that a [SEG] state FP32 [H] means; the first of equals."""
        weights = self.weight @ seg_hidden + self.bias
        return proposals[int((features_of(proposals) @ weights).argmax())]


def reach(
    meant: Proposal, proposals: Sequence[Proposal], key_slices: Sequence[int], min_score: float
) -> tuple[int, int]:
    """Return the first and the last slice about the key slices of a proposal up to which no other is in its place.

    Tracking would go on with what looks like it. Another one is in its place on a slice whose mask has no part of what
    is meant, where one of the others reaches ``min_score``. What has other parts beside it on its key slices, as a rib
    has, may be one thing with them: it reaches everywhere.
    """
    others = np.max([np.zeros_like(meant.scores), *(p.scores for p in proposals if p is not meant)], axis=0)
    alone = not others[list(key_slices)].any()
    taken = np.flatnonzero((meant.scores == 0.0) & (others >= min_score)) if alone else np.zeros(0, np.intp)
    first = taken[taken < min(key_slices)].max(initial=-1) + 1
    last = taken[taken > max(key_slices)].min(initial=len(meant.scores)) - 1
    return int(first), int(last)


def features_of(proposals: Sequence[Proposal]) -> NDArray[np.float32]:
    """Return what N proposals are compared by, FP32 [N, F].

    The score of a proposal is that of its best slice. ``some_larger`` and ``some_smaller`` tell how credible it is that
    there are others: 0 without any, near 1 where their scores add up to 1.
    """
    scores = np.array([p.scores.max() for p in proposals], np.float64)
    volumes = np.array([p.volume for p in proposals])
    larger, smaller = (compared @ scores for compared in (volumes > volumes[:, None], volumes < volumes[:, None]))
    centre = 2.0 * np.stack([p.centre for p in proposals]) - 1.0
    extent = np.stack([p.extent for p in proposals])
    columns = (
        scores[:, None],
        np.log(scores)[:, None],
        np.log(volumes)[:, None],
        np.tanh(_CREDIBLE * larger)[:, None],
        np.tanh(_CREDIBLE * smaller)[:, None],
        centre,
        centre**2,
        np.log(extent),
    )
    return np.asarray(np.concatenate(columns, axis=1), np.float32)
