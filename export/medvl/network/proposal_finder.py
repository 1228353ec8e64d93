"""Proposals are found: masks of single slices, taken apart into what hangs together in 3D."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from medvl.contracts.checkpoint import ProposalRule
from medvl.imaging.cleanup import join, root
from medvl.network.proposals import Proposal


class ProposalFinder:
    """What a text's masks show, gathered slice by slice from below.

    Parameters
    ----------
    depth
        Slices of the volume.
    rule
        Of the checkpoint.
    """

    def __init__(self, depth: int, rule: ProposalRule) -> None:
        self._depth = depth
        self._rule = rule
        self._parents = [0]
        self._parts: list[tuple[float, ...]] = []
        """Of each number from 1 on: slice, score, cells, centre and both ends along rows and columns."""
        self._below: tuple[int, NDArray[np.int32]] | None = None
        self._size = 1

    def see(self, number: int, mask: NDArray[np.bool_], score: float) -> None:
        """Take the mask bool [f_4, f_4] of the next slice and its score."""
        self._size = len(mask)
        if score < self._rule.min_score or not mask.any():
            return
        _, own, stats, centres = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
        shares = stats[1:, cv2.CC_STAT_AREA] / np.count_nonzero(mask)
        kept = np.flatnonzero(shares >= self._rule.min_share) + 1
        renamed = np.zeros(len(stats), np.int32)
        renamed[kept] = len(self._parents) + np.arange(len(kept))
        for row, (column_centre, row_centre) in zip(stats[kept], centres[kept], strict=True):
            column, line, width, height, cells = row.tolist()
            ends = (line, line + height, column, column + width)
            part_score = score * cells / np.count_nonzero(mask)
            self._parts.append((number, part_score, cells, row_centre + 0.5, column_centre + 0.5, *ends))
            self._parents.append(len(self._parents))
        labels = renamed[own]
        if self._below is not None and self._below[0] == number - 1:
            join(self._parents, self._below[1], labels)
        self._below = number, labels

    def found(self) -> list[Proposal]:
        """Return the proposals, those that begin lowest first."""
        roots = np.array([root(self._parents, number) for number in range(1, len(self._parents))])
        parts = np.array(self._parts, np.float64)
        return [self._proposal(parts[roots == one]) for one in np.unique(roots)]

    def _proposal(self, parts: NDArray[np.float64]) -> Proposal:
        numbers, scores, cells, rows, columns, *ends = parts.T
        lengths = np.array([self._depth, self._size, self._size])
        per_slice = np.bincount(numbers.astype(int), scores, self._depth)
        centre = [np.average(at, weights=cells) for at in (numbers + 0.5, rows, columns)]
        first_row, last_row, first_column, last_column = ends
        extent = (np.ptp(numbers) + 1, last_row.max() - first_row.min(), last_column.max() - first_column.min())
        return Proposal(
            per_slice.astype(np.float32),
            float(cells.sum() / lengths.prod()),
            (centre / lengths).astype(np.float32),
            (extent / lengths).astype(np.float32),
        )
