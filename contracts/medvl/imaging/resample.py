"""Volumes and slices at the sizes that networks take, and points that follow them.

One convention throughout, that of ``align_corners=False``: index i of a source axis with n voxels is the centre of the
cell [i, i + 1) of a line of length n, so an axis scaled by s takes index i to (i + 0.5) * s - 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from medvl.contracts.errors import InvalidRequest

Fit = Literal["pad", "stretch"]


def to_grid(hu: NDArray[np.int16], shape: tuple[int, int, int]) -> NDArray[np.float16]:
    """Resample a volume to a fixed number of voxels, trilinearly without a smoothing filter.

    Two slices are blended for each target slice, then the plane is scaled bilinearly. That equals torch's
    ``interpolate(mode="trilinear", align_corners=False)`` to the rounding of float16.

    Parameters
    ----------
    hu
        int16 [D, R, C] in HU.
    shape
        Target d, h, w.

    Returns
    -------
    NDArray[np.float16]
        [d, h, w] in HU, the type that the vision encoder takes; steps of 1 HU between 1024 and 2048, of 2 HU above.
    """
    depth, height, width = shape
    grid = np.empty(shape, np.float16)
    positions = np.clip((np.arange(depth) + 0.5) * (hu.shape[0] / depth) - 0.5, 0, hu.shape[0] - 1)
    for target, position in enumerate(positions):
        below = int(position)
        above = min(below + 1, hu.shape[0] - 1)
        weight = float(position - below)
        plane = cv2.addWeighted(hu[below], 1.0 - weight, hu[above], weight, 0.0, dtype=cv2.CV_32F)
        grid[target] = cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR)
    return grid


@dataclass(frozen=True)
class FitTransform:
    """How a slice of ``rows`` x ``cols`` pixels lies in a model's ``side`` x ``side`` square.

    ``stretch`` scales both axes to the side. ``pad`` scales the longer axis to the side, keeps the aspect ratio in
    pixels, and leaves black below or to the right. Points are (x, y): column first. On the source whole numbers are
    pixel centres; on the model's square pixel centres lie at +0.5, as the networks count.

    Raises
    ------
    InvalidRequest
        When a length is not positive.
    """

    rows: int
    cols: int
    side: int
    fit: Fit

    def __post_init__(self) -> None:
        if min(self.rows, self.cols, self.side) < 1:
            raise InvalidRequest("A slice and the square that it is fitted to need at least one pixel.")

    @property
    def fitted_shape(self) -> tuple[int, int]:
        """Rows and columns of the square that the slice covers."""
        if self.fit == "stretch":
            return self.side, self.side
        longer = max(self.rows, self.cols)
        return max(1, round(self.rows * self.side / longer)), max(1, round(self.cols * self.side / longer))

    def to_model_xy(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """Return model pixels [..., 2] (x, y; centres at +0.5) of source points [..., 2] (column, row indices)."""
        return (np.asarray(points, np.float64) + 0.5) * self._scale_xy

    def to_model(self, plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a slice uint8 [rows, cols] as uint8 [side, side]; smoothed over its pixels where it shrinks."""
        height, width = self.fitted_shape
        shrinks = height < self.rows or width < self.cols
        fitted = cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        square = np.zeros((self.side, self.side), np.uint8)
        square[:height, :width] = fitted
        return square

    def to_source(self, plane: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return values on the model's square, such as logits [n, n] of any n, on the source's pixels [rows, cols]."""
        height, width = self.fitted_shape
        square = plane
        if self.fit == "pad" and plane.shape != (self.side, self.side):
            square = cv2.resize(plane, (self.side, self.side), interpolation=cv2.INTER_LINEAR)
        covered = square[:height, :width] if self.fit == "pad" else square
        restored: NDArray[np.float32] = cv2.resize(covered, (self.cols, self.rows), interpolation=cv2.INTER_LINEAR)
        return restored

    def mask_to_model(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return a mask bool [rows, cols] as bool [side, side]: pixels of which it covers half, or any if none is."""
        square = self.to_model(mask.astype(np.uint8) * 255)
        covered: NDArray[np.bool_] = square >= 128
        return covered if covered.any() else square > 0

    @property
    def _scale_xy(self) -> NDArray[np.float64]:
        height, width = self.fitted_shape
        return np.array([width / self.cols, height / self.rows])


def fit_slices(slices: NDArray[np.uint8], side: int, fit: Fit) -> NDArray[np.uint8]:
    """Return windowed slices uint8 [D, R, C] as squares uint8 [D, side, side]; see :class:`FitTransform`."""
    _, rows, cols = slices.shape
    transform = FitTransform(rows, cols, side, fit)
    if transform.fitted_shape == (rows, cols) == (side, side):
        return np.ascontiguousarray(slices)
    fitted = np.empty((len(slices), side, side), np.uint8)
    for index, plane in enumerate(slices):
        fitted[index] = transform.to_model(plane)
    return fitted
