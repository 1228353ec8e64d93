"""Masks as they travel, and what is measured on them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import zstandard
from numpy.typing import NDArray

from medvl.contracts.errors import InvalidRequest
from medvl.imaging.geometry import Geometry, Triple

_ZSTD_LEVEL = 1
_Index = tuple[int, int, int]


@dataclass(frozen=True)
class MaskStats:
    """Measurements of a mask.

    Attributes
    ----------
    voxels, volume_mm3
        Size.
    diameter_mm
        Longest distance within one slice between the centres of two voxels of the mask, plus one voxel's width along
        it, so that a single voxel has its own width.
    centroid_lps_mm
        Mean position in LPS millimetres; None for an empty mask.
    box_min, box_max
        First and last slice, row and column that hold a voxel; None for an empty mask.
    """

    voxels: int
    volume_mm3: float
    diameter_mm: float
    centroid_lps_mm: Triple | None
    box_min: _Index | None
    box_max: _Index | None


def pack_mask(mask: NDArray[np.bool_]) -> bytes:
    """Return a mask bool [D, R, C] as bits in C order, most significant first, compressed by zstd."""
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(np.packbits(mask.reshape(-1)).data)


def unpack_mask(packed: bytes, shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Return a mask bool [D, R, C] that :func:`pack_mask` packed.

    Raises
    ------
    InvalidRequest
        When the bytes are not one zstd frame with exactly the bits of that shape; what a frame claims to hold is
        checked before anything is allocated.
    """
    check_packed(packed, shape)
    voxels = math.prod(shape)
    try:
        bits = zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError:
        raise InvalidRequest("The packed mask is damaged.") from None
    if len(bits) != -(-voxels // 8):
        raise InvalidRequest(f"The packed mask does not hold the {voxels} voxels of its volume.")
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=voxels).view(np.bool_).reshape(shape)


def check_packed(packed: bytes, shape: tuple[int, int, int]) -> None:
    """Check what a packed mask claims to hold, without unpacking it.

    Raises
    ------
    InvalidRequest
        When that is not a mask of the shape.
    """
    voxels = math.prod(shape)
    try:
        claimed = zstandard.frame_content_size(packed)
    except zstandard.ZstdError:
        raise InvalidRequest("The packed mask is damaged.") from None
    if claimed != -(-voxels // 8):
        raise InvalidRequest(f"The packed mask does not hold the {voxels} voxels of its volume.")


def measure(mask: NDArray[np.bool_], geometry: Geometry) -> MaskStats:
    """Measure a mask bool [D, R, C] on the grid of a volume.

    Raises
    ------
    InvalidRequest
        When the mask does not have the grid's shape.
    """
    if mask.shape != geometry.shape:
        raise InvalidRequest(f"The mask's shape {list(mask.shape)} is not {list(geometry.shape)}, that of the volume.")
    spans = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    if not len(spans[0]):
        return MaskStats(0, 0.0, 0.0, None, None, None)
    low, high = ([int(span[end]) for span in spans] for end in (0, -1))
    inside = mask[low[0] : high[0] + 1, low[1] : high[1] + 1, low[2] : high[2] + 1]
    voxels = int(np.count_nonzero(inside))
    x, y, z = (float(v) for v in geometry.index_to_lps(_centroid(inside, voxels) + low))
    return MaskStats(
        voxels=voxels,
        volume_mm3=voxels * geometry.voxel_volume_mm3,
        diameter_mm=_diameter_mm(inside, geometry.spacing_mm[1:]),
        centroid_lps_mm=(x, y, z),
        box_min=(low[0], low[1], low[2]),
        box_max=(high[0], high[1], high[2]),
    )


def _centroid(mask: NDArray[np.bool_], voxels: int) -> NDArray[np.float64]:
    """Return the mean index (d, r, c) of a mask's voxels."""
    sums = (np.count_nonzero(mask, axis=axes) @ np.arange(n) for axes, n in zip(_OTHERS, mask.shape, strict=True))
    return np.array([s / voxels for s in sums])


_OTHERS = ((1, 2), (0, 2), (0, 1))


def _diameter_mm(mask: NDArray[np.bool_], spacing_mm: tuple[float, ...]) -> float:
    return max(_plane_diameter_mm(plane, spacing_mm) for plane in mask)


def _plane_diameter_mm(plane: NDArray[np.bool_], spacing_mm: tuple[float, ...]) -> float:
    """Return the longest extent of a slice of a mask; two voxels that lie farthest apart lie on its convex hull."""
    points = cv2.findNonZero(plane.view(np.uint8))
    if points is None:
        return 0.0
    hull = cv2.convexHull(points)[:, 0, ::-1] * np.array(spacing_mm)
    between = hull[:, None] - hull[None]
    distance_mm = np.linalg.norm(between, axis=-1)
    farthest = np.unravel_index(int(distance_mm.argmax()), distance_mm.shape)
    length_mm = float(distance_mm[farthest])
    along = np.abs(between[farthest]) / length_mm if length_mm else np.array([0.0, 1.0])
    return length_mm + float(along @ np.array(spacing_mm))


def most_interior(plane: NDArray[np.bool_]) -> tuple[int, int]:
    """Return row and column of the pixel of a mask [R, C] that lies deepest inside it; the first of equals."""
    # A border of background, so that the edge of the image counts as an edge.
    depth = cv2.distanceTransform(np.pad(plane, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    row, column = np.unravel_index(int(depth[1:-1, 1:-1].argmax()), plane.shape)
    return int(row), int(column)
