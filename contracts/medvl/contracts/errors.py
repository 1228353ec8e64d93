"""Every error a caller can meet, drawn once; ``medvl.wire.status`` maps it once to gRPC.

::

    MedvlError
    ├── InvalidRequest            the request cannot be answered as it stands
    │   ├── UnknownLabel          a class label that the checkpoint does not know
    │   └── PromptOutsideVolume   a point or box that does not touch the volume
    ├── SeriesError               the files are not one readable CT series
    │   ├── EmptySeries           nothing there to read
    │   ├── MixedSeries           more than one series, patient, study or frame of reference in one folder
    │   ├── NotCt                 another modality, a localizer, a derived image, values other than HU
    │   ├── CorruptFile           truncated, undecodable, or claims what its length denies
    │   ├── TooFewSlices          not enough slices for a volume
    │   └── SeriesTooLarge        over the configured limits
    ├── GeometryRefused           tilt, gaps or uneven spacing under a policy that rejects them
    ├── SeriesNotResident         the server does not hold this series: send it (again)
    ├── Overloaded                admission refused; retry after ``retry_after_s``
    ├── BackendUnavailable        a model does not answer; the call may be retried
    ├── DeadlineExceeded          the caller's deadline passed
    ├── RequestCancelled          the caller went away
    ├── CheckpointError           a folder or repository that breaks the checkpoint contract
    ├── ParityError               an exported part that disagrees with the torch reference
    ├── BuildError                a part that its target's builder refuses, or dies of
    ├── SetupError                this machine lacks something; the sentence says what
    └── InternalError             a defect of ours

The text of an error is one sentence that says what is wrong and, where there is something to do, what. It is shown to
callers as it is, so it never holds patient data, a path of the server or the words of a backend.
"""

from __future__ import annotations

from typing import ClassVar


class MedvlError(Exception):
    """Root of the tree.

    Attributes
    ----------
    reason
        Stable upper-case name that crosses the wire in ``google.rpc.ErrorInfo``.
    retry_after_s
        Delay in seconds after which the same call may succeed, or None when repeating it is pointless.
    """

    reason: ClassVar[str] = "ERROR"

    def __init__(self, sentence: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(sentence)
        self.retry_after_s = retry_after_s


class InvalidRequest(MedvlError):
    """The request cannot be answered as it stands."""

    reason = "INVALID_REQUEST"


class UnknownLabel(InvalidRequest):
    """A class label that the checkpoint does not know."""

    reason = "UNKNOWN_LABEL"


class PromptOutsideVolume(InvalidRequest):
    """A point or box that does not touch the volume."""

    reason = "PROMPT_OUTSIDE_VOLUME"


class SeriesError(MedvlError):
    """The files are not one readable CT series."""

    reason = "SERIES_ERROR"


class EmptySeries(SeriesError):
    """Nothing there to read."""

    reason = "EMPTY_SERIES"


class MixedSeries(SeriesError):
    """More than one series, patient, study or frame of reference in one folder."""

    reason = "MIXED_SERIES"


class NotCt(SeriesError):
    """Another modality, a localizer, a derived image, or values other than HU."""

    reason = "NOT_CT"


class CorruptFile(SeriesError):
    """Truncated, undecodable, or a header that claims what the file's length denies."""

    reason = "CORRUPT_FILE"


class TooFewSlices(SeriesError):
    """Not enough slices for a volume."""

    reason = "TOO_FEW_SLICES"


class SeriesTooLarge(SeriesError):
    """More voxels, slices or bytes than the configured limits."""

    reason = "SERIES_TOO_LARGE"


class GeometryRefused(MedvlError):
    """Gantry tilt, gaps or uneven spacing under a policy that rejects them."""

    reason = "GEOMETRY_REFUSED"


class SeriesNotResident(MedvlError):
    """The server does not hold this series: send it (again)."""

    reason = "SERIES_NOT_RESIDENT"


class Overloaded(MedvlError):
    """Admission refused; retry after ``retry_after_s``."""

    reason = "OVERLOADED"


class BackendUnavailable(MedvlError):
    """A model does not answer; the call may be retried."""

    reason = "BACKEND_UNAVAILABLE"


class DeadlineExceeded(MedvlError):
    """The caller's deadline passed before the answer was complete."""

    reason = "DEADLINE_EXCEEDED"


class RequestCancelled(MedvlError):
    """The caller went away."""

    reason = "REQUEST_CANCELLED"


class CheckpointError(MedvlError):
    """A folder or repository that breaks the checkpoint contract."""

    reason = "CHECKPOINT_ERROR"


class ParityError(MedvlError):
    """An exported part that disagrees with the torch reference."""

    reason = "PARITY_ERROR"


class BuildError(MedvlError):
    """A part that the builder of its target refuses, or that takes it too long or too much memory."""

    reason = "BUILD_ERROR"


class SetupError(MedvlError):
    """The machine lacks something that is needed; the sentence says what to do."""

    reason = "SETUP_ERROR"


class InternalError(MedvlError):
    """A defect of ours."""

    reason = "INTERNAL"
