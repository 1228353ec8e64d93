"""Pictures show a mask where it is, by the radiological convention."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from medvl.client import Mask, Measurement
from medvl.client.overlay import SOFT_TISSUE_HU, overlay_figure, write_overlay
from medvl.contracts.errors import InvalidRequest
from medvl.imaging.masks import pack_mask


@pytest.fixture
def make_mask(volume):
    def make(array, **fields):
        size = Measurement(int(array.sum()), 31000.0, 12.0, 13.0, (0.0, 0.0, 0.0), (0, 0, 0), (1, 1, 1))
        given = {"label": "liver", "prompt": "liver", "found": True, "score": 0.75, **fields}
        return Mask(
            object_index=0,
            packed=pack_mask(array),
            volume_shape=volume.geometry.shape,
            measurement=size,
            key_slices=(),
            slice_scores={},
            span=None,
            **given,
        )

    return make


def corner(volume, slices, rows, columns):
    """Return a mask that fills a corner of the volume."""
    array = np.zeros(volume.geometry.shape, bool)
    array[slices, rows, columns] = True
    return array


def coloured(figure, axes_index):
    """Return the centre of the mask's colour in an axes, x to the right and y down, each from 0 to 1."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    red = (pixels[..., 0] - pixels[..., 1] > 60) & (pixels[..., 0] - pixels[..., 2] > 30)
    box = figure.axes[axes_index].get_window_extent()
    top = pixels.shape[0] - box.y1
    rows, columns = np.nonzero(red)
    inside = (columns >= box.x0) & (columns < box.x1) & (rows >= top) & (rows < top + box.height)
    return (columns[inside].mean() - box.x0) / box.width, (rows[inside].mean() - top) / box.height


def letters(axes):
    return {text.get_text(): text.get_position() for text in axes.texts}


def test_the_patients_left_is_on_the_right_of_the_picture(volume, make_mask):
    """A mask on the patient's left, in front and high up, is drawn right, up and up."""
    half = slice(0, volume.geometry.shape[1] // 3), slice(-7, -2)
    figure = overlay_figure(volume, make_mask(corner(volume, slice(-2, None), *half)))
    (axial_x, axial_y), (coronal_x, coronal_y), (sagittal_x, sagittal_y) = (coloured(figure, i) for i in range(3))
    assert axial_x > 0.6
    assert axial_y < 0.4
    assert coronal_x > 0.6
    assert coronal_y < 0.4
    assert sagittal_x < 0.4
    assert sagittal_y < 0.4


@pytest.mark.parametrize("window_hu", [SOFT_TISSUE_HU, (-1350.0, 150.0)])
def test_a_mask_is_drawn_on_what_it_marks(volume, make_mask, window_hu):
    """In each plane the picture has the voxels of the mask where the colour is, in the window that was asked for."""
    array = corner(volume, slice(1, 3), slice(2, 8), slice(3, 6))
    bright = replace(volume, hu=np.where(array, 100, -100).astype(np.int16))
    for axes in overlay_figure(bright, make_mask(array), window_hu=window_hu).axes:
        image, fill = axes.images
        coloured_pixels = fill.get_array()[..., 3] > 0
        assert coloured_pixels.any()
        assert np.array_equal(image.get_array() > 0, coloured_pixels)
        assert image.get_clim() == window_hu


def test_the_window_is_that_of_soft_tissue(volume, make_mask):
    """Level 40 and width 400, unless told otherwise."""
    for axes in overlay_figure(volume, make_mask(corner(volume, 2, 3, 4))).axes:
        assert axes.images[0].get_clim() == (-160.0, 240.0)


def test_letters_stand_on_the_side_that_they_name(volume, make_mask):
    """R and A are left, L and P right, S above I."""
    axial, coronal, sagittal = map(letters, overlay_figure(volume, make_mask(corner(volume, 2, 3, 4))).axes)
    assert axial["R"][0] < axial["L"][0]
    assert axial["A"][1] > axial["P"][1]
    assert coronal["R"][0] < coronal["L"][0]
    assert coronal["S"][1] > coronal["I"][1]
    assert sagittal["A"][0] < sagittal["P"][0]


def test_pictures_keep_millimetres(volume, make_mask):
    """Equal lengths in the patient are equal lengths in the picture."""
    slice_mm, row_mm, column_mm = volume.geometry.spacing_mm
    axes = overlay_figure(volume, make_mask(corner(volume, 2, 3, 4))).axes
    expected = (row_mm / column_mm, slice_mm / column_mm, slice_mm / row_mm)
    assert [a.get_aspect() for a in axes] == pytest.approx(expected)


def test_the_title_names_the_object_and_says_that_it_is_not_for_diagnosis(volume, make_mask):
    """Label, score, volume and the warning can be read; free text stands in for a label."""
    array = corner(volume, 2, 3, 4)
    title = overlay_figure(volume, make_mask(array)).get_suptitle()
    assert all(words in title for words in ("liver", "0.75", "31.0 ml", "not for diagnosis"))
    by_text = make_mask(array, label="", prompt="the bright organ")
    assert "the bright organ" in overlay_figure(volume, by_text).get_suptitle()


def test_masks_that_touch_every_voxel_or_one_can_be_drawn(volume, make_mask, tmp_path):
    """A picture is written for any mask that holds something, and none for one that does not."""
    for array in (np.ones(volume.geometry.shape, bool), corner(volume, 0, 0, 0)):
        write_overlay(tmp_path / "picture.png", volume, make_mask(array))
        with Image.open(tmp_path / "picture.png") as picture:
            assert picture.format == "PNG"
            assert picture.size[0] > 300
    with pytest.raises(InvalidRequest, match="no voxel"):
        overlay_figure(volume, make_mask(np.zeros(volume.geometry.shape, bool)))
