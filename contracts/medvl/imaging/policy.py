"""What a reader does with slices that do not form a regular grid at right angles, and the record of what it did."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class GeometryPolicy(StrEnum):
    """What to do about gantry tilt, missing slices and uneven spacing, all seen from the slices' positions."""

    REJECT = "reject"
    """Refuse the series and say why."""
    RESAMPLE = "resample"
    """Interpolate onto a regular grid at right angles, and say so."""
    WARN = "warn"
    """Load the slices as if they lay regularly at their median spacing, and say so."""


class FindingKind(StrEnum):
    """What was unusual about the pixels or positions of a series."""

    GANTRY_TILT = "gantry_tilt"
    MISSING_SLICES = "missing_slices"
    UNEVEN_SPACING = "uneven_spacing"
    PIXEL_PADDING = "pixel_padding"
    MONOCHROME1 = "monochrome1"
    OTHER_OBJECTS = "other_objects"


class FindingAction(StrEnum):
    """What the reader did about a finding."""

    RESAMPLED = "resampled"
    """Voxels were interpolated onto a regular grid."""
    LOADED_AS_REGULAR = "loaded_as_regular"
    """The positions were taken to be regular although they are not; distances are approximate."""
    SET_TO_AIR = "set_to_air"
    IGNORED = "ignored"
    """It does not touch the volume."""


@dataclass(frozen=True)
class GeometryFinding:
    """Something unusual about a series, and what was done about it; holds no patient data.

    Attributes
    ----------
    kind
        What was found.
    value, unit
        How much of it was measured: degrees of tilt, slices missing, millimetres of the widest gap, voxels of padding.
    action
        What was done.
    sentence
        All of it in words, for people.
    """

    kind: FindingKind
    value: float
    unit: str
    action: FindingAction
    sentence: str

    def __str__(self) -> str:
        return self.sentence
