"""CT windows: which HU become black and white."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medvl.contracts.errors import InvalidRequest

_INT16 = np.iinfo(np.int16)


@dataclass(frozen=True)
class Window:
    """A range of HU; ``lower_hu`` becomes 0 and ``upper_hu`` full scale, linearly.

    Raises
    ------
    InvalidRequest
        Unless ``lower_hu`` lies below ``upper_hu``, both finite.
    """

    lower_hu: float
    upper_hu: float

    def __post_init__(self) -> None:
        if not (np.isfinite([self.lower_hu, self.upper_hu]).all() and self.lower_hu < self.upper_hu):
            raise InvalidRequest("The lower HU of a window must lie below its upper HU.")


def to_uint8(hu: NDArray[np.int16], window: Window) -> NDArray[np.uint8]:
    """Return a volume as grey values.

    Parameters
    ----------
    hu
        int16 of any shape, in HU.
    window
        HU at 0 and at 255; values outside are clipped.

    Returns
    -------
    NDArray[np.uint8]
        The same shape, rounded to the nearest grey value.
    """
    every_hu = np.arange(_INT16.min, _INT16.max + 1, dtype=np.float64)
    fraction = (every_hu - window.lower_hu) / (window.upper_hu - window.lower_hu)
    grey = np.rint(np.clip(fraction, 0.0, 1.0) * 255.0).astype(np.uint8)
    # Looked up by the bit pattern: int16 seen as uint16 counts 0..32767, then -32768..-1.
    by_pattern = np.concatenate([grey[-_INT16.min :], grey[: -_INT16.min]])
    return by_pattern[hu.view(np.uint16)]
