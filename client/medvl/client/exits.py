"""Exit codes of ``medvl`` by class of error."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType

from medvl.contracts import errors
from medvl.contracts.errors import MedvlError


class Exit(IntEnum):
    """What the shell gets."""

    OK = 0
    DEFECT = 1
    USAGE = 2
    SERIES = 3
    GEOMETRY = 4
    UNAVAILABLE = 5
    DEADLINE = 6
    SETUP = 7
    NOT_FOUND = 8
    INTERRUPTED = 130


EXIT_HELP = """\
exit codes:
  0    done
  1    a defect of this program or of the server
  2    the request cannot be answered as it stands: arguments, unknown class, point outside the volume
  3    the files are not one readable CT series
  4    the geometry of the series was refused: see --geometry-policy
  5    the service is away or overloaded; the command may be repeated
  6    the deadline passed
  7    something is not set up: no service named, a missing package, a broken checkpoint, a file that cannot be read or
       written
  8    segment: none of the objects was found in the volume; no mask was written
  130  interrupted
"""

_EXITS: Mapping[type[MedvlError], Exit] = MappingProxyType(
    {
        errors.InvalidRequest: Exit.USAGE,
        errors.SeriesError: Exit.SERIES,
        errors.GeometryRefused: Exit.GEOMETRY,
        errors.SeriesNotResident: Exit.UNAVAILABLE,
        errors.Overloaded: Exit.UNAVAILABLE,
        errors.BackendUnavailable: Exit.UNAVAILABLE,
        errors.DeadlineExceeded: Exit.DEADLINE,
        errors.CheckpointError: Exit.SETUP,
        errors.SetupError: Exit.SETUP,
        errors.RequestCancelled: Exit.INTERRUPTED,
    }
)


def exit_of(error: MedvlError) -> Exit:
    """Return the exit code of an error: that of its nearest class in the tree."""
    return next((_EXITS[c] for c in type(error).__mro__ if c in _EXITS), Exit.DEFECT)
