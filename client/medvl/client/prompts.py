"""What to segment: one object in words, or shown by points, boxes and a mask, or both."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medvl.client.events import Mask
from medvl.contracts.errors import InvalidRequest
from medvl.imaging.masks import pack_mask
from medvl.wire.v1 import medvl_pb2 as pb

Xyz = tuple[float, float, float]
"""DICOM patient coordinates (LPS) in millimetres, unless a name says voxels."""


@dataclass(frozen=True, slots=True)
class Point:
    """A click at ``lps_mm``: on the object, or, when ``negative``, beside it.

    ``correction`` is 0 for a click that tells what the object is. Who corrects the mask that came back sends all clicks
    again with the new ones as correction 1, those after the next mask as 2, and so on.
    """

    lps_mm: Xyz
    negative: bool = False
    correction: int = 0

    def __post_init__(self) -> None:
        _check_finite(self.lps_mm)
        if not 0 <= self.correction < 2**32:
            raise InvalidRequest(f"Corrections are counted from 1, not {self.correction}.")


@dataclass(frozen=True, slots=True)
class Box:
    """A box between two opposite corners, in LPS millimetres, in any order."""

    corner_lps_mm: Xyz
    opposite_lps_mm: Xyz

    def __post_init__(self) -> None:
        _check_finite(self.corner_lps_mm)
        _check_finite(self.opposite_lps_mm)


@dataclass(frozen=True, slots=True, eq=False)
class ObjectPrompt:
    """One object: a class or a text, or points, boxes and a mask, or both, which then correct what the words find.

    Attributes
    ----------
    label, text
        One of them at most.
    mask
        bool [D, R, C] on the canonical grid: what the object is on every slice on which it has a voxel. It comes back
        unchanged there, unless points or boxes on that slice correct it.
    earlier
        The mask of this object that the caller holds: where the service still has it, only what has changed comes back,
        see :meth:`medvl.client.Mask.laid_over`.

    Raises
    ------
    InvalidRequest
        When it describes no object, is a class and a text at once, its mask has no voxel, or the earlier mask is only
        what has changed of one.
    """

    label: str = ""
    text: str = ""
    points: tuple[Point, ...] = ()
    boxes: tuple[Box, ...] = ()
    mask: NDArray[np.bool_] | None = None
    earlier: Mask | None = None

    def __post_init__(self) -> None:
        if self.label.strip() and self.text.strip():
            raise InvalidRequest("An object is prompted by a class or by a text, not by both.")
        if not (self.label.strip() or self.text.strip() or self.points or self.boxes or self.mask is not None):
            raise InvalidRequest(
                "An object is prompted by a class, a text, points, boxes or a mask: give one of these."
            )
        if self.mask is not None and not self.mask.any():
            raise InvalidRequest("The mask of an object has no voxel: leave it out or mark the object.")

        if self.earlier is not None and self.earlier.changed is not None:
            raise InvalidRequest("The earlier mask is only what has changed of one: lay it over that one first.")

    def to_wire(self) -> pb.ObjectPrompt:
        """Return the message of the protocol."""
        return pb.ObjectPrompt(
            label=self.label,
            text=self.text,
            points=[pb.Point(lps_mm=p.lps_mm, negative=p.negative, correction=p.correction) for p in self.points],
            boxes=[pb.Box(min_lps_mm=b.corner_lps_mm, max_lps_mm=b.opposite_lps_mm) for b in self.boxes],
            mask=b"" if self.mask is None else pack_mask(self.mask),
            earlier_sha256=b"" if self.earlier is None else self.earlier.sha256,
        )


def _check_finite(lps_mm: Xyz) -> None:
    if not all(math.isfinite(value) for value in lps_mm):
        raise InvalidRequest(f"A position is three finite coordinates in millimetres, not {lps_mm}.")
