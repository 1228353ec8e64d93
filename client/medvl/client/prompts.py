"""What to segment: one object by class, by free text, or by points and boxes in patient millimetres."""

from __future__ import annotations

import math
from dataclasses import dataclass

from medvl.contracts.errors import InvalidRequest
from medvl.wire.v1 import medvl_pb2 as pb

Xyz = tuple[float, float, float]
"""DICOM patient coordinates (LPS) in millimetres, unless a name says voxels."""


@dataclass(frozen=True, slots=True)
class Point:
    """A click at ``lps_mm``: on the object, or, when ``negative``, beside it."""

    lps_mm: Xyz
    negative: bool = False

    def __post_init__(self) -> None:
        _check_finite(self.lps_mm)


@dataclass(frozen=True, slots=True)
class Box:
    """A box between two opposite corners, in LPS millimetres, in any order."""

    corner_lps_mm: Xyz
    opposite_lps_mm: Xyz

    def __post_init__(self) -> None:
        _check_finite(self.corner_lps_mm)
        _check_finite(self.opposite_lps_mm)


@dataclass(frozen=True, slots=True)
class ObjectPrompt:
    """One object: exactly one of a class, a text, or points and boxes together.

    Raises
    ------
    InvalidRequest
        When it holds none of them or more than one.
    """

    label: str = ""
    text: str = ""
    points: tuple[Point, ...] = ()
    boxes: tuple[Box, ...] = ()

    def __post_init__(self) -> None:
        kinds = [bool(self.label.strip()), bool(self.text.strip()), bool(self.points or self.boxes)]
        if sum(kinds) != 1:
            raise InvalidRequest(
                "An object is prompted by a class, by a text, or by points and boxes: give exactly one of these."
            )

    def to_wire(self) -> pb.ObjectPrompt:
        """Return the message of the protocol."""
        return pb.ObjectPrompt(
            label=self.label,
            text=self.text,
            points=[pb.Point(lps_mm=p.lps_mm, negative=p.negative) for p in self.points],
            boxes=[pb.Box(min_lps_mm=b.corner_lps_mm, max_lps_mm=b.opposite_lps_mm) for b in self.boxes],
        )


def _check_finite(lps_mm: Xyz) -> None:
    if not all(math.isfinite(value) for value in lps_mm):
        raise InvalidRequest(f"A position is three finite coordinates in millimetres, not {lps_mm}.")
