"""The models that Triton serves: the one list from which everything else is derived.

``config.pbtxt``, the names and dynamic axes of the ONNX graphs, TensorRT profiles, the calls of the orchestrator and
the table in ``docs/architecture.md`` all come from :data:`MODELS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from medvl.contracts.tensors import DType, TensorSpec

ABSENT = -1024.0
"""SAM2's logit of an object that is not on a slice."""

AXES: Mapping[str, str] = MappingProxyType(
    {
        "d": "slices of the vision grid",
        "h": "rows of the vision grid",
        "w": "columns of the vision grid",
        "T_low": "tokens of the encoder's low-level stage",
        "C_low": "channels of the encoder's low-level stage",
        "T_high": "tokens of the encoder's high-level stage",
        "C_high": "channels of the encoder's high-level stage",
        "G": "regions",
        "n_region": "numbers of a region",
        "T": "vision tokens",
        "H": "width of the language model",
        "D": "slices of the source series",
        "S": "side of a SAM2 slice in pixels",
        "f": "side of the coarse feature map, S/16",
        "f_2": "side of the middle feature map, S/8",
        "f_4": "side of the fine feature map and of low-resolution masks, S/4",
        "C": "SAM2 feature channels",
        "C_4": "channels of the middle feature map, C/4",
        "C_8": "channels of the fine feature map, C/8",
        "Cm": "channels of a SAM2 memory",
        "HW": "positions of a memory, f*f",
        "N": "objects",
        "P": "points of a prompt, the two corners of a box included",
        "R": "memories in the bank",
        "Q": "object pointers in the bank",
        "n_prompt": "bytes",
        "n_options": "bytes",
        "n_text": "bytes",
        "n_seg": "[SEG] tokens",
        "n_usage": "bytes",
        "n_request": "bytes",
        "n_event": "bytes",
        "n_mask": "bytes",
        "n_masks": "bytes",
    }
)


class Kind(StrEnum):
    """What carries a model out."""

    NETWORK = "network"
    """A compiled graph: ``tensorrt_plan`` on the GPU, ``onnxruntime`` on the CPU."""
    PYTHON = "python"
    ENSEMBLE = "ensemble"


@dataclass(frozen=True, slots=True)
class EnsembleStep:
    """One step of an ensemble; the maps go from the model's tensor name to the ensemble's."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Signature and scheduling of one folder of the model repository.

    ``max_batch_size`` 0 means that the tensors are listed whole; otherwise Triton's batch axis precedes every shape.
    ``checkpoint`` says that the folder's configuration carries the checkpoint's JSON as a parameter.
    """

    name: str
    kind: Kind
    doc: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int = 0
    queue_delay_us: int | None = None
    decoupled: bool = False
    checkpoint: bool = False
    steps: tuple[EnsembleStep, ...] = field(default=())


CHECKPOINT_PARAMETER = "checkpoint"
"""Key of the config.pbtxt parameter that holds ``checkpoint.json``, so that callers learn it from the server."""
QUANTISATION_PARAMETER = "quantisation"
"""Key of the parameter of ``llm`` that says how the language model is quantised; absent where it is not."""

_FP32, _INT64, _UINT8 = DType.FP32, DType.INT64, DType.UINT8

_VOLUME = (
    TensorSpec(
        "volume_hu",
        DType.FP16,
        ("d", "h", "w"),
        "CT in HU on the vision grid, axes superior, posterior, left",
    ),
    TensorSpec("window_hu", _FP32, (2,), "lower and upper HU that the encoder maps to 0 and 1"),
)
_STAGES = (
    TensorSpec(
        "features_low",
        _FP32,
        ("T_low", "C_low"),
        "features of the low-level stage, tokens in C order of d, h, w",
    ),
    TensorSpec(
        "features_high",
        _FP32,
        ("T_high", "C_high"),
        "features of the high-level stage, tokens in C order of d, h, w",
    ),
)
_REGIONS = TensorSpec(
    "regions",
    _FP32,
    ("G", "n_region"),
    "middle and half extents in shares of slices, rows and columns, then the logit of every kind; a single row that is "
    "nothing where a checkpoint finds none",
)
_VISION_TOKENS = TensorSpec("vision_tokens", _FP32, ("T", "H"), "vision tokens in the language model's embedding space")

_SLICES = TensorSpec("slices", _UINT8, ("S", "S"), "windowed slice, 0 to 255, rows to posterior, columns to left")
_F0 = TensorSpec("f0", _FP32, ("C_8", "f_4", "f_4"), "fine features, after conv_s0")
_F1 = TensorSpec("f1", _FP32, ("C_4", "f_2", "f_2"), "middle features, after conv_s1")
_F2 = TensorSpec("f2", _FP32, ("C", "f", "f"), "coarse features, without no_mem_embed")
_FEATURES = (_F0, _F1, _F2)


def _one(spec: TensorSpec) -> TensorSpec:
    """Return a feature map of one slice, to be broadcast over the objects."""
    return TensorSpec(spec.name, spec.dtype, (1, *spec.shape), spec.doc)


_PROMPT = (
    TensorSpec("points", _FP32, ("P", 2), "x, y in pixels of the S x S slice; pixel centres at +0.5"),
    TensorSpec(
        "labels",
        DType.INT32,
        ("P",),
        "1 positive, 0 negative, 2 and 3 the corners of a box, -1 SAM2's 'not a point', -2 padding without effect",
    ),
    TensorSpec("mask_input", _FP32, (1, "f_4", "f_4"), "mask prompt, logits"),
    TensorSpec("mask_flag", _FP32, (1,), "1 where mask_input counts, else 0"),
    TensorSpec("seg_hidden", _FP32, ("H",), "language hidden state of [SEG], after the final norm"),
    TensorSpec("seg_flag", _FP32, (1,), "1 where seg_hidden counts, else 0"),
    TensorSpec("multimask_flag", _FP32, (1,), "1: best of the three masks by predicted IoU; 0: the single mask"),
)
_DECODED = (
    TensorSpec(
        "mask_logits",
        _FP32,
        (1, "f_4", "f_4"),
        f"low-resolution logits; {ABSENT:g} everywhere where the object is absent",
    ),
    TensorSpec("iou", _FP32, (1,), "predicted IoU of that mask"),
    TensorSpec("object_pointer", _FP32, ("C",), "object pointer; no_obj_ptr where absent"),
    TensorSpec("object_score", _FP32, (1,), "logit that the object is on the slice"),
)


_CORRECTION = tuple(spec for spec in _PROMPT if not spec.name.startswith("seg_"))
"""What corrects a tracked slice; without points and with the flags for mask 0 and multimask 1 it is only tracked."""


def _per_object(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Return specifications with the object axis written out, for models without a Triton batch axis."""
    return tuple(TensorSpec(s.name, s.dtype, ("N", *s.shape), s.doc) for s in specs)


_MEMORY_OUT = TensorSpec("memory", _FP32, ("N", "HW", "Cm"), "memory of the slice, no_obj_embed_spatial included")

_MODELS = (
    ModelSpec(
        "vision_encoder",
        Kind.NETWORK,
        "3D vision encoder; clips and scales HU inside the graph",
        _VOLUME,
        (*_STAGES, _REGIONS),
        max_batch_size=4,
        queue_delay_us=2000,
    ),
    ModelSpec(
        "projector",
        Kind.NETWORK,
        "MLP-Mixer projector from encoder features to vision tokens, in which regions are told",
        (*_STAGES, _REGIONS),
        (_VISION_TOKENS,),
        max_batch_size=4,
    ),
    ModelSpec(
        "encode_volume",
        Kind.ENSEMBLE,
        "a CT volume to vision tokens and regions",
        _VOLUME,
        (_VISION_TOKENS, _REGIONS),
        max_batch_size=4,
        steps=(
            EnsembleStep(
                "vision_encoder",
                {s.name: s.name for s in _VOLUME},
                {s.name: s.name for s in (*_STAGES, _REGIONS)},
            ),
            EnsembleStep(
                "projector", {s.name: s.name for s in (*_STAGES, _REGIONS)}, {"vision_tokens": "vision_tokens"}
            ),
        ),
    ),
    ModelSpec(
        "llm",
        Kind.PYTHON,
        "language model in vLLM's AsyncLLM: vision tokens and a prompt to text deltas and [SEG] states",
        (
            _VISION_TOKENS,
            TensorSpec("prompt", _UINT8, ("n_prompt",), "UTF-8 text without image tokens"),
            TensorSpec("options", _UINT8, ("n_options",), "JSON of medvl.contracts.messages.LanguageOptions"),
        ),
        (
            TensorSpec("text_delta", _UINT8, ("n_text",), "UTF-8 text that this response adds"),
            TensorSpec(
                "seg_hidden",
                _FP32,
                ("n_seg", "H"),
                "hidden states of the [SEG] tokens resolved by this response",
            ),
            TensorSpec(
                "seg_start",
                DType.INT32,
                ("n_seg",),
                "where they stand: code points of the text before each, which has been sent by then",
            ),
            TensorSpec(
                "usage",
                _UINT8,
                ("n_usage",),
                "JSON of medvl.contracts.messages.LanguageUsage, last response only",
            ),
        ),
        decoupled=True,
        checkpoint=True,
    ),
    ModelSpec(
        "sam2_image_encoder",
        Kind.NETWORK,
        "slices to SAM2 features; ImageNet normalisation inside the graph",
        (_SLICES,),
        _FEATURES,
        max_batch_size=16,
    ),
    ModelSpec(
        "sam2_mask_decoder",
        Kind.NETWORK,
        "one prompt on one slice, without memory (no_mem_embed is added inside); the batch axis counts prompts",
        (*_FEATURES, *_PROMPT),
        _DECODED,
        max_batch_size=16,
    ),
    ModelSpec(
        "sam2_memory_encoder",
        Kind.NETWORK,
        "memory of a prompted slice for N objects; logits are brought to S x S inside the graph",
        (_one(_F2), *_per_object((_DECODED[0], _DECODED[3]))),
        (_MEMORY_OUT,),
    ),
    ModelSpec(
        "sam2_mask_prompt",
        Kind.NETWORK,
        "masks that somebody gave for a slice, taken as they are: what tracking needs of them, for N objects",
        (
            *(_one(f) for f in _FEATURES),
            TensorSpec("given_mask", _UINT8, ("N", 1, "S", "S"), "1 on the object, else 0; empty where it is absent"),
        ),
        (*_per_object(_DECODED), _MEMORY_OUT),
    ),
    ModelSpec(
        "sam2_track_step",
        Kind.NETWORK,
        "memory attention, mask decoder and memory encoder of one slice for N objects, fused into one graph; prompts "
        "correct the slice, whose last masks are then mask_input",
        (
            *(_one(f) for f in _FEATURES),
            *_per_object(_CORRECTION),
            TensorSpec("bank_memory", _FP32, ("R", "N", "HW", "Cm"), "memories of the bank, in any order"),
            TensorSpec(
                "bank_row",
                _INT64,
                ("R",),
                "temporal row: 6 for a conditioning slice, distance - 1 for a tracked one",
            ),
            TensorSpec("bank_pointer", _FP32, ("Q", "N", "C"), "object pointers of the bank, in any order"),
            TensorSpec("bank_distance", _FP32, ("Q",), "signed slice distance / (min(slices, 16) - 1)"),
        ),
        (*_per_object(_DECODED), _MEMORY_OUT),
    ),
    ModelSpec(
        "segment_slice",
        Kind.ENSEMBLE,
        "one slice and one prompt to a mask, for those who call Triton themselves: the orchestrator does not",
        (_SLICES, *_PROMPT),
        _DECODED,
        max_batch_size=16,
        steps=(
            EnsembleStep("sam2_image_encoder", {"slices": "slices"}, {s.name: s.name for s in _FEATURES}),
            EnsembleStep(
                "sam2_mask_decoder",
                {s.name: s.name for s in (*_FEATURES, *_PROMPT)},
                {s.name: s.name for s in _DECODED},
            ),
        ),
    ),
    ModelSpec(
        "volume_segmenter",
        Kind.PYTHON,
        "prompts to 3D masks by SAM2 propagation (BLS); owns the store of slice features, so ONE instance per device",
        (
            TensorSpec("request", _UINT8, ("n_request",), "JSON of medvl.contracts.messages.SegmenterRequest"),
            TensorSpec(
                "slices",
                _UINT8,
                ("D", "S", "S"),
                "windowed slices, when the series is not resident",
                optional=True,
            ),
            TensorSpec(
                "seg_hidden",
                _FP32,
                ("n_seg", "H"),
                "[SEG] states that the request's objects name by row",
                optional=True,
            ),
            TensorSpec(
                "masks",
                _UINT8,
                ("n_masks",),
                "packed masks of the request's objects, one after another",
                optional=True,
            ),
            TensorSpec(_REGIONS.name, _FP32, _REGIONS.shape, "of encode_volume, beside seg_hidden", optional=True),
        ),
        (
            TensorSpec("event", _UINT8, ("n_event",), "JSON of a medvl.contracts.messages.SegmenterEvent"),
            TensorSpec(
                "mask",
                _UINT8,
                ("n_mask",),
                "packed mask of the event (medvl.imaging.masks), empty without one",
            ),
        ),
        decoupled=True,
        checkpoint=True,
    ),
)

MODELS: Mapping[str, ModelSpec] = MappingProxyType({m.name: m for m in _MODELS})
"""Every model of the repository by name, in the order in which they can be loaded."""
