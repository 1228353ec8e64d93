"""What masks are cleaned of, how long they are, and where two of them differ."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from medvl.contracts.errors import InvalidRequest
from medvl.imaging.cleanup import Cleanup, filled, largest_component
from medvl.imaging.geometry import Geometry
from medvl.imaging.masks import changed_box, measure, occupied_slices, pack_mask, packed_slices, unpack_mask

SHAPE = (5, 7, 6)
GEOMETRY = Geometry(
    shape=SHAPE,
    spacing_mm=(2.5, 0.7, 0.9),
    origin_mm=(1.0, 2.0, 3.0),
    direction=((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
)


def masks(shares: tuple[float, ...] = (0.05, 0.3, 0.6)) -> st.SearchStrategy[np.ndarray]:
    """Random masks of SHAPE, from few voxels to many."""
    draw = st.tuples(st.integers(0, 2**32 - 1), st.sampled_from(shares))
    return draw.map(lambda s: np.random.default_rng(s[0]).random(SHAPE) < s[1])


def parts(mask: np.ndarray) -> list[set[tuple[int, ...]]]:
    """Return the parts whose voxels share faces, by walking from voxel to voxel."""
    left, found = {tuple(v) for v in np.argwhere(mask).tolist()}, []
    while left:
        part, edge = set(), [left.pop()]
        while edge:
            voxel = edge.pop()
            part.add(voxel)
            for axis in range(3):
                for step in (-1, 1):
                    beside = tuple(v + step * (a == axis) for a, v in enumerate(voxel))
                    if beside in left:
                        left.remove(beside)
                        edge.append(beside)
        found.append(part)
    return found


@given(masks())
def test_the_largest_part_stays(mask):
    """As large as any, one of them, and nothing else."""
    kept = {tuple(v) for v in np.argwhere(largest_component(mask)).tolist()}
    every = parts(mask)
    assert len(kept) == max(map(len, every), default=0)
    assert kept in every or not every


@given(masks())
def test_what_is_enclosed_is_filled(mask):
    """Every part of the background that does not reach the edge of the volume, and nothing else."""
    expected = mask.copy()
    for part in parts(~mask):
        if not any(v in {0, n - 1} for voxel in part for v, n in zip(voxel, SHAPE, strict=True)):
            expected[tuple(np.array(sorted(part)).T)] = True
    assert np.array_equal(filled(mask), expected)


def test_a_cleanup_keeps_first_and_fills_then():
    """A hole in a part that goes is not filled; without anything to do the mask comes back."""
    mask = np.zeros(SHAPE, bool)
    mask[0:3, 0:4, 0:4] = True
    mask[1, 1, 1] = False
    mask[4, 6, 5] = True
    cleaned = Cleanup(largest_component=True, fill_holes=True)(mask)
    assert (cleaned.sum(), cleaned[1, 1, 1], cleaned[4, 6, 5]) == (48, True, False)
    assert not Cleanup()
    assert Cleanup()(mask) is mask


@settings(max_examples=60)
@given(masks())
def test_diameters_are_those_of_the_farthest_voxels(mask):
    """In a slice and through all slices, between centres plus a voxel's width along the line: by trying all pairs."""
    if not mask.any():
        return
    places = np.argwhere(mask)
    between = np.abs(places[:, None] - places[None]) * GEOMETRY.spacing_mm
    length = np.linalg.norm(between, axis=-1)
    along = np.divide(between @ np.array(GEOMETRY.spacing_mm), length, out=np.full_like(length, 0.9), where=length > 0)
    flat = places[:, None, 0] == places[None, :, 0]
    found = measure(mask, GEOMETRY)
    assert found.diameter_3d_mm >= found.diameter_mm
    for value, among in ((found.diameter_mm, flat), (found.diameter_3d_mm, np.ones_like(flat))):
        # Among pairs of nearly the same distance the width may decide.
        assert length[among].max() < value <= (length + along)[among].max() + 1e-9
        assert value >= (length + along)[among & (length >= length[among].max() - 1e-9)].min() - 1e-9


def test_a_sphere_is_as_long_as_it_is_wide():
    """Whatever the spacing; many pairs of slices are nearly as far apart as the farthest."""
    geometry = Geometry((60, 200, 200), (2.0, 0.5, 0.5), (0.0, 0.0, 0.0), GEOMETRY.direction)
    z, y, x = np.ogrid[:60, :200, :200]
    sphere = ((z - 30) * 2.0) ** 2 + ((y - 100) * 0.5) ** 2 + ((x - 100) * 0.5) ** 2 < 45.0**2
    assert measure(sphere, geometry).diameter_3d_mm == pytest.approx(90.0, abs=2.5)
    assert measure(sphere, geometry).diameter_mm == pytest.approx(90.0, abs=1.0)


@given(masks(), masks((0.0, 0.01, 0.3)))
def test_the_changed_box_holds_every_difference(mask, difference):
    """And is no larger; without a difference there is none."""
    box = changed_box(pack_mask(mask), pack_mask(mask ^ difference), SHAPE)
    places = np.argwhere(difference)
    assert box == (None if not len(places) else (tuple(places.min(0).tolist()), tuple(places.max(0).tolist())))


@given(masks((0.0, 0.01, 0.3)))
def test_a_mask_is_taken_apart_into_the_slices_that_have_a_voxel(mask):
    """Each is packed as a mask of one slice; slices here do not begin with whole bytes."""
    packed, expected = pack_mask(mask), np.flatnonzero(mask.any((1, 2))).tolist()
    found = packed_slices(packed, SHAPE)
    assert occupied_slices(packed, SHAPE) == list(found) == expected
    assert all(np.array_equal(unpack_mask(own, (1, *SHAPE[1:]))[0], mask[number]) for number, own in found.items())


def frame(claimed_bytes: int, runs: int, run_bytes: int = 2**17) -> bytes:
    """Return a zstd frame (RFC 8878) that claims a size and holds runs of one byte, each written in four."""
    last, run_of_one_byte = 1, 1 << 1
    head = b"\x28\xb5\x2f\xfd\xe0" + claimed_bytes.to_bytes(8, "little")
    blocks = [(run_bytes << 3 | run_of_one_byte | (last * (i == runs - 1))).to_bytes(3, "little") for i in range(runs)]
    return head + b"".join(block + b"\x01" for block in blocks)


def test_a_tiny_frame_that_holds_gigabytes_is_refused():
    """By what it claims, before memory is taken; and what claims to be a mask holds no more than one."""
    own = -(-int(np.prod(SHAPE)) // 8)
    assert unpack_mask(frame(own, 1, own), SHAPE).any()
    with pytest.raises(InvalidRequest, match="does not hold the 210 voxels"):
        unpack_mask(frame(2**40, 2**23 // 2**17), SHAPE)
    with pytest.raises(InvalidRequest, match="damaged"):
        unpack_mask(frame(own, 2**23 // 2**17), SHAPE)
    unsaid = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(own))
    with pytest.raises(InvalidRequest, match="does not hold the 210 voxels"):
        unpack_mask(unsaid, SHAPE)
