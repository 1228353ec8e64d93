"""What a service says while it answers, as frozen values: text, previews, progress, masks, and the closing account."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from medvl.contracts.disclaimer import DISCLAIMER
from medvl.contracts.errors import InvalidRequest
from medvl.imaging.masks import pack_mask, unpack_mask
from medvl.wire.v1 import medvl_pb2 as pb

Shape = tuple[int, int, int]
"""Slices, rows and columns of the canonical grid."""
_ANOTHER_MASK = "This is not the mask that the prompt named: lay the answer over that one."


class Stage(StrEnum):
    """What a service is busy with."""

    ENCODE = "encode"
    SEGMENT = "segment"
    OTHER = "other"
    """A stage that this client does not know yet."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text that the answer grows by."""

    text: str


@dataclass(frozen=True)
class SlicePreview:
    """The 2D mask of a prompted slice, before propagation.

    ``object_index`` counts the request's objects; ``slice_index`` counts slices of the canonical grid; ``score`` is
    sigmoid(object score) x predicted IoU.
    """

    object_index: int
    slice_index: int
    score: float
    packed: bytes
    volume_shape: Shape

    @cached_property
    def array(self) -> NDArray[np.bool_]:
        """The mask, bool [R, C], rows to posterior and columns to left."""
        plane: NDArray[np.bool_] = unpack_mask(self.packed, (1, *self.volume_shape[1:]))[0]
        return plane


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage is: ``done`` of at most ``total`` steps."""

    stage: Stage
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the service measured of a mask on the canonical grid.

    ``diameter_mm`` is the longest in a slice, ``diameter_3d_mm`` through all slices; ``box_min`` and ``box_max`` are
    the first and last slice, row and column.
    """

    voxels: int
    volume_mm3: float
    diameter_mm: float
    diameter_3d_mm: float
    centroid_lps_mm: tuple[float, ...]
    box_min: tuple[int, ...]
    box_max: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextSpan:
    """Half-open range of characters (Unicode code points) of the whole text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class VoxelBox:
    """First and last slice, row and column of a part of the canonical grid."""

    min: tuple[int, ...]
    max: tuple[int, ...]

    @property
    def shape(self) -> Shape:
        """How many slices, rows and columns."""
        depth, rows, columns = (b - a + 1 for a, b in zip(self.min, self.max, strict=True))
        return depth, rows, columns

    @property
    def slices(self) -> tuple[slice, ...]:
        """The part as an index of an array [D, R, C]."""
        return tuple(slice(a, b + 1) for a, b in zip(self.min, self.max, strict=True))


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What a cleanup of a mask did."""

    largest_component: bool
    fill_holes: bool
    removed_voxels: int
    filled_voxels: int


@dataclass(frozen=True)
class Mask:
    """One object in 3D, or the statement that it is not in the volume.

    Attributes
    ----------
    object_index
        Counts the request's objects, or the [SEG] tokens of the text.
    label
        Class, or empty.
    prompt
        The prompt in words: the class, the text, or "2 points, 1 box".
    found
        False when the object is not in the volume: ``array`` holds no voxel then and ``measurement`` is None.
    score
        Of the best key slice: sigmoid(object score) x predicted IoU.
    packed, volume_shape
        The packed mask and its canonical grid; read ``array``.
    key_slices, slice_scores
        Slices that were prompted, and sigmoid(object score) of all that were worked on; canonical grid.
    span
        The [SEG] of the text that this mask belongs to, or None.
    local
        Whether it was tracked around the last correction only.
    changed
        The box that ``packed`` holds, where it differs from the mask that the prompt named; use :meth:`laid_over`.
        None for a whole mask.
    cleaned
        What a cleanup did, or None.
    """

    object_index: int
    label: str
    prompt: str
    found: bool
    score: float
    packed: bytes
    volume_shape: Shape
    measurement: Measurement | None
    key_slices: tuple[int, ...]
    slice_scores: Mapping[int, float]
    span: TextSpan | None
    local: bool = False
    changed: VoxelBox | None = None
    cleaned: Cleaned | None = None

    @cached_property
    def array(self) -> NDArray[np.bool_]:
        """The mask, bool [D, R, C] on the canonical grid; unpacked on first use.

        Raises
        ------
        InvalidRequest
            When the answer is only what has changed.
        """
        if self.changed is not None:
            raise InvalidRequest("This answer is only what has changed of a mask: lay it over the earlier one.")
        return unpack_mask(self.packed, self.volume_shape) if self.found else np.zeros(self.volume_shape, np.bool_)

    @property
    def name(self) -> str:
        """What to call it: class or prompt, else the number of its [SEG] in the text, or of its object."""
        number = f"[SEG] {self.object_index + 1}" if self.span else f"object {self.object_index}"
        return self.label or self.prompt or number

    @property
    def sha256(self) -> bytes:
        """What names a whole mask to the service, see :attr:`medvl.client.ObjectPrompt.earlier`."""
        return hashlib.sha256(self.packed).digest()

    def laid_over(self, earlier: Mask) -> Mask:
        """Return the whole mask, of the one that the prompt named and what has changed; a whole one as it is.

        Raises
        ------
        InvalidRequest
            When it is another mask that is laid under, as far as the number of voxels tells.
        """
        if self.changed is None:
            return self
        if earlier.volume_shape != self.volume_shape:
            raise InvalidRequest(_ANOTHER_MASK)
        array = earlier.array.copy()
        array[self.changed.slices] = unpack_mask(self.packed, self.changed.shape)
        if self.measurement is None or np.count_nonzero(array) != self.measurement.voxels:
            raise InvalidRequest(_ANOTHER_MASK)
        return replace(self, packed=pack_mask(array), changed=None)


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How the language model that answered is quantised; ``activation_bits`` is None where only its weights are."""

    method: str
    format: str
    weight_bits: int
    activation_bits: int | None
    dtype: str
    digest: str

    def __str__(self) -> str:
        activations = f"{self.activation_bits} bits" if self.activation_bits else self.dtype
        how = " ".join(filter(None, (self.method, self.format)))
        return f"weights in {self.weight_bits} bits, activations in {activations} ({how})"


@dataclass(frozen=True, slots=True)
class Provenance:
    """What produced a result; ``windows`` names the HU window of each use.

    ``quantisation`` is None where the language model is served as the checkpoint has it.
    """

    series: str
    checkpoint: str
    trained: bool
    checkpoint_digest: str
    file_sha256: Mapping[str, str]
    software: str
    triton_version: str
    windows: Mapping[str, str]
    quantisation: Quantisation | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """Closes every answered stream.

    ``finish_reason`` is "stop" or "length", or empty without text. ``stages_ms`` is the wall time of each stage;
    of ``llm_*`` and ``segmenter_*`` it is the sum over texts and groups of objects, which run side by side, and may
    exceed ``total``. ``disclaimer`` is never empty: where the service sends none it is that of this client.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    stages_ms: Mapping[str, float]
    provenance: Provenance
    disclaimer: str

    @property
    def cut_off(self) -> bool:
        """Whether the text ended at the limit of its length and not where it was done."""
        return self.finish_reason == "length"


Event = TextDelta | SlicePreview | Progress | Mask | Done


def event_from_wire(event: pb.Event, shape: Shape) -> Event | None:
    """Return a message of the protocol as a value, or None for a kind of event that is newer than this client.

    Parameters
    ----------
    event
        As received.
    shape
        Canonical grid of the series that was asked about.
    """
    kind = event.WhichOneof("event")
    return None if kind is None else _READERS[kind](event, shape)


def provenance_from_wire(message: pb.Provenance) -> Provenance:
    """Return a message of the protocol as a value."""
    return Provenance(
        series=message.series,
        checkpoint=message.checkpoint,
        trained=message.trained,
        checkpoint_digest=message.checkpoint_digest,
        file_sha256=dict(message.file_sha256),
        software=message.software,
        triton_version=message.triton_version,
        windows=dict(message.windows),
        quantisation=_quantisation(message.quantisation) if message.HasField("quantisation") else None,
    )


def _quantisation(message: pb.Quantisation) -> Quantisation:
    return Quantisation(
        method=message.method,
        format=message.format,
        weight_bits=message.weight_bits,
        activation_bits=message.activation_bits or None,
        dtype=message.dtype,
        digest=message.digest,
    )


def _text(event: pb.Event, shape: Shape) -> TextDelta:
    return TextDelta(event.text.text)


def _preview(event: pb.Event, shape: Shape) -> SlicePreview:
    message = event.preview
    return SlicePreview(message.object, message.slice, message.score, message.packed, shape)


_STAGES = {
    pb.STAGE_ENCODE: Stage.ENCODE,
    pb.STAGE_SEGMENT: Stage.SEGMENT,
}


def _progress(event: pb.Event, shape: Shape) -> Progress:
    message = event.progress
    return Progress(_STAGES.get(message.stage, Stage.OTHER), message.done, message.total)


def _mask(event: pb.Event, shape: Shape) -> Mask:
    message = event.mask
    return Mask(
        object_index=message.object,
        label=message.label,
        prompt=message.prompt,
        found=message.found,
        score=message.score,
        packed=message.packed,
        volume_shape=shape,
        measurement=_measurement(message.measurement) if message.found else None,
        key_slices=tuple(message.key_slices),
        slice_scores=dict(message.slice_scores),
        span=TextSpan(message.span.start, message.span.end) if message.HasField("span") else None,
        local=message.local,
        changed=_changed(message),
        cleaned=_cleaned(message.cleaned) if message.HasField("cleaned") else None,
    )


def _changed(message: pb.Mask) -> VoxelBox | None:
    box = message.changed
    return VoxelBox(tuple(box.min), tuple(box.max)) if message.HasField("changed") else None


def _cleaned(message: pb.Cleaned) -> Cleaned:
    asked = message.cleanup
    return Cleaned(asked.largest_component, asked.fill_holes, message.removed_voxels, message.filled_voxels)


def _measurement(message: pb.Measurement) -> Measurement:
    return Measurement(
        voxels=message.voxels,
        volume_mm3=message.volume_mm3,
        diameter_mm=message.diameter_mm,
        diameter_3d_mm=message.diameter_3d_mm,
        centroid_lps_mm=tuple(message.centroid_lps_mm),
        box_min=tuple(message.box_min),
        box_max=tuple(message.box_max),
    )


def _done(event: pb.Event, shape: Shape) -> Done:
    message = event.done
    return Done(
        text=message.text,
        finish_reason=message.finish_reason,
        prompt_tokens=message.prompt_tokens,
        completion_tokens=message.completion_tokens,
        stages_ms=dict(message.stages_ms),
        provenance=provenance_from_wire(message.provenance),
        disclaimer=message.disclaimer.strip() or DISCLAIMER,
    )


_READERS: Mapping[str, Callable[[pb.Event, Shape], Event]] = {
    "text": _text,
    "preview": _preview,
    "progress": _progress,
    "mask": _mask,
    "done": _done,
}
