"""Pictures of a mask on its CT that a person can check: axial, coronal and sagittal planes through the mask."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from numpy.typing import NDArray

from medvl.client.events import Mask
from medvl.contracts.errors import InvalidRequest
from medvl.imaging.volume import Volume

SOFT_TISSUE_HU = (-160.0, 240.0)
"""Window of the pictures when the caller names none: level 40, width 400."""
MASK_COLOUR = "#ff3b5c"
_FILL_ALPHA = 0.28
_HEIGHT_IN = 4.6
_DPI = 110


@dataclass(frozen=True, slots=True)
class _Plane:
    """One picture: image and mask with the top row first, size of a pixel, and the letters at its edges."""

    name: str
    image_hu: NDArray[np.int16]
    mask: NDArray[np.bool_]
    pixel_mm: tuple[float, float]
    """Height and width."""
    left: str
    right: str
    top: str
    bottom: str


def overlay_figure(volume: Volume, mask: Mask, *, window_hu: tuple[float, float] = SOFT_TISSUE_HU) -> Figure:
    """Draw a mask on its volume in radiological convention: the patient's left is on the picture's right.

    Parameters
    ----------
    volume
        The canonical volume; HU are clipped to ``window_hu`` for display.
    mask
        A mask that was found on that volume.
    window_hu
        Lower and upper HU that become black and white.

    Returns
    -------
    Figure
        Three axes in the order axial, coronal, sagittal, each with equal scale in millimetres.

    Raises
    ------
    InvalidRequest
        When the mask holds no voxel.
    """
    voxels = mask.array
    if not voxels.any():
        raise InvalidRequest("There is nothing to draw: the mask holds no voxel.")
    planes = _planes(volume, voxels, _centre(voxels))
    widths = [p.image_hu.shape[1] * p.pixel_mm[1] / (p.image_hu.shape[0] * p.pixel_mm[0]) for p in planes]
    widths = [min(max(w, 0.4), 2.5) for w in widths]
    figure = Figure(figsize=(_HEIGHT_IN * sum(widths), _HEIGHT_IN + 0.9), dpi=_DPI, facecolor="black")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1, 3, width_ratios=widths, left=0.01, right=0.99, top=0.84, bottom=0.02, wspace=0.04)
    for column, plane in enumerate(planes):
        _draw(figure.add_subplot(grid[0, column]), plane, window_hu)
    figure.suptitle(_title(volume, mask), color="white", fontsize=11)
    return figure


def write_overlay(path: Path, volume: Volume, mask: Mask, *, window_hu: tuple[float, float] = SOFT_TISSUE_HU) -> None:
    """Write :func:`overlay_figure` as PNG."""
    overlay_figure(volume, mask, window_hu=window_hu).savefig(path, format="png", facecolor="black")


def _centre(mask: NDArray[np.bool_]) -> tuple[int, int, int]:
    """Return the voxel of the mask that is nearest to its centroid, so that every plane cuts the mask."""
    where = np.argwhere(mask)
    nearest = where[np.argmin(((where - where.mean(axis=0)) ** 2).sum(axis=1))]
    return int(nearest[0]), int(nearest[1]), int(nearest[2])


def _planes(volume: Volume, mask: NDArray[np.bool_], centre: tuple[int, int, int]) -> tuple[_Plane, _Plane, _Plane]:
    hu, (s_mm, r_mm, c_mm), (s, r, c) = volume.hu, volume.geometry.spacing_mm, centre
    # Canonical axes run to superior, posterior, left: rows and columns of an axial slice are the picture's already;
    # superior is up in the other two, so slices are turned over.
    return (
        _Plane(f"axial {s}", hu[s], mask[s], (r_mm, c_mm), "R", "L", "A", "P"),
        _Plane(f"coronal {r}", hu[::-1, r], mask[::-1, r], (s_mm, c_mm), "R", "L", "S", "I"),
        _Plane(f"sagittal {c}", hu[::-1, :, c], mask[::-1, :, c], (s_mm, r_mm), "A", "P", "S", "I"),
    )


def _draw(axes: Axes, plane: _Plane, window_hu: tuple[float, float]) -> None:
    height_mm, width_mm = plane.pixel_mm
    axes.set_axis_off()
    axes.imshow(plane.image_hu, cmap="gray", vmin=window_hu[0], vmax=window_hu[1], aspect=height_mm / width_mm)
    fill = np.zeros((*plane.mask.shape, 4))
    fill[plane.mask] = to_rgba(MASK_COLOUR, _FILL_ALPHA)
    axes.imshow(fill, aspect=height_mm / width_mm, interpolation="nearest")
    if not plane.mask.all():
        axes.contour(plane.mask, levels=[0.5], colors=[MASK_COLOUR], linewidths=1.2)
    axes.set_title(plane.name, color="#b0b0b0", fontsize=9, pad=3)
    for letter, x, y in (
        (plane.left, 0.03, 0.5),
        (plane.right, 0.97, 0.5),
        (plane.top, 0.5, 0.96),
        (plane.bottom, 0.5, 0.04),
    ):
        axes.text(x, y, letter, transform=axes.transAxes, color="#ffd84d", fontsize=11, ha="center", va="center")


def _title(volume: Volume, mask: Mask) -> str:
    if mask.measurement is None:
        millilitres = int(mask.array.sum()) * float(np.prod(volume.geometry.spacing_mm)) / 1000
    else:
        millilitres = mask.measurement.volume_mm3 / 1000
    name = mask.label or mask.prompt
    return f"{name}   score {mask.score:.2f}   {millilitres:.1f} ml\nnot for diagnosis"
