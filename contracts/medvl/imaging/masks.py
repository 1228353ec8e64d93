"""Masks as they travel, and what is measured on them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import zstandard
from numpy.typing import NDArray

from medvl.contracts.errors import InvalidRequest
from medvl.imaging.geometry import Geometry, Triple

_ZSTD_LEVEL = 1
_Index = tuple[int, int, int]
_OTHERS = ((1, 2), (0, 2), (0, 1))
"""The other axes of each axis."""


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
    diameter_3d_mm
        The same through all slices.
    centroid_lps_mm
        Mean position in LPS millimetres; None for an empty mask.
    box_min, box_max
        First and last slice, row and column that hold a voxel; None for an empty mask.
    """

    voxels: int
    volume_mm3: float
    diameter_mm: float
    diameter_3d_mm: float
    centroid_lps_mm: Triple | None
    box_min: _Index | None
    box_max: _Index | None


def pack_mask(mask: NDArray[np.bool_]) -> bytes:
    """Return a mask bool [D, R, C] as bits in C order, most significant first, compressed by zstd."""
    return pack_bits(np.packbits(mask.reshape(-1)))


def pack_bits(bits: NDArray[np.uint8]) -> bytes:
    """Return the bits of a mask, uint8 in C order, as :func:`pack_mask` packs the mask."""
    compressed = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(bits.data)
    # Those bytes keep the memory that the worst case would have taken, more than the bits; a copy keeps its length.
    return bytes(memoryview(compressed))


def unpack_mask(packed: bytes, shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Return a mask bool [D, R, C] that :func:`pack_mask` packed.

    Raises
    ------
    InvalidRequest
        When the bytes are not one zstd frame with exactly the bits of that shape; what a frame claims to hold is
        checked before anything is allocated.
    """
    return np.unpackbits(unpack_bits(packed, shape), count=math.prod(shape)).view(np.bool_).reshape(shape)


def unpack_bits(packed: bytes, shape: _Index) -> NDArray[np.uint8]:
    """Return the bits of a packed mask, uint8 in C order, most significant first.

    Raises
    ------
    InvalidRequest
        As :func:`unpack_mask`.
    """
    check_packed(packed, shape)
    voxels = math.prod(shape)
    try:
        bits = zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError:
        raise InvalidRequest("The packed mask is damaged: pack it again.") from None
    if len(bits) != -(-voxels // 8):
        raise InvalidRequest(f"The packed mask does not hold the {voxels} voxels of its volume.")
    return np.frombuffer(bits, np.uint8)


def occupied_slices(packed: bytes, shape: _Index) -> list[int]:
    """Return the slices on which a packed mask [D, R, C] has a voxel, ascending.

    Like :func:`packed_slices` it holds the bits of the mask meanwhile, an eighth of its voxels.

    Raises
    ------
    InvalidRequest
        As :func:`unpack_mask`.
    """
    return [number for number, _ in _planes(unpack_bits(packed, shape), shape)]


def packed_slices(packed: bytes, shape: _Index) -> dict[int, bytes]:
    """Return the slices on which a packed mask [D, R, C] has a voxel, each packed as a mask [1, R, C].

    Raises
    ------
    InvalidRequest
        As :func:`unpack_mask`.
    """
    return {number: pack_mask(plane[None]) for number, plane in _planes(unpack_bits(packed, shape), shape)}


def changed_box(one: bytes, other: bytes, shape: _Index) -> tuple[_Index, _Index] | None:
    """Return first and last slice, row and column in which two packed masks of a shape differ, None if nowhere.

    Raises
    ------
    InvalidRequest
        As :func:`unpack_mask`.
    """
    differs = unpack_bits(one, shape) ^ unpack_bits(other, shape)
    rows, columns = np.zeros(shape[1], np.bool_), np.zeros(shape[2], np.bool_)
    slices = []
    for number, plane in _planes(differs, shape):
        slices.append(number)
        rows |= plane.any(axis=1)
        columns |= plane.any(axis=0)
    if not slices:
        return None
    (top, bottom), (left, right) = (np.flatnonzero(span)[[0, -1]].tolist() for span in (rows, columns))
    return (slices[0], top, left), (slices[-1], bottom, right)


def _planes(bits: NDArray[np.uint8], shape: _Index) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Yield the slices bool [R, C] that have a voxel with their numbers; one need not begin with a whole byte."""
    voxels = shape[1] * shape[2]
    for number in range(shape[0]):
        byte, skipped = divmod(number * voxels, 8)
        own = bits[byte : byte + (skipped + voxels + 7) // 8]
        # Most slices are empty, and bits are looked at faster than they are unpacked.
        if own.any():
            plane = np.unpackbits(own, count=skipped + voxels)[skipped:].view(np.bool_).reshape(shape[1:])
            if plane.any():
                yield number, plane


def _box(mask: NDArray[np.bool_]) -> tuple[_Index, _Index]:
    """Return first and last slice, row and column of a mask that is not empty."""
    spans = [np.flatnonzero(mask.any(axis=axes)) for axes in _OTHERS]
    low, high = (tuple(int(span[end]) for span in spans) for end in (0, -1))
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


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
        raise InvalidRequest("The packed mask is damaged: pack it again.") from None
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
    if not mask.any():
        return MaskStats(0, 0.0, 0.0, 0.0, None, None, None)
    low, high = _box(mask)
    inside = mask[low[0] : high[0] + 1, low[1] : high[1] + 1, low[2] : high[2] + 1]
    voxels = int(np.count_nonzero(inside))
    x, y, z = (float(v) for v in geometry.index_to_lps(_centroid(inside, voxels) + low))
    diameter_mm, diameter_3d_mm = _diameters_mm(inside, geometry.spacing_mm)
    return MaskStats(
        voxels=voxels,
        volume_mm3=voxels * geometry.voxel_volume_mm3,
        diameter_mm=diameter_mm,
        diameter_3d_mm=diameter_3d_mm,
        centroid_lps_mm=(x, y, z),
        box_min=low,
        box_max=high,
    )


def _centroid(mask: NDArray[np.bool_], voxels: int) -> NDArray[np.float64]:
    """Return the mean index (d, r, c) of a mask's voxels."""
    sums = (np.count_nonzero(mask, axis=axes) @ np.arange(n) for axes, n in zip(_OTHERS, mask.shape, strict=True))
    return np.array([s / voxels for s in sums])


def _diameters_mm(mask: NDArray[np.bool_], spacing_mm: Triple) -> tuple[float, float]:
    """Return the longest extent within a slice, and through all slices, of a mask that is not empty.

    Two voxels that lie farthest apart lie on the convex hulls of their slices. Pairs of slices are looked at in the
    order of the distance that circles around their hulls allow, until none can hold a longer one.
    """
    hulls = [_hull_mm(number, plane, spacing_mm) for number, plane in enumerate(mask) if plane.any()]
    in_plane_mm = max(_extent_mm(hull, hull, spacing_mm) for hull in hulls)
    middles = np.array([(hull.min(0) + hull.max(0)) / 2 for hull in hulls])
    radii_mm = np.array([np.linalg.norm(hull - m, axis=1).max() for hull, m in zip(hulls, middles, strict=True)])
    first, second = np.triu_indices(len(hulls))
    across, rows, columns = np.abs(middles[first] - middles[second]).T
    most_mm = np.hypot(across, np.hypot(rows, columns) + radii_mm[first] + radii_mm[second])
    width_mm = float(np.linalg.norm(spacing_mm))
    longest_mm = in_plane_mm
    for pair in np.argsort(-most_mm):
        if most_mm[pair] + width_mm <= longest_mm:
            break
        longest_mm = max(longest_mm, _extent_mm(hulls[first[pair]], hulls[second[pair]], spacing_mm))
    return in_plane_mm, longest_mm


def _hull_mm(number: int, plane: NDArray[np.bool_], spacing_mm: Triple) -> NDArray[np.float64]:
    """Return the corners of the convex hull of a slice's voxels: slice, row and column, in mm from the first voxel."""
    corners = cv2.convexHull(cv2.findNonZero(np.ascontiguousarray(plane).view(np.uint8)))[:, 0, ::-1]
    hull: NDArray[np.float64] = np.insert(corners.astype(np.float64), 0, number, axis=1) * spacing_mm
    return hull


def _extent_mm(one: NDArray[np.float64], other: NDArray[np.float64], spacing_mm: Triple) -> float:
    """Return the longest distance between two sets of voxels, plus a voxel's width along it."""
    between = one[:, None] - other[None]
    distance_mm = np.linalg.norm(between, axis=-1)
    farthest = np.unravel_index(int(distance_mm.argmax()), distance_mm.shape)
    length_mm = float(distance_mm[farthest])
    along = np.abs(between[farthest]) / length_mm if length_mm else np.array([0.0, 0.0, 1.0])
    return length_mm + float(along @ np.array(spacing_mm))


def most_interior(plane: NDArray[np.bool_]) -> tuple[int, int]:
    """Return row and column of the pixel of a mask [R, C] that lies deepest inside it; the first of equals."""
    # A border of background, so that the edge of the image counts as an edge.
    depth = cv2.distanceTransform(np.pad(plane, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    row, column = np.unravel_index(int(depth[1:-1, 1:-1].argmax()), plane.shape)
    return int(row), int(column)
