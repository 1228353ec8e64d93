"""What a call returns: the collected answer, the receipt of an upload, the description of a service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medvl.client.events import Done, Mask, Provenance, SlicePreview, provenance_from_wire
from medvl.contracts.disclaimer import DISCLAIMER
from medvl.wire.v1 import medvl_pb2 as pb


@dataclass(frozen=True, slots=True)
class SeriesRef:
    """A series that a service holds: its digest, and the slices, rows and columns of its canonical grid."""

    digest: str
    shape: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Upload:
    """Receipt of ``put_series``; ``sent_bytes`` counts voxels handed to the connection before the server answered."""

    series: SeriesRef
    already_resident: bool
    sent_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answered stream: the text (empty for segmentation), every mask in order of arrival, the account."""

    text: str
    masks: tuple[Mask, ...]
    previews: tuple[SlicePreview, ...]
    done: Done


@dataclass(frozen=True, slots=True)
class Label:
    """A class that can be segmented by name; the SNOMED CT fields are empty when it has no code."""

    name: str
    snomed_code: str
    snomed_meaning: str


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """What a service takes; more is refused. 0 where an older one does not tell."""

    max_series_bytes: int
    min_slices: int
    max_slices: int
    max_objects: int
    max_prompts_per_object: int
    max_corrections_per_object: int
    max_mask_bytes: int
    max_given_slices: int
    max_text_characters: int


@dataclass(frozen=True, slots=True)
class ServiceDescription:
    """What a service serves; ``backends`` names what carries out each model of its Triton."""

    provenance: Provenance
    labels: tuple[Label, ...]
    limits: ServiceLimits
    backends: Mapping[str, str]
    intended_use: str
    disclaimer: str


def description_from_wire(message: pb.DescribeResponse) -> ServiceDescription:
    """Return a message of the protocol as a value."""
    limits = message.limits
    return ServiceDescription(
        provenance=provenance_from_wire(message.provenance),
        labels=tuple(Label(la.name, la.snomed_code, la.snomed_meaning) for la in message.labels),
        limits=ServiceLimits(
            max_series_bytes=limits.max_series_bytes,
            min_slices=limits.min_slices,
            max_slices=limits.max_slices,
            max_objects=limits.max_objects,
            max_prompts_per_object=limits.max_prompts_per_object,
            max_corrections_per_object=limits.max_corrections_per_object,
            max_mask_bytes=limits.max_mask_bytes,
            max_given_slices=limits.max_given_slices,
            max_text_characters=limits.max_text_characters,
        ),
        backends=dict(message.backends),
        intended_use=message.intended_use,
        disclaimer=message.disclaimer.strip() or DISCLAIMER,
    )
