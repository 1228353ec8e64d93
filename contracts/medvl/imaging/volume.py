"""Voxels with their place: a CT volume in HU and the digest that names it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from medvl.contracts.errors import InvalidRequest
from medvl.imaging.geometry import Geometry


class SeriesHasher:
    """SHA-256 of a series whose voxels arrive piece by piece.

    Parameters
    ----------
    geometry
        The canonical geometry; its canonical JSON is hashed first.
    """

    def __init__(self, geometry: Geometry) -> None:
        self._sha256 = hashlib.sha256(geometry.to_json_bytes())

    def update(self, voxels: bytes | memoryview) -> None:
        """Add the next voxels: HU as little-endian int16 in C order."""
        self._sha256.update(voxels)

    def hexdigest(self) -> str:
        """Return the digest of what came so far, in hexadecimal."""
        return self._sha256.hexdigest()


def series_digest(geometry: Geometry, hu: NDArray[np.int16]) -> str:
    """Return the digest of a whole series.

    Parameters
    ----------
    geometry
        The canonical geometry.
    hu
        int16 [D, R, C] in HU.

    Returns
    -------
    str
        SHA-256 in hexadecimal over the canonical JSON of the geometry and the voxels, little-endian in C order.
    """
    hasher = SeriesHasher(geometry)
    hasher.update(np.ascontiguousarray(hu, dtype="<i2").data)
    return hasher.hexdigest()


@dataclass(frozen=True, eq=False)
class Volume:
    """A CT volume.

    Attributes
    ----------
    hu
        int16 [D, R, C] in HU; held read-only and in C order.
    geometry
        Its grid in LPS millimetres.

    Raises
    ------
    InvalidRequest
        When the array is not int16 or does not have the geometry's shape.
    """

    hu: NDArray[np.int16]
    geometry: Geometry

    def __post_init__(self) -> None:
        if self.hu.dtype != np.int16 or self.hu.shape != self.geometry.shape:
            raise InvalidRequest(
                f"A volume needs int16 HU of shape {list(self.geometry.shape)}, "
                f"not {self.hu.dtype} of shape {list(self.hu.shape)}."
            )
        held = np.ascontiguousarray(self.hu).view()
        held.flags.writeable = False
        object.__setattr__(self, "hu", held)

    @cached_property
    def digest(self) -> str:
        """Name of the series everywhere: see :func:`series_digest`."""
        return series_digest(self.geometry, self.hu)
