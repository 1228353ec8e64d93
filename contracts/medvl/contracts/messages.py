"""Structured messages that cross Triton as UTF-8 JSON in UINT8 tensors, next to the arrays.

Coordinates are voxel indices of the canonical grid (slice, row, column; voxel centres at whole numbers).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from medvl.contracts.errors import InvalidRequest

MAX_POINTS = 32
"""Points of one object on one slice that SAM2's graphs take: of all corrections together, and a box counts as two."""


MAX_GIVEN_SLICES = 4096
"""Slices that given masks may prompt in one request, each object counting its own.

What is decoded on a prompted slice is kept while its object is tracked. It is as many as 64 objects prompt by 64 points
each, and lets one mask through on the largest series.
"""


class Message(BaseModel):
    """A frozen value that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_bytes(self) -> bytes:
        """Return UTF-8 JSON."""
        return self.model_dump_json().encode()


class LanguageOptions(Message):
    """How the language model should answer."""

    max_tokens: int = Field(gt=0)
    temperature: float = Field(default=0.0, ge=0.0)
    seed: int | None = None
    answer_template: str | None = None
    """Text that the answer must be, [SEG] forced as the token; None leaves it free."""


class LanguageUsage(Message):
    """What a generation cost and why it ended."""

    prompt_tokens: int
    completion_tokens: int
    finish_reason: Literal["stop", "length", "abort"]
    queue_ms: float
    prefill_ms: float
    decode_ms: float
    weights: str = ""
    """What generated: see :func:`medvl.contracts.quantisation.served_weights`. Without it an answer is refused."""


class PointPrompt(Message):
    """A click: voxel indices on the canonical grid, fractions allowed."""

    slice: int
    row: float
    column: float
    positive: bool = True
    correction: int = Field(default=0, ge=0)
    """0 tells what the object is; all points of one higher number correct the mask that everything below it makes."""


class BoxPrompt(Message):
    """A 3D box: its rectangle prompts ``slice``; the mask stays within ``first_slice`` to ``last_slice``."""

    slice: int
    first_slice: int
    last_slice: int
    row_min: float
    column_min: float
    row_max: float
    column_max: float


def check_points_per_slice(object_id: int, points: Iterable[PointPrompt], boxes: Iterable[BoxPrompt]) -> None:
    """Check that no slice has more points of an object than :data:`MAX_POINTS`.

    Raises
    ------
    InvalidRequest
        When one has.
    """
    counts = Counter(p.slice for p in points)
    for box in boxes:
        counts[box.slice] += 2
    for number, count in counts.items():
        if count > MAX_POINTS:
            raise InvalidRequest(
                f"Object {object_id} has {count} points on slice {number}, a box counting as two: "
                f"give {MAX_POINTS} at most."
            )


def check_box_per_slice(object_id: int, boxes: Iterable[BoxPrompt]) -> None:
    """Check that no slice is prompted by two boxes of an object.

    Raises
    ------
    InvalidRequest
        When one is.
    """
    for number, times in Counter(b.slice for b in boxes).items():
        if times > 1:
            raise InvalidRequest(f"Object {object_id} has {times} boxes whose middle slice is {number}: give one.")


def check_given_slices(object_id: int, slices: int, before: int) -> int:
    """Check on how many slices the mask of an object has a voxel.

    Parameters
    ----------
    before
        How many the masks of the objects before it have.

    Returns
    -------
    int
        How many they are with these.

    Raises
    ------
    InvalidRequest
        When it has none, or all together more than :data:`MAX_GIVEN_SLICES`.
    """
    if not slices:
        raise InvalidRequest(f"The mask of object {object_id} has no voxel: leave it out or mark the object.")
    if before + slices > MAX_GIVEN_SLICES:
        raise InvalidRequest(
            f"The masks of the request have voxels on more than {MAX_GIVEN_SLICES} slices, "
            "each object counting its own: give fewer objects at once."
        )
    return before + slices


class GivenMask(Message):
    """Bytes of the ``masks`` tensor: a mask (D, R, C) as it travels, see :mod:`medvl.imaging.masks`."""

    start: int = Field(ge=0)
    length: int = Field(gt=0)


class ObjectPrompts(Message):
    """Everything that describes one object; at least one prompt."""

    object_id: int
    points: tuple[PointPrompt, ...] = ()
    boxes: tuple[BoxPrompt, ...] = ()
    mask: GivenMask | None = None
    """What the object is on every slice where this mask has a voxel; points on such a slice correct it there."""
    seg_row: int | None = None
    """Row of the ``seg_hidden`` tensor that prompts this object."""
    earlier_sha256: str | None = None
    """Of the packed mask that the caller holds of this object, in hexadecimal: how the new one differs is wanted."""

    @property
    def corrections(self) -> tuple[int, ...]:
        """The numbers of its corrections, ascending."""
        return tuple(sorted({p.correction for p in self.points} - {0}))

    def before(self, correction: int) -> ObjectPrompts:
        """Return what there was before a correction."""
        return self.model_copy(update={"points": tuple(p for p in self.points if p.correction < correction)})


class SegmenterRequest(Message):
    """Prompts on a series whose slices the segmenter holds, or receives with this request."""

    series: str
    """Digest of the canonical volume."""
    window_hu: tuple[float, float]
    """The window that ``slices`` went through; part of the key of the feature store."""
    shape: tuple[int, int, int]
    """Slices, rows and columns of the canonical volume."""
    objects: tuple[ObjectPrompts, ...]
    local: bool = False
    """Whether tracking may end where it agrees with what is known of an object without its last correction."""


class NotResident(Message):
    """The segmenter does not hold the series: send the request again with ``slices``. Last event."""

    kind: Literal["not_resident"] = "not_resident"


class SliceMask(Message):
    """The mask of a prompted slice, before propagation; the ``mask`` tensor holds it packed as (1, R, C)."""

    kind: Literal["slice_mask"] = "slice_mask"
    object_id: int
    slice: int
    score: float
    """sigmoid(object score) x predicted IoU."""


class Progress(Message):
    """How many slices have been worked on, of at most how many."""

    kind: Literal["progress"] = "progress"
    slices_done: int
    slices_total: int


class VoxelBox(Message):
    """First and last slice, row and column."""

    min: tuple[int, int, int]
    max: tuple[int, int, int]


class ObjectMask(Message):
    """The whole mask of one object; the ``mask`` tensor holds it packed as (D, R, C), empty when not found."""

    kind: Literal["object_mask"] = "object_mask"
    object_id: int
    found: bool
    score: float
    """Of the best key slice: sigmoid(object score) x predicted IoU."""
    key_slices: tuple[int, ...]
    slice_scores: dict[int, float]
    """sigmoid(object score) of every slice that was worked on."""
    local: bool = False
    """Whether it was tracked around its last correction only."""
    changed: VoxelBox | None = None
    """Where the mask differs from the one that the request named, if that is known and something differs."""


class SegmenterDone(Message):
    """Last event of an answered request."""

    kind: Literal["done"] = "done"
    slices_encoded: int
    """Slices whose features this request had to compute."""
    encode_ms: float
    decode_ms: float
    track_ms: float
    total_ms: float
    weights: str
    """What segmented: see :func:`medvl.contracts.quantisation.served_weights`."""


SegmenterEvent = Annotated[
    NotResident | SliceMask | Progress | ObjectMask | SegmenterDone,
    Field(discriminator="kind"),
]

_EVENT: TypeAdapter[SegmenterEvent] = TypeAdapter(SegmenterEvent)


def parse_event(data: bytes) -> SegmenterEvent:
    """Read one event of ``volume_segmenter`` from UTF-8 JSON."""
    return _EVENT.validate_json(data)
