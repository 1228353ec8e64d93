"""Training cases: phantoms as the networks see them, with what is true of every object in them.

A case follows from its seed. Seeds of training start at :data:`FIRST_SEED`; what lies below is for evaluation and is
never trained or tuned on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from medvl.contracts.checkpoint import Checkpoint
from medvl.embedded.phantom import make_phantom
from medvl.embedded.scanner import LEAST_HU
from medvl.embedded.truth import Truth
from medvl.imaging.geometry import Geometry
from medvl.imaging.resample import FitTransform, fit_slices, to_grid
from medvl.imaging.windows import Window, to_uint8
from medvl.training.descriptors import Place, places

FIRST_SEED = 1_000_000
"""Of training."""
_FIRST_CASES = 60
"""Known before the first step."""
_WIDENED, _WIDEST = 0.5, 0.35
"""Share of draws with air around the image, and how much wider it may make the field of view."""


@dataclass(frozen=True, eq=False)
class Case:
    """One phantom.

    Attributes
    ----------
    hu, labels
        int16 and uint8 [D, R, C], canonical; read from disk where they are looked at.
    places
        Where every value of the label map lies.
    """

    hu: NDArray[np.int16]
    labels: NDArray[np.uint8]
    geometry: Geometry
    truth: Truth
    places: Mapping[int, Place]

    def slices(self, numbers: NDArray[np.intp], checkpoint: Checkpoint) -> NDArray[np.uint8]:
        """Return windowed slices uint8 [n, S, S] as SAM2 takes them."""
        spec = checkpoint.segmentation
        window = Window(*checkpoint.windows[spec.window])
        return fit_slices(to_uint8(np.ascontiguousarray(self.hu[numbers]), window), spec.side, spec.fit)

    def planes(self, numbers: NDArray[np.intp], checkpoint: Checkpoint) -> NDArray[np.uint8]:
        """Return the label map of slices, uint8 [n, S, S], nearest neighbour, 0 where a slice is padded."""
        spec = checkpoint.segmentation
        fit = FitTransform(self.labels.shape[1], self.labels.shape[2], spec.side, spec.fit)
        height, width = fit.fitted_shape
        planes = np.zeros((len(numbers), spec.side, spec.side), np.uint8)
        for row, number in enumerate(numbers):
            planes[row, :height, :width] = cv2.resize(
                np.asarray(self.labels[number]), (width, height), interpolation=cv2.INTER_NEAREST
            )
        return planes

    def widened(self, rng: np.random.Generator) -> Case:
        """Return the case in a wider field of view, and not in its middle: with air about each slice."""
        side = self.labels.shape[1:]
        added = [int(rng.uniform(0.0, _WIDEST) * max(side))] * 2
        before = [int(rng.integers(n + 1)) for n in added]
        around = [(0, 0), *((b, n - b) for b, n in zip(before, added, strict=True))]
        shape = (len(self.labels), *(n + more for n, more in zip(side, added, strict=True)))

        def shifted(place: Place) -> Place:
            centre, half = np.array(place.centre), np.array(place.half_extent)
            centre[1:] = (centre[1:] * side + before) / shape[1:]
            half[1:] *= np.divide(side, shape[1:])
            return Place(tuple(centre.tolist()), tuple(half.tolist()))

        origin = tuple(self.geometry.index_to_lps(np.array([0, -before[0], -before[1]])).tolist())
        return replace(
            self,
            hu=np.pad(self.hu, around, constant_values=LEAST_HU),
            labels=np.pad(self.labels, around),
            geometry=replace(self.geometry, shape=shape, origin_mm=origin),
            places={value: shifted(place) for value, place in self.places.items()},
        )


def volume_grid(hu: NDArray[np.int16], checkpoint: Checkpoint) -> NDArray[np.float16]:
    """Return a volume [D, R, C] as the vision encoder takes it, FP16 [d, h, w], HU."""
    return to_grid(np.asarray(hu), checkpoint.vision.grid)


def label_grid(labels: NDArray[np.uint8], checkpoint: Checkpoint) -> NDArray[np.uint8]:
    """Return a label map [D, R, C] on the vision grid [d, h, w], nearest neighbour."""
    at = [
        np.minimum(((np.arange(n) + 0.5) * (m / n)).astype(int), m - 1)
        for n, m in zip(checkpoint.vision.grid, labels.shape, strict=True)
    ]
    return np.asarray(labels[at[0]])[:, at[1]][:, :, at[2]]


class CaseStore:
    """Cases by seed, kept in a folder because several stages and epochs need the same ones.

    Parameters
    ----------
    folder
        Holds three files for each case; the JSON comes last and says that it is whole.
    seeds
        Of all cases that are drawn.
    more
        New cases that become known with each step, so that the first ones need not wait for all of them.
    """

    def __init__(self, folder: Path, seeds: range, more: int) -> None:
        self.seeds = seeds
        self._folder = folder
        self._more = more
        folder.mkdir(parents=True, exist_ok=True)

    def draw(self, rng: np.random.Generator, step: int) -> Case:
        """Return one of the cases that a step knows, every second one in a wider field of view."""
        known = min(len(self.seeds), _FIRST_CASES + self._more * step)
        case = self.get(self.seeds[int(rng.integers(known))])
        return case.widened(rng) if rng.random() < _WIDENED else case

    def get(self, seed: int) -> Case:
        """Return a case, made the first time."""
        self.make(seed)
        known = json.loads(self._path(seed, "json").read_text("utf-8"))
        hu, labels = (np.load(self._path(seed, f"{name}.npy"), mmap_mode="r") for name in ("hu", "labels"))
        return Case(
            hu,
            labels,
            Geometry(labels.shape, *(known["geometry"][name] for name in _GEOMETRY)),
            Truth.model_validate(known["truth"]),
            {int(value): Place(tuple(p["centre"]), tuple(p["half_extent"])) for value, p in known["places"].items()},
        )

    def make(self, seed: int) -> None:
        """Make a case, unless it is there."""
        if self._path(seed, "json").is_file():
            return
        phantom = make_phantom(seed)
        geometry = {name: np.asarray(getattr(phantom.geometry, name)).tolist() for name in _GEOMETRY}
        known = {
            "truth": phantom.truth.model_dump(mode="json"),
            "geometry": geometry,
            "places": {value: asdict(place) for value, place in places(phantom.labels).items()},
        }
        self._keep(self._path(seed, "hu.npy"), phantom.hu)
        self._keep(self._path(seed, "labels.npy"), phantom.labels)
        part = self._path(seed, f"json.{os.getpid()}")
        part.write_text(json.dumps(known), "utf-8")
        part.replace(self._path(seed, "json"))

    def _keep(self, path: Path, array: NDArray[Any]) -> None:
        part = path.with_suffix(f".{os.getpid()}")
        with part.open("wb") as file:
            np.save(file, array)
        part.replace(path)

    def _path(self, seed: int, suffix: str) -> Path:
        return self._folder / f"{seed}.{suffix}"


_GEOMETRY = ("spacing_mm", "origin_mm", "direction")
