"""Memory that the system gets back, in a process that lives long and keeps much for a while."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

_M_MMAP_THRESHOLD = -3
"""Number of ``mallopt`` in glibc's ``malloc.h``."""
_LARGE_BYTES = 4 * 1024**2


def give_large_back() -> None:
    """Let glibc map what is large apart from its heap, whatever came before; another C library stays as it is.

    By default it ends doing so for sizes of which one has been freed: the copy of a series that a request carries then
    leaves a hole for good.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def apart(*arrays: np.ndarray) -> list[np.ndarray]:
    """Return copies in pages of their own, which the system gets back as soon as all of them are forgotten.

    On the heap, large arrays that come and go between short-lived ones leave holes that nothing fits.
    """
    pages = mmap.mmap(-1, sum(a.nbytes for a in arrays), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    copies, place = [], 0
    for array in arrays:
        copies.append(np.frombuffer(pages, array.dtype, array.size, place).reshape(array.shape))
        copies[-1][...] = array
        place += array.nbytes
    return copies
