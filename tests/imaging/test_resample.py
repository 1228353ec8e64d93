"""Volumes and slices at the sizes of networks lie where they lay, and so do points on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medvl.contracts.errors import InvalidRequest
from medvl.imaging.resample import Fit, FitTransform, fit_slices, to_grid

RAMP_HU = np.array([0, 100, 200, 300], np.int16)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize(
    ("wanted", "hu"),
    [
        (2, [50, 250]),  # halfway between two and two
        (3, [100 / 6, 150, 300 - 100 / 6]),  # at 1/6, 3/2 and 17/6
        (4, [0, 100, 200, 300]),
        (8, [0, 25, 75, 125, 175, 225, 275, 300]),  # at quarters; beyond the last centre nothing is guessed
        (1, [150]),
    ],
)
def test_a_ramp_stays_a_ramp(axis: int, wanted: int, hu: list[float]):
    """Along each axis: the cells of the new grid share out the old grid's length, each takes what its centre shows."""
    shape, expected_shape = [1, 1, 1], [1, 1, 1]
    shape[axis], expected_shape[axis] = len(RAMP_HU), wanted
    grid = to_grid(RAMP_HU.reshape(shape), tuple(expected_shape))
    assert (grid.dtype, grid.shape) == (np.float16, tuple(expected_shape))
    assert grid.ravel() == pytest.approx(np.array(hu), abs=0.1)


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((5, 7, 9), (4, 6, 8)), ((3, 5, 4), (8, 9, 7)), ((7, 4, 9), (3, 11, 5)), ((9, 8, 7), (2, 3, 2)), ((2, 3, 4),) * 2],
)
def test_a_grid_is_that_of_torch(shape: tuple[int, int, int], wanted: tuple[int, int, int]):
    """Trilinear, of voxels that know nothing of their neighbours, to the rounding of float16."""
    hu = np.random.default_rng(0).integers(-1024, 3072, shape).astype(np.int16)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(hu)[None, None].double(), wanted, mode="trilinear", align_corners=False
    )
    assert np.allclose(to_grid(hu, wanted), expected[0, 0].numpy(), rtol=2**-11, atol=0.05)


@pytest.mark.parametrize(
    ("fit", "points"),
    [
        # Both axes are twice as long, and black lies below.
        ("pad", {(0, 0): (1, 1), (7, 3): (15, 7), (2.5, 1.5): (6, 4), (-0.5, -0.5): (0, 0), (7.5, 3.5): (16, 8)}),
        # Columns are twice, rows four times as far apart.
        ("stretch", {(0, 0): (1, 2), (7, 3): (15, 14), (2.5, 1.5): (6, 8), (-0.5, -0.5): (0, 0), (7.5, 3.5): (16, 16)}),
    ],
)
def test_points_by_hand(fit: Fit, points: dict[tuple[float, float], tuple[float, float]]):
    """Column and row of a slice of 4 x 8 pixels on a square of 16: centres to centres, edges to edges."""
    found = FitTransform(rows=4, cols=8, side=16, fit=fit).to_model_xy(np.array(list(points)))
    assert found.tolist() == [list(xy) for xy in points.values()]


FITS: list[tuple[int, int, int, Fit]] = [
    (20, 30, 60, "pad"),
    (20, 30, 60, "stretch"),
    (48, 36, 24, "pad"),
    (48, 36, 24, "stretch"),
]


@pytest.mark.parametrize(("rows", "cols", "side", "fit"), FITS)
def test_a_point_lands_on_what_it_was_put_on(rows: int, cols: int, side: int, fit: Fit):
    """Where a slice grows by its column, and then by its row, the square shows at the point what the slice shows."""
    transform = FitTransform(rows, cols, side, fit)
    pixels = np.array([(column, row) for row in range(3, rows - 3) for column in range(3, cols - 3)])
    x, y = transform.to_model_xy(pixels).T
    for axis, at in ((1, x), (0, y)):
        grey = 5 * np.indices((rows, cols))[axis].astype(np.uint8)
        square = transform.to_model(grey)
        shown = np.interp(at, np.arange(side) + 0.5, square[0] if axis else square[:, 0])
        assert np.abs(shown - grey[pixels[:, 1], pixels[:, 0]]).max() <= 1.0


@pytest.mark.parametrize(("rows", "cols", "side", "fit"), FITS)
@pytest.mark.parametrize("cells", [1, 2])
def test_what_a_model_says_comes_back_in_place(rows: int, cols: int, side: int, fit: Fit, cells: int):
    """Logits that grow along the square, one for so many of its pixels, grow alike along the slice."""
    transform = FitTransform(rows, cols, side, fit)
    pixels = np.array([(column, row) for row in range(3, rows - 3) for column in range(3, cols - 3)])
    wanted = transform.to_model_xy(pixels)
    centres = (np.arange(side // cells, dtype=np.float32) + 0.5) * cells
    for axis, logits in enumerate(np.meshgrid(centres, centres)):
        restored = transform.to_source(logits)
        assert restored.shape == (rows, cols)
        assert np.abs(restored[pixels[:, 1], pixels[:, 0]] - wanted[:, axis]).max() < 0.05


@pytest.mark.parametrize(
    ("rows", "cols", "side", "fit", "covered"),
    [
        (100, 200, 64, "pad", (32, 64)),
        (200, 100, 64, "pad", (64, 32)),
        (100, 200, 64, "stretch", (64, 64)),
        (1, 1000, 64, "pad", (1, 64)),
        (50, 50, 64, "pad", (64, 64)),
    ],
)
def test_what_a_slice_covers_of_its_square(rows: int, cols: int, side: int, fit: Fit, covered: tuple[int, int]):
    """All of it where it is stretched; else its longer axis does, and what lies below or to the right is black."""
    transform = FitTransform(rows, cols, side, fit)
    assert transform.fitted_shape == covered
    square = transform.to_model(np.full((rows, cols), 200, np.uint8))
    wanted = np.zeros((side, side), np.uint8)
    wanted[: covered[0], : covered[1]] = 200
    assert np.array_equal(square, wanted)


def test_a_slice_that_shrinks_is_averaged():
    """Not sampled: a bright pixel among nine gives a ninth of its grey."""
    plane = np.zeros((6, 6), np.uint8)
    plane[0, 0], plane[3:, 3:] = 180, 100
    assert FitTransform(6, 6, 2, "pad").to_model(plane).tolist() == [[20, 0], [0, 100]]


def test_a_mask_on_the_square_covers_half_of_its_pixels():
    """Two voxels of four do; a single one does not, unless it is all that there is."""
    transform = FitTransform(4, 4, 2, "pad")
    mask = np.zeros((4, 4), bool)
    mask[0, 0] = True
    assert transform.mask_to_model(mask).tolist() == [[True, False], [False, False]]
    mask[2:, 3] = True
    assert transform.mask_to_model(mask).tolist() == [[False, False], [False, True]]


def test_slices_are_fitted_one_by_one():
    """Each as it is alone; those that fit already are left as they are."""
    slices = np.random.default_rng(0).integers(0, 256, (3, 4, 8)).astype(np.uint8)
    transform = FitTransform(4, 8, 16, "pad")
    assert np.array_equal(fit_slices(slices, 16, "pad"), [transform.to_model(plane) for plane in slices])
    square = slices[:, :, :4]
    assert np.array_equal(fit_slices(square, 4, "stretch"), square)


@pytest.mark.parametrize("lengths", [(0, 8, 16), (4, 0, 16), (4, 8, 0)])
def test_nothing_is_fitted_to_nothing(lengths: tuple[int, int, int]):
    with pytest.raises(InvalidRequest):
        FitTransform(*lengths, "pad")
