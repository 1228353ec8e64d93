"""The mask of a slice from its low-resolution logits, its edges where the slice has them.

SAM2 says where an object is on a grid of a quarter of the slice, which is most of what a small object has. Where a
checkpoint asks for it, each pixel near the edge is given to the side whose grey values about it it is like: the means
and variances of both sides, weighted by how likely each pixel is inside, as in the localised region-based active
contours of Lankton and Tannenbaum (IEEE TIP 17(11), 2008), but with the logits as prior instead of a curve's length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from medvl.contracts.checkpoint import EdgeRule
from medvl.imaging.resample import FitTransform

_ROUNDS = 2
"""The sides are told apart anew by what the first round found."""
_PRIOR, _EVIDENCE, _MOST_EVIDENCE = 0.5, 2.0, 4.0
"""What logits and the log likelihood ratio of a pixel count, and the most of the latter."""
_APART = 1.5
"""Squared distance of the means of both sides, in variances, from which a grey value is believed; less than that counts
in proportion."""
_LEAST_SHARE = 0.002
"""Of a neighbourhood, for a side to be known there."""

Slice = NDArray[np.uint8]
Values = NDArray[np.float32]


@dataclass(frozen=True)
class SliceMasks:
    """Makes the masks of one series.

    Attributes
    ----------
    transform
        How its slices lie in SAM2's square.
    plane
        Returns a slice by number as SAM2 sees it, UINT8 [S, S].
    edges
        How masks follow the edges of slices, if they do.
    """

    transform: FitTransform
    plane: Callable[[int], Slice]
    edges: EdgeRule | None

    def __call__(self, number: int, mask_logits: Values) -> NDArray[np.bool_]:
        """Return the mask bool [R, C] of one object on a slice from its logits FP32 [f_4, f_4]."""
        return slice_mask(mask_logits, self.transform, self.plane(number), self.edges)


def slice_mask(mask_logits: Values, transform: FitTransform, plane: Slice, edges: EdgeRule | None) -> NDArray[np.bool_]:
    """Return the mask bool [R, C] of one object on one slice, interpolated as logits, then cut at 0.

    Parameters
    ----------
    mask_logits
        FP32 [f_4, f_4].
    transform
        How the slice lies in SAM2's square.
    plane
        The slice as SAM2 sees it, UINT8 [S, S].
    edges
        How its edges are followed; None leaves the mask to SAM2.
    """
    if edges is not None and (mask_logits > 0).any():
        whole = cv2.resize(mask_logits, plane.shape, interpolation=cv2.INTER_LINEAR)
        height, width = transform.fitted_shape
        whole[:height, :width] = followed(whole[:height, :width], plane[:height, :width], edges)
        mask_logits = whole
    inside: NDArray[np.bool_] = transform.to_source(mask_logits) > 0
    return inside


def followed(logits: Values, plane: Slice, rule: EdgeRule) -> Values:
    """Return logits FP32 [h, w] of which the sign changes where the edge of a slice UINT8 [h, w] is elsewhere.

    What is further from their own edge than the rule allows keeps its sign. A mask does not vanish.
    """
    inside = logits > 0
    if inside.all() or not inside.any():
        return logits
    part = _around(inside, math.ceil(rule.within_px + 3 * rule.sigma_px))
    prior, grey, inside = _PRIOR * logits[part], plane[part].astype(np.float32), inside[part]
    total, squares = cv2.split(_blurred(cv2.merge([grey, grey * grey]), rule.sigma_px))
    found = prior
    for _ in range(_ROUNDS):
        found = prior + _EVIDENCE * _evidence(found, grey, total, squares, rule)
    smooth = cv2.medianBlur((found > 0).view(np.uint8), 3).view(np.bool_)
    changed = np.where(_from_edge(inside) <= rule.within_px, smooth, inside)
    if not changed.any():
        return logits
    result = logits.copy()
    result[part] = np.where(changed == inside, logits[part], np.where(changed, 1.0, -1.0) * np.abs(found))
    return result


def _evidence(logits: Values, grey: Values, total: Values, squares: Values, rule: EdgeRule) -> Values:
    """Return the log likelihood ratio of each pixel's grey value between the sides about it."""
    share = 1.0 / (1.0 + np.exp(-logits.clip(-20.0, 20.0)))
    own = cv2.split(_blurred(cv2.merge([share, share * grey, share * grey * grey]), rule.sigma_px))
    others = 1.0 - own[0], total - own[1], squares - own[2]
    (mean, variance), (other_mean, other_variance) = (_moments(*side) for side in (own, others))
    noise = rule.noise**2
    # Of either side's variance alone, a side of two kinds of tissue would take or lose all that is like one of them.
    both = np.sqrt(variance * other_variance) + noise
    ratio = ((grey - other_mean) ** 2 - (grey - mean) ** 2) / (2.0 * both)
    apart = (mean - other_mean) ** 2 / (np.maximum(variance, other_variance) + noise)
    known = np.minimum(own[0], others[0]) > _LEAST_SHARE
    evidence: Values = (ratio * np.minimum(apart / _APART, 1.0) * known).clip(-_MOST_EVIDENCE, _MOST_EVIDENCE)
    return evidence


def _moments(weight: Values, total: Values, squares: Values) -> tuple[Values, Values]:
    weight = np.maximum(weight, 1e-4)
    mean = total / weight
    return mean, np.maximum(squares / weight - mean * mean, 0.0)


def _blurred(values: Values, sigma_px: float) -> Values:
    blurred: Values = cv2.GaussianBlur(values, (0, 0), sigma_px, borderType=cv2.BORDER_REPLICATE)
    return blurred


def _around(mask: NDArray[np.bool_], margin: int) -> tuple[slice, slice]:
    """Return the rows and columns of a mask that is not empty, with a margin."""
    rows, columns = (
        slice(max(0, int(at[0]) - margin), int(at[-1]) + margin + 1)
        for at in (np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0)))
    )
    return rows, columns


def _from_edge(mask: NDArray[np.bool_]) -> Values:
    """Return how far each pixel is from the other side of a mask."""
    distances = [cv2.distanceTransform(side.view(np.uint8), cv2.DIST_L2, 5) for side in (mask, ~mask)]
    from_edge: Values = distances[0] + distances[1]
    return from_edge
