"""What a click may expect of the mask that it corrects, where SAM2 does not do it by itself.

A positive click is in the mask. A slice that is only told what the object is not keeps to what it was. Distances are in
pixels of a fitted slice, up to ``heed_clicks_px`` of the checkpoint, because a mask has a quarter of its resolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from medvl.network.prompts import NEGATIVE, POSITIVE, PromptPoint


def positive(points: Sequence[PromptPoint]) -> bool:
    """Whether any of the points is a positive click."""
    return any(point.label == POSITIVE for point in points)


def heeded(mask: NDArray[np.bool_], points: Sequence[PromptPoint], side: int, within_px: float) -> bool:
    """Whether every click is on its side of a mask bool [S/4, S/4], or near it; corners of boxes say nothing.

    Parameters
    ----------
    side
        S, pixels of the slice, in which the points are.
    within_px
        Of the slice.
    """
    size = side // len(mask)
    away = {POSITIVE: _away_from(mask) * size, NEGATIVE: _away_from(~mask) * size}

    def place(pixel: float) -> int:
        # A click may lie on the very edge of the slice.
        return min(max(int(pixel) // size, 0), len(mask) - 1)

    return all(away[p.label][place(p.y), place(p.x)] <= within_px for p in points if p.label in away)


def unstrayed(mask: NDArray[np.bool_], last: NDArray[np.bool_], side: int, within_px: float) -> NDArray[np.bool_]:
    """Return what of a mask bool [S/4, S/4] is in or near the last one; arguments as of :func:`heeded`."""
    return mask & (_away_from(last) * (side // len(mask)) <= within_px)


def full(mask: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """Return a mask bool [S/4, S/4] at the size of the slice, bool [S, S]."""
    size = side // len(mask)
    return mask.repeat(size, 0).repeat(size, 1)


def _away_from(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return how far each place is from the nearest one of a mask; further than any other where it is empty."""
    if not mask.any():
        return np.full(mask.shape, np.inf, np.float32)
    return np.asarray(cv2.distanceTransform((~mask).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE))
