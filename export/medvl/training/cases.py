"""Training cases: phantoms as the networks see them, with what is true of every object in them.

A case follows from its seed. Seeds of training start at :data:`FIRST_SEED`; what lies below no stage trains on. Weights
may be chosen on some of these (development phantoms), but not on the first 200, which are for the published evaluation.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import zstandard
from numpy.typing import NDArray

from medvl.contracts.checkpoint import SegmentationSpec
from medvl.contracts.errors import SetupError
from medvl.embedded.findings import ILL, USUAL, Illness
from medvl.embedded.phantom import Phantom, make_blank, make_phantom
from medvl.embedded.truth import Truth
from medvl.imaging.geometry import Geometry
from medvl.imaging.resample import FitTransform, fit_slices
from medvl.imaging.volume import Volume
from medvl.imaging.windows import Window, to_uint8
from medvl.training.descriptors import Place, places

FIRST_SEED = 1_000_000
"""Of training."""
_WIDENED, _WIDEST = 0.5, 0.35
"""Share of draws with air around the image, and how much wider it may make the field of view."""
_SHOWN = 1
"""Stream of the dice for the field of view in which a case is always shown to those that keep what they saw."""
_ILL = 2
"""Every so many cases have findings of many kinds: there are more small ones to learn from."""
_BLANK = 50
"""Every so many show no patient, so that nothing is found in nothing."""
_COMPRESSION = 3
_GEOMETRY = ("spacing_mm", "origin_mm", "direction")


@dataclass(frozen=True, eq=False)
class Voxels:
    """A case's image and label map in files, read where they are looked at."""

    path: Path
    """Of its files, without their suffixes."""
    shape: tuple[int, int, int]

    @cached_property
    def grey(self) -> NDArray[np.uint8]:
        """The image, uint8 [D, R, C], windowed as the networks see it."""
        stored: NDArray[np.uint8] = np.load(self.path.with_suffix(".npy"), mmap_mode="r")
        return stored

    @cached_property
    def labels(self) -> NDArray[np.uint8]:
        """The label map, uint8 [D, R, C]."""
        packed = self.path.with_suffix(".zst").read_bytes()
        return np.frombuffer(zstandard.decompress(packed), np.uint8).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class MadeVoxels:
    """A case's image and label map, made where they are looked at: see :class:`Voxels`."""

    shape: tuple[int, int, int]
    window: Window
    make: Callable[[], Phantom]

    @cached_property
    def grey(self) -> NDArray[np.uint8]:
        """The image, uint8 [D, R, C], windowed as the networks see it."""
        return to_uint8(self._phantom.hu, self.window)

    @property
    def labels(self) -> NDArray[np.uint8]:
        """The label map, uint8 [D, R, C]."""
        return self._phantom.labels

    @cached_property
    def _phantom(self) -> Phantom:
        return self.make()


@dataclass(frozen=True, eq=False)
class Case:
    """One phantom, maybe with air around it.

    Attributes
    ----------
    voxels
        Without air.
    air
        Rows and columns, before and after those of the voxels: black, and nothing in the label map.
    geometry, places
        Of the image with its air; where every value of the label map lies.
    """

    seed: int
    voxels: Voxels | MadeVoxels
    geometry: Geometry
    truth: Truth
    places: Mapping[int, Place]
    air: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))

    def slices(self, numbers: NDArray[np.intp], spec: SegmentationSpec) -> NDArray[np.uint8]:
        """Return windowed slices uint8 [n, S, S] as SAM2 takes them."""
        return fit_slices(self._padded(self.voxels.grey[numbers]), spec.side, spec.fit)

    def planes(self, numbers: NDArray[np.intp], spec: SegmentationSpec) -> NDArray[np.uint8]:
        """Return the label map of slices, uint8 [n, S, S], nearest neighbour, 0 where a slice is padded."""
        labels = self._padded(self.voxels.labels[numbers])
        _, rows, columns = labels.shape
        height, width = FitTransform(rows, columns, spec.side, spec.fit).fitted_shape
        planes = np.zeros((len(numbers), spec.side, spec.side), np.uint8)
        for plane, own in zip(planes, labels, strict=True):
            plane[:height, :width] = cv2.resize(own, (width, height), interpolation=cv2.INTER_NEAREST)
        return planes

    def volume(self, window: Window) -> Volume:
        """Return the image as a volume, in HU as exactly as the window that it is stored through can tell."""
        lower, upper = window.lower_hu, window.upper_hu
        hu = np.rint(lower + self._padded(np.asarray(self.voxels.grey)) * ((upper - lower) / 255)).astype(np.int16)
        return Volume(hu, self.geometry)

    def widened(self, rng: np.random.Generator) -> Case:
        """Return the case in a wider field of view, and not in its middle: with air about each slice."""
        slices, *side = self.geometry.shape
        added = int(rng.uniform(0.0, _WIDEST) * max(side))
        before = [int(rng.integers(added + 1)) for _ in side]
        shape = (slices, side[0] + added, side[1] + added)

        def shifted(place: Place) -> Place:
            centre, half = np.array(place.centre), np.array(place.half_extent)
            centre[1:] = (centre[1:] * side + before) / shape[1:]
            half[1:] *= np.divide(side, shape[1:])
            return Place(tuple(centre.tolist()), tuple(half.tolist()))

        origin = tuple(self.geometry.index_to_lps(np.array([0, -before[0], -before[1]])).tolist())
        rows, columns = ((b, added - b) for b in before)
        return replace(
            self,
            geometry=replace(self.geometry, shape=shape, origin_mm=origin),
            places={value: shifted(place) for value, place in self.places.items()},
            air=(rows, columns),
        )

    def _padded(self, planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.pad(planes, ((0, 0), *self.air)) if any(map(any, self.air)) else np.asarray(planes)


@dataclass(frozen=True)
class CaseStore:
    """Cases by seed, kept in a folder because several stages and epochs need the same ones.

    Attributes
    ----------
    folder
        Holds three files for each case; the JSON comes last and says that it is whole. Of cases that are looked at once
        it holds nothing else.
    seeds
        Of all cases that are drawn.
    window
        Of all networks.
    first, more
        Cases that are known at first, and that become known with each step; all of them after the first by default.
    illness
        Of every second patient.
    once
        Whether a case is looked at once: its voxels, which are nearly all of it, are not kept.
    """

    folder: Path
    seeds: range
    window: Window
    first: int = 1
    more: int = 1_000_000
    illness: Illness = ILL
    once: bool = False

    def draw(self, rng: np.random.Generator, step: int) -> Case:
        """Return one of the cases that a step knows, every second one in a wider field of view."""
        case = self.get(self.seed(rng, step))
        return case.widened(rng) if rng.random() < _WIDENED else case

    def seed(self, rng: np.random.Generator, step: int) -> int:
        """Return the seed of one of the cases that a step knows."""
        known = min(len(self.seeds), self.first + self.more * step)
        return self.seeds[int(rng.integers(known))]

    def shown(self, seed: int) -> Case:
        """Return a case in a field of view that follows from its seed."""
        case, rng = self.get(seed), np.random.default_rng([seed, _SHOWN])
        return case.widened(rng) if rng.random() < _WIDENED else case

    def get(self, seed: int) -> Case:
        """Return a case, made the first time.

        Raises
        ------
        SetupError
            From its voxels, where they are not kept and would not be those that its truth was told of.
        """
        phantom = None if self._path(seed, "json").is_file() else self._keep(seed)
        known = json.loads(self._path(seed, "json").read_text("utf-8"))
        shape = tuple(known["shape"])
        truth = Truth.model_validate(known["truth"])
        voxels = MadeVoxels(shape, self.window, lambda: phantom or self._again(seed, truth))
        return Case(
            seed,
            voxels if self.once else Voxels(self._path(seed, "npy"), shape),
            Geometry(shape, *(known["geometry"][name] for name in _GEOMETRY)),
            truth,
            {int(value): Place(tuple(p["centre"]), tuple(p["half_extent"])) for value, p in known["places"].items()},
        )

    def make(self, seed: int) -> None:
        """Make a case, unless it is there."""
        if not self._path(seed, "json").is_file():
            self._keep(seed)

    def _keep(self, seed: int) -> Phantom:
        phantom = self._phantom(seed)
        known = {
            "shape": phantom.labels.shape,
            "truth": phantom.truth.model_dump(mode="json"),
            "geometry": {name: np.asarray(getattr(phantom.geometry, name)).tolist() for name in _GEOMETRY},
            "places": {value: asdict(place) for value, place in places(phantom.labels).items()},
        }
        # Written under the name of this process first: several may make the same case.
        self.folder.mkdir(parents=True, exist_ok=True)
        own, suffixes = str(os.getpid()), ["json"] if self.once else ["npy", "zst", "json"]
        if not self.once:
            np.save(self._path(seed, f"{own}.npy"), to_uint8(phantom.hu, self.window))
            packed = zstandard.compress(np.ascontiguousarray(phantom.labels).data, _COMPRESSION)
            self._path(seed, f"{own}.zst").write_bytes(packed)
        self._path(seed, f"{own}.json").write_text(json.dumps(known), "utf-8")
        for suffix in suffixes:
            self._path(seed, f"{own}.{suffix}").replace(self._path(seed, suffix))
        return phantom

    def _again(self, seed: int, truth: Truth) -> Phantom:
        phantom = self._phantom(seed)
        if phantom.truth != truth:
            raise SetupError(
                f"The generator does not draw the phantom {seed} as when {self.folder} was begun: remove that folder."
            )
        return phantom

    def _phantom(self, seed: int) -> Phantom:
        if (seed + 1) % _BLANK == 0:
            return make_blank(seed)
        return make_phantom(seed, illness=self.illness if seed % _ILL == 0 else USUAL)

    def _path(self, seed: int, suffix: str) -> Path:
        return self.folder / f"{seed}.{suffix}"


def keep_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Keep what was seen of a case, whole or not at all: several processes may look at the same case."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_suffix(f".{os.getpid()}.npz")
    np.savez(own, **arrays)
    own.replace(path)
