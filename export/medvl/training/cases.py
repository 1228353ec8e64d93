"""Training cases: phantoms as the networks see them, with what is true of every object in them.

A case follows from its seed. Seeds of training start at :data:`FIRST_SEED`; what lies below is for evaluation and is
never trained or tuned on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from medvl.contracts.checkpoint import Checkpoint
from medvl.embedded.phantom import Phantom, make_phantom
from medvl.embedded.truth import Truth
from medvl.imaging.geometry import Geometry
from medvl.imaging.resample import FitTransform, fit_slices, to_grid
from medvl.imaging.windows import Window, to_uint8

FIRST_SEED = 1_000_000
"""Of training."""
_FIRST_CASES = 60
"""Known before the first step."""


@dataclass(frozen=True, eq=False)
class Case:
    """One phantom.

    Attributes
    ----------
    seed
        What it follows from.
    hu, labels
        int16 and uint8 [D, R, C], canonical.
    """

    seed: int
    hu: NDArray[np.int16]
    labels: NDArray[np.uint8]
    geometry: Geometry
    truth: Truth

    def grid(self, checkpoint: Checkpoint) -> NDArray[np.float16]:
        """Return the volume FP16 [d, h, w] as the vision encoder takes it, HU."""
        return to_grid(self.hu, checkpoint.vision.grid)

    def label_grid(self, checkpoint: Checkpoint) -> NDArray[np.uint8]:
        """Return the label map [d, h, w] on the vision grid, nearest neighbour."""
        at = [
            np.minimum(((np.arange(n) + 0.5) * (m / n)).astype(int), m - 1)
            for n, m in zip(checkpoint.vision.grid, self.labels.shape, strict=True)
        ]
        return self.labels[np.ix_(*at)]

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
                self.labels[number], (width, height), interpolation=cv2.INTER_NEAREST
            )
        return planes


class CaseStore:
    """Cases by seed, kept in a folder because several stages and epochs need the same ones.

    Parameters
    ----------
    folder
        Holds one file for each case.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def draw(self, rng: np.random.Generator, step: int, most: int) -> Case:
        """Return one of the first ``most`` cases; each step knows one more, so that nobody waits for all of them."""
        return self.get(FIRST_SEED + int(rng.integers(min(most, _FIRST_CASES + step))))

    def get(self, seed: int) -> Case:
        """Return a case, made the first time."""
        path = self._folder / f"{seed}.npz"
        if not path.is_file():
            self._make(seed, path)
        with np.load(path) as data:
            truth = Truth.model_validate_json(data["truth"].tobytes())
            geometry = Geometry(data["labels"].shape, data["spacing_mm"], data["origin_mm"], data["direction"])
            return Case(seed, data["hu"], data["labels"], geometry, truth)

    def _make(self, seed: int, path: Path) -> None:
        phantom: Phantom = make_phantom(seed)
        part = path.with_suffix(f".{os.getpid()}.part")
        with part.open("wb") as file:
            np.savez(
                file,
                hu=phantom.hu,
                labels=phantom.labels,
                truth=np.frombuffer(phantom.truth.model_dump_json().encode(), np.uint8),
                spacing_mm=phantom.geometry.spacing_mm,
                origin_mm=phantom.geometry.origin_mm,
                direction=np.array(phantom.geometry.direction),
            )
        part.replace(path)
