from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Compression(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COMPRESSION_NONE: _ClassVar[Compression]
    COMPRESSION_ZSTD: _ClassVar[Compression]

class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_UNSPECIFIED: _ClassVar[Stage]
    STAGE_ENCODE: _ClassVar[Stage]
    STAGE_SEGMENT: _ClassVar[Stage]
COMPRESSION_NONE: Compression
COMPRESSION_ZSTD: Compression
STAGE_UNSPECIFIED: Stage
STAGE_ENCODE: Stage
STAGE_SEGMENT: Stage

class Geometry(_message.Message):
    __slots__ = ("shape", "spacing_mm", "origin_mm", "direction")
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    SPACING_MM_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_MM_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    shape: _containers.RepeatedScalarFieldContainer[int]
    spacing_mm: _containers.RepeatedScalarFieldContainer[float]
    origin_mm: _containers.RepeatedScalarFieldContainer[float]
    direction: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, shape: _Optional[_Iterable[int]] = ..., spacing_mm: _Optional[_Iterable[float]] = ..., origin_mm: _Optional[_Iterable[float]] = ..., direction: _Optional[_Iterable[float]] = ...) -> None: ...

class PutSeriesRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: SeriesHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[SeriesHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class SeriesHeader(_message.Message):
    __slots__ = ("geometry", "digest", "compression")
    GEOMETRY_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    geometry: Geometry
    digest: str
    compression: Compression
    def __init__(self, geometry: _Optional[_Union[Geometry, _Mapping]] = ..., digest: _Optional[str] = ..., compression: _Optional[_Union[Compression, str]] = ...) -> None: ...

class PutSeriesResponse(_message.Message):
    __slots__ = ("digest", "already_resident")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ALREADY_RESIDENT_FIELD_NUMBER: _ClassVar[int]
    digest: str
    already_resident: bool
    def __init__(self, digest: _Optional[str] = ..., already_resident: _Optional[bool] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("series", "max_tokens", "sampling")
    SERIES_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    series: str
    max_tokens: int
    sampling: Sampling
    def __init__(self, series: _Optional[str] = ..., max_tokens: _Optional[int] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ...) -> None: ...

class AskRequest(_message.Message):
    __slots__ = ("series", "question", "max_tokens", "sampling")
    SERIES_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    series: str
    question: str
    max_tokens: int
    sampling: Sampling
    def __init__(self, series: _Optional[str] = ..., question: _Optional[str] = ..., max_tokens: _Optional[int] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "seed")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    seed: int
    def __init__(self, temperature: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class SegmentRequest(_message.Message):
    __slots__ = ("series", "objects", "previews", "local", "cleanup")
    SERIES_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    PREVIEWS_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    CLEANUP_FIELD_NUMBER: _ClassVar[int]
    series: str
    objects: _containers.RepeatedCompositeFieldContainer[ObjectPrompt]
    previews: bool
    local: bool
    cleanup: Cleanup
    def __init__(self, series: _Optional[str] = ..., objects: _Optional[_Iterable[_Union[ObjectPrompt, _Mapping]]] = ..., previews: _Optional[bool] = ..., local: _Optional[bool] = ..., cleanup: _Optional[_Union[Cleanup, _Mapping]] = ...) -> None: ...

class Cleanup(_message.Message):
    __slots__ = ("largest_component", "fill_holes")
    LARGEST_COMPONENT_FIELD_NUMBER: _ClassVar[int]
    FILL_HOLES_FIELD_NUMBER: _ClassVar[int]
    largest_component: bool
    fill_holes: bool
    def __init__(self, largest_component: _Optional[bool] = ..., fill_holes: _Optional[bool] = ...) -> None: ...

class ObjectPrompt(_message.Message):
    __slots__ = ("label", "text", "points", "boxes", "mask", "earlier_sha256")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    BOXES_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    EARLIER_SHA256_FIELD_NUMBER: _ClassVar[int]
    label: str
    text: str
    points: _containers.RepeatedCompositeFieldContainer[Point]
    boxes: _containers.RepeatedCompositeFieldContainer[Box]
    mask: bytes
    earlier_sha256: bytes
    def __init__(self, label: _Optional[str] = ..., text: _Optional[str] = ..., points: _Optional[_Iterable[_Union[Point, _Mapping]]] = ..., boxes: _Optional[_Iterable[_Union[Box, _Mapping]]] = ..., mask: _Optional[bytes] = ..., earlier_sha256: _Optional[bytes] = ...) -> None: ...

class Point(_message.Message):
    __slots__ = ("lps_mm", "negative", "correction")
    LPS_MM_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_FIELD_NUMBER: _ClassVar[int]
    CORRECTION_FIELD_NUMBER: _ClassVar[int]
    lps_mm: _containers.RepeatedScalarFieldContainer[float]
    negative: bool
    correction: int
    def __init__(self, lps_mm: _Optional[_Iterable[float]] = ..., negative: _Optional[bool] = ..., correction: _Optional[int] = ...) -> None: ...

class Box(_message.Message):
    __slots__ = ("min_lps_mm", "max_lps_mm")
    MIN_LPS_MM_FIELD_NUMBER: _ClassVar[int]
    MAX_LPS_MM_FIELD_NUMBER: _ClassVar[int]
    min_lps_mm: _containers.RepeatedScalarFieldContainer[float]
    max_lps_mm: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, min_lps_mm: _Optional[_Iterable[float]] = ..., max_lps_mm: _Optional[_Iterable[float]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("text", "preview", "progress", "mask", "done")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    text: TextDelta
    preview: SlicePreview
    progress: Progress
    mask: Mask
    done: Done
    def __init__(self, text: _Optional[_Union[TextDelta, _Mapping]] = ..., preview: _Optional[_Union[SlicePreview, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., mask: _Optional[_Union[Mask, _Mapping]] = ..., done: _Optional[_Union[Done, _Mapping]] = ...) -> None: ...

class TextDelta(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class SlicePreview(_message.Message):
    __slots__ = ("object", "slice", "score", "packed")
    OBJECT_FIELD_NUMBER: _ClassVar[int]
    SLICE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    object: int
    slice: int
    score: float
    packed: bytes
    def __init__(self, object: _Optional[int] = ..., slice: _Optional[int] = ..., score: _Optional[float] = ..., packed: _Optional[bytes] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("stage", "done", "total")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    stage: Stage
    done: int
    total: int
    def __init__(self, stage: _Optional[_Union[Stage, str]] = ..., done: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class Mask(_message.Message):
    __slots__ = ("object", "label", "prompt", "found", "score", "packed", "measurement", "key_slices", "slice_scores", "span", "local", "changed", "cleaned")
    class SliceScoresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    OBJECT_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    MEASUREMENT_FIELD_NUMBER: _ClassVar[int]
    KEY_SLICES_FIELD_NUMBER: _ClassVar[int]
    SLICE_SCORES_FIELD_NUMBER: _ClassVar[int]
    SPAN_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    CLEANED_FIELD_NUMBER: _ClassVar[int]
    object: int
    label: str
    prompt: str
    found: bool
    score: float
    packed: bytes
    measurement: Measurement
    key_slices: _containers.RepeatedScalarFieldContainer[int]
    slice_scores: _containers.ScalarMap[int, float]
    span: TextSpan
    local: bool
    changed: VoxelBox
    cleaned: Cleaned
    def __init__(self, object: _Optional[int] = ..., label: _Optional[str] = ..., prompt: _Optional[str] = ..., found: _Optional[bool] = ..., score: _Optional[float] = ..., packed: _Optional[bytes] = ..., measurement: _Optional[_Union[Measurement, _Mapping]] = ..., key_slices: _Optional[_Iterable[int]] = ..., slice_scores: _Optional[_Mapping[int, float]] = ..., span: _Optional[_Union[TextSpan, _Mapping]] = ..., local: _Optional[bool] = ..., changed: _Optional[_Union[VoxelBox, _Mapping]] = ..., cleaned: _Optional[_Union[Cleaned, _Mapping]] = ...) -> None: ...

class VoxelBox(_message.Message):
    __slots__ = ("min", "max")
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    min: _containers.RepeatedScalarFieldContainer[int]
    max: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, min: _Optional[_Iterable[int]] = ..., max: _Optional[_Iterable[int]] = ...) -> None: ...

class Cleaned(_message.Message):
    __slots__ = ("cleanup", "removed_voxels", "filled_voxels")
    CLEANUP_FIELD_NUMBER: _ClassVar[int]
    REMOVED_VOXELS_FIELD_NUMBER: _ClassVar[int]
    FILLED_VOXELS_FIELD_NUMBER: _ClassVar[int]
    cleanup: Cleanup
    removed_voxels: int
    filled_voxels: int
    def __init__(self, cleanup: _Optional[_Union[Cleanup, _Mapping]] = ..., removed_voxels: _Optional[int] = ..., filled_voxels: _Optional[int] = ...) -> None: ...

class TextSpan(_message.Message):
    __slots__ = ("start", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class Measurement(_message.Message):
    __slots__ = ("voxels", "volume_mm3", "diameter_mm", "centroid_lps_mm", "box_min", "box_max", "diameter_3d_mm")
    VOXELS_FIELD_NUMBER: _ClassVar[int]
    VOLUME_MM3_FIELD_NUMBER: _ClassVar[int]
    DIAMETER_MM_FIELD_NUMBER: _ClassVar[int]
    CENTROID_LPS_MM_FIELD_NUMBER: _ClassVar[int]
    BOX_MIN_FIELD_NUMBER: _ClassVar[int]
    BOX_MAX_FIELD_NUMBER: _ClassVar[int]
    DIAMETER_3D_MM_FIELD_NUMBER: _ClassVar[int]
    voxels: int
    volume_mm3: float
    diameter_mm: float
    centroid_lps_mm: _containers.RepeatedScalarFieldContainer[float]
    box_min: _containers.RepeatedScalarFieldContainer[int]
    box_max: _containers.RepeatedScalarFieldContainer[int]
    diameter_3d_mm: float
    def __init__(self, voxels: _Optional[int] = ..., volume_mm3: _Optional[float] = ..., diameter_mm: _Optional[float] = ..., centroid_lps_mm: _Optional[_Iterable[float]] = ..., box_min: _Optional[_Iterable[int]] = ..., box_max: _Optional[_Iterable[int]] = ..., diameter_3d_mm: _Optional[float] = ...) -> None: ...

class Done(_message.Message):
    __slots__ = ("text", "finish_reason", "prompt_tokens", "completion_tokens", "stages_ms", "provenance", "disclaimer")
    class StagesMsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STAGES_MS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    DISCLAIMER_FIELD_NUMBER: _ClassVar[int]
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    stages_ms: _containers.ScalarMap[str, float]
    provenance: Provenance
    disclaimer: str
    def __init__(self, text: _Optional[str] = ..., finish_reason: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., stages_ms: _Optional[_Mapping[str, float]] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ..., disclaimer: _Optional[str] = ...) -> None: ...

class Provenance(_message.Message):
    __slots__ = ("series", "checkpoint", "trained", "checkpoint_digest", "file_sha256", "software", "triton_version", "windows", "quantisation")
    class FileSha256Entry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class WindowsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SERIES_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    TRAINED_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FILE_SHA256_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    TRITON_VERSION_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    QUANTISATION_FIELD_NUMBER: _ClassVar[int]
    series: str
    checkpoint: str
    trained: bool
    checkpoint_digest: str
    file_sha256: _containers.ScalarMap[str, str]
    software: str
    triton_version: str
    windows: _containers.ScalarMap[str, str]
    quantisation: Quantisation
    def __init__(self, series: _Optional[str] = ..., checkpoint: _Optional[str] = ..., trained: _Optional[bool] = ..., checkpoint_digest: _Optional[str] = ..., file_sha256: _Optional[_Mapping[str, str]] = ..., software: _Optional[str] = ..., triton_version: _Optional[str] = ..., windows: _Optional[_Mapping[str, str]] = ..., quantisation: _Optional[_Union[Quantisation, _Mapping]] = ...) -> None: ...

class Quantisation(_message.Message):
    __slots__ = ("method", "format", "weight_bits", "activation_bits", "dtype", "digest")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BITS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_BITS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    method: str
    format: str
    weight_bits: int
    activation_bits: int
    dtype: str
    digest: str
    def __init__(self, method: _Optional[str] = ..., format: _Optional[str] = ..., weight_bits: _Optional[int] = ..., activation_bits: _Optional[int] = ..., dtype: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("provenance", "labels", "limits", "backends", "intended_use", "disclaimer")
    class BackendsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    BACKENDS_FIELD_NUMBER: _ClassVar[int]
    INTENDED_USE_FIELD_NUMBER: _ClassVar[int]
    DISCLAIMER_FIELD_NUMBER: _ClassVar[int]
    provenance: Provenance
    labels: _containers.RepeatedCompositeFieldContainer[Label]
    limits: Limits
    backends: _containers.ScalarMap[str, str]
    intended_use: str
    disclaimer: str
    def __init__(self, provenance: _Optional[_Union[Provenance, _Mapping]] = ..., labels: _Optional[_Iterable[_Union[Label, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., backends: _Optional[_Mapping[str, str]] = ..., intended_use: _Optional[str] = ..., disclaimer: _Optional[str] = ...) -> None: ...

class Label(_message.Message):
    __slots__ = ("name", "snomed_code", "snomed_meaning")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SNOMED_CODE_FIELD_NUMBER: _ClassVar[int]
    SNOMED_MEANING_FIELD_NUMBER: _ClassVar[int]
    name: str
    snomed_code: str
    snomed_meaning: str
    def __init__(self, name: _Optional[str] = ..., snomed_code: _Optional[str] = ..., snomed_meaning: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_series_bytes", "min_slices", "max_slices", "max_objects", "max_prompts_per_object", "max_text_characters", "max_mask_bytes", "max_corrections_per_object", "max_given_slices")
    MAX_SERIES_BYTES_FIELD_NUMBER: _ClassVar[int]
    MIN_SLICES_FIELD_NUMBER: _ClassVar[int]
    MAX_SLICES_FIELD_NUMBER: _ClassVar[int]
    MAX_OBJECTS_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPTS_PER_OBJECT_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXT_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    MAX_MASK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_CORRECTIONS_PER_OBJECT_FIELD_NUMBER: _ClassVar[int]
    MAX_GIVEN_SLICES_FIELD_NUMBER: _ClassVar[int]
    max_series_bytes: int
    min_slices: int
    max_slices: int
    max_objects: int
    max_prompts_per_object: int
    max_text_characters: int
    max_mask_bytes: int
    max_corrections_per_object: int
    max_given_slices: int
    def __init__(self, max_series_bytes: _Optional[int] = ..., min_slices: _Optional[int] = ..., max_slices: _Optional[int] = ..., max_objects: _Optional[int] = ..., max_prompts_per_object: _Optional[int] = ..., max_text_characters: _Optional[int] = ..., max_mask_bytes: _Optional[int] = ..., max_corrections_per_object: _Optional[int] = ..., max_given_slices: _Optional[int] = ...) -> None: ...
