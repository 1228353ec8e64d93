"""Phantoms that several tests look at, small and many."""

from __future__ import annotations

from functools import cache

import numpy as np

from medvl.embedded.phantom import Phantom, Protocol, make_phantom
from medvl.embedded.truth import Finding

SEEDS = range(90)
SMALL = Protocol(slices=(44, 60), side=96, pixel_mm=(3.0, 3.6))


@cache
def small(seed: int) -> Phantom:
    """A phantom of coarse pixels, of the default slices and regions."""
    return make_phantom(seed, SMALL)


def all_findings() -> list[tuple[Phantom, Finding]]:
    """Every finding of every small phantom."""
    return [(small(seed), finding) for seed in SEEDS for finding in small(seed).truth.findings]


def places(phantom: Phantom, mask: np.ndarray) -> np.ndarray:
    """LPS positions [N, 3] of the voxels of a mask."""
    return phantom.geometry.index_to_lps(np.argwhere(mask))


def extent_mm(points: np.ndarray) -> float:
    """Longest extent of points along 200 directions, and a voxel's diagonal is not added."""
    ways = np.random.default_rng(0).normal(size=(3, 200))
    along = points @ (ways / np.linalg.norm(ways, axis=0))
    return float(np.ptp(along, axis=0).max())
