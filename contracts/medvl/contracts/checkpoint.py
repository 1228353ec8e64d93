"""The checkpoint contract: what ``checkpoint.json`` says, as frozen values that refuse what they do not know.

A checkpoint is a folder::

    checkpoint.json
    vision_encoder.safetensors   projector.safetensors   seg_projector.safetensors   sam2.safetensors
    proposals.safetensors        where ``segmentation.proposals`` is set
    llm/                         a transformers folder: config.json, model.safetensors, tokenizer.json, ...

Quirks of a model are fields here, never branches in code. ``docs/checkpoint.md`` explains every field.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medvl.contracts.errors import CheckpointError, UnknownLabel

CHECKPOINT_FILE = "checkpoint.json"
LANGUAGE_FOLDER = "llm"
DICOM_TEXT = 64
"""Characters that DICOM's LO holds: what goes into a SEG must not be longer (PS3.5, 6.2)."""
PARTS = ("vision_encoder", "projector", "seg_projector", "sam2")
"""The parts that are one safetensors file each."""
PROPOSALS = "proposals"
"""One more such part, of a checkpoint that has ``segmentation.proposals``."""
PROPOSALS_FILE = f"{PROPOSALS}.safetensors"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
HuRange = tuple[float, float]
Extent = tuple[float, float, float]
"""Height, depth and width of a canonical volume in mm: along superior, posterior, left."""
_EXTENT_STEP_MM = 10


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LookSpec(_Value):
    """A closer look at the voxels of the cells that may hold some kinds of lesions."""

    kinds: tuple[int, ...] = Field(min_length=1)
    """Which of the kinds of :class:`RegionSpec`."""
    likely: int = Field(gt=0)
    """Cells to look at that score highest for one of them."""
    spots: int = Field(ge=0)
    """Cells besides, in which something small stands out most from dark surroundings."""
    window: tuple[float, float]
    """Shares of the encoder's window that voxels are seen in a second time, to tell apart what differs little."""
    channels: tuple[int, int, int, int, int]
    """Of the convolutions."""

    @model_validator(mode="after")
    def _window_within(self) -> Self:
        lower, upper = self.window
        if not 0.0 <= lower < upper <= 1.0:
            raise ValueError(f"window {self.window} is not a part of 0 to 1")
        return self


class RegionSpec(_Value):
    """Lesions that the encoder finds in the cells of the stage before the low level."""

    count: int = Field(gt=0)
    """Regions of a volume, the most likely first."""
    kinds: int = Field(gt=0)
    """Of lesions that are told apart."""
    channels: int = Field(gt=0)
    """Width of the network that scores cells."""
    looks: tuple[LookSpec, ...] = ()
    """Each for kinds of its own."""

    @model_validator(mode="after")
    def _known_kinds(self) -> Self:
        looked_for = [kind for look in self.looks for kind in look.kinds]
        if len({*looked_for} & {*range(self.kinds)}) != len(looked_for):
            raise ValueError(f"looks: kinds {looked_for} are not different ones of {self.kinds}")
        return self


class VisionSpec(_Value):
    """The 3D vision encoder (DCFormer family)."""

    architecture: Literal["dcformer"]
    grid: tuple[int, int, int]
    """Slices, rows and columns of the input."""
    window: str
    """Name of the window that the encoder sees."""
    dims: tuple[int, int, int, int, int]
    """Channels of the stem and of the four stages."""
    depths: tuple[int, int, int, int, int]
    """Blocks of the stem and of the four stages."""
    kernel_sizes: tuple[int, int, int, int]
    """Kernel of the decomposed depthwise convolutions in the four stages."""
    feature_stages: tuple[int, int]
    """The two stages (1 to 4) whose features go on: low level first, high level second."""
    stem: Literal["decomposed", "full"] = "decomposed"
    """The stem's first convolution: three along single axes, which pass three of sixteen voxels (the public design), or
    one over the whole block, which sees every voxel."""
    regions: RegionSpec | None = None
    """None in the public design."""


class ToldSpec(_Value):
    """How far regions are told in the vision tokens of their place, one of each level.

    What lesions of a kind change in them is added in shares of how likely they are, and taken away where there are only
    doubtful ones.
    """

    kinds: tuple[int, ...] = Field(min_length=1)
    """Which of the kinds of :class:`RegionSpec` are told."""
    unsure: float = Field(ge=0, lt=1)
    """Likelihood of a kind up to which nothing is added."""
    sure: float = Field(gt=0, le=1)
    """From which all is."""
    doubtful: tuple[float, float]
    """Likelihoods between which a share is taken away."""
    taken_away: float = Field(ge=0)
    """That share."""
    low_cells: tuple[int, int, int]
    """Cells along d, h and w that the tokens of the low level stand for, in C order."""
    high_cells: tuple[int, int, int]
    """The same of the high level."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not (self.unsure < self.sure and self.doubtful[0] <= self.doubtful[1] <= self.unsure):
            raise ValueError("told needs doubtful <= unsure < sure")
        return self


class ProjectorSpec(_Value):
    """The projector from encoder features to vision tokens."""

    architecture: Literal["mixer"]
    low_tokens: tuple[int, ...]
    """Tokens after each mixer layer on the low-level features."""
    high_tokens: tuple[int, ...]
    """Tokens after each mixer layer on the high-level features."""
    mlp_depth: int = Field(gt=0)
    told: ToldSpec | None = None
    """None in the public design."""

    @model_validator(mode="after")
    def _told_in_tokens(self) -> Self:
        if self.told:
            for tokens, cells in ((self.low_tokens, self.told.low_cells), (self.high_tokens, self.told.high_cells)):
                if prod(cells) != tokens[-1]:
                    raise ValueError(f"told: {cells} are not {tokens[-1]} tokens")
        return self


class PromptTemplates(_Value):
    """Text put to the language model.

    ``{question}``, ``{label}`` and ``{text}`` are replaced by what the caller gave. ``{extent}`` may stand in any of
    the four prompts: it becomes the extent of the series, which a volume on the encoder's grid no longer shows.
    """

    report: str
    ask: str
    segment_label: str
    segment_text: str
    segment_answer: str
    """The forced answer to a segmentation prompt; holds the [SEG] token once."""

    @model_validator(mode="after")
    def _placeholders(self) -> Self:
        for name, needed in (("ask", "{question}"), ("segment_label", "{label}"), ("segment_text", "{text}")):
            if needed not in getattr(self, name):
                raise ValueError(f"prompt {name} lacks {needed}")
        return self

    def for_report(self, extent_mm: Extent) -> str:
        """Return the prompt of a report; ``extent_mm`` is that of the canonical volume along its axes."""
        return _with_extent(self.report, extent_mm)

    def for_question(self, question: str, extent_mm: Extent) -> str:
        """Return the prompt of a question."""
        return _with_extent(self.ask, extent_mm).replace("{question}", question)

    def for_label(self, label: str, extent_mm: Extent) -> str:
        """Return the prompt that segments a class."""
        return _with_extent(self.segment_label, extent_mm).replace("{label}", label)

    def for_text(self, text: str, extent_mm: Extent) -> str:
        """Return the prompt that segments what a text describes."""
        return _with_extent(self.segment_text, extent_mm).replace("{text}", text)


def _with_extent(template: str, extent_mm: Extent) -> str:
    """Replace ``{extent}`` before any word of a caller gets in."""
    height, depth, width = (round(mm / _EXTENT_STEP_MM) * _EXTENT_STEP_MM for mm in extent_mm)
    return template.replace("{extent}", f"{height} x {depth} x {width} mm")


class LanguageSpec(_Value):
    """The language model: a Qwen2-family transformers folder."""

    hidden_size: int = Field(gt=0)
    max_context: int = Field(gt=0)
    """Tokens of prompt, vision tokens and answer together."""
    dtype: Literal["float32", "bfloat16", "float16"]
    image_token: str
    seg_token: str
    splice: Literal["prefix", "after_first", "over_first"]
    """Where the vision tokens go: before the text, after its first token, or behind the image token and in the place of
    the text's first token (Med3DVLM)."""
    seg_state: Literal["at", "predicting"]
    """Whether [SEG]'s hidden state is taken AT the token (Sa2VA) or where it is PREDICTED (LISA, M3D)."""
    max_report_tokens: int = Field(gt=0)
    max_answer_tokens: int = Field(gt=0)
    prompts: PromptTemplates

    def around_vision(self, text: list[int], image: int) -> tuple[list[int], list[int]]:
        """Return the tokens before and behind the vision tokens.

        Parameters
        ----------
        text
            Tokens of the prompt.
        image
            The image token. ``over_first`` is what Med3DVLM makes of 256 image tokens and a question: it keeps one
            image token, and the vision tokens take the place of the other 255 and of the question's first token
            (github.com/mirthAI/Med3DVLM, src/model/vlm_arch.py, ``prepare_inputs_for_multimodal``, at cbbd633).
        """
        if self.splice == "prefix":
            return [], text
        return (text[:1] if self.splice == "after_first" else [image]), text[1:]


class KeySliceRule(_Value):
    """How a text prompt chooses its key slices, from a memory-free score of every slice."""

    max_slices: int = Field(gt=0, le=4)
    min_gap: int = Field(gt=0)
    """Least distance between two key slices, in slices."""
    min_score: float = Field(ge=0.0, le=1.0)
    """Below this best score the object is reported as not found, unless its text means a region that SAM2 sees."""


class RegionRule(_Value):
    """How a text chooses a region that the vision encoder has found, and what is made of it."""

    min_score: float = Field(gt=0.0, lt=1.0)
    """Of a region's best kind; less likely ones are not chosen from."""
    reach: float = Field(ge=1.0)
    """Half extents from its middle that its mask stays within, until somebody corrects it."""


class ProposalRule(_Value):
    """How the several things that a text's masks show become proposals, of which the [SEG] state chooses one."""

    min_score: float = Field(gt=0.0, le=1.0)
    """Of a slice whose mask belongs to proposals."""
    min_share: float = Field(gt=0.0, le=1.0)
    """Of a slice's mask that a part of it must have; less is a crumb."""
    regions: RegionRule | None = None
    """How a text chooses one of the encoder's regions instead; None where it never does."""


class EdgeRule(_Value):
    """How masks follow the edges of their slices; lengths in pixels of a fitted slice."""

    within_px: float = Field(gt=0, le=64)
    """How far an edge may be moved: about what a mask of a quarter of the resolution leaves open."""
    sigma_px: float = Field(gt=0, le=64)
    """Of the Gaussian neighbourhood in which the two sides of an edge are compared."""
    noise: float = Field(gt=0)
    """Spread of the grey values (of 256) of one tissue at least."""


class SegmentationSpec(_Value):
    """SAM2 on slices and its propagation through the volume."""

    architecture: Literal["sam2.1_hiera_t", "sam2.1_hiera_s", "sam2.1_hiera_b+", "sam2.1_hiera_l"]
    overrides: dict[str, int | float | bool | list[int]] = Field(default_factory=dict)
    """Hydra overrides of that configuration, by dotted key below ``model``."""
    side: int = Field(gt=0, multiple_of=32)
    fit: Literal["pad", "stretch"]
    window: str
    """Name of the window of slices unless a label names another."""
    max_conditioning_slices: int = Field(gt=0, le=10)
    """Prompted slices that a tracked slice attends to; with the six tracked last they are what the graphs take."""
    stop_after_absent: int = Field(gt=0)
    """A direction ends after this many slices in a row without the object."""
    heed_clicks_px: float | None = Field(default=None, gt=0)
    """Pixels of a fitted slice up to which a corrected mask may leave its clicks unheeded.

    One that misses a positive click by more gives way to what the clicks alone make of the slice; one that only
    negative clicks correct loses what lies further from the last mask. None takes what SAM2 makes of a correction.
    """
    edges: EdgeRule | None = None
    """How masks follow the edges of their slices; None takes what SAM2 makes of them."""
    key_slices: KeySliceRule
    proposals: ProposalRule | None = None
    """How a text chooses among several things that look like what it means; None takes the best slice of all."""


class Snomed(_Value):
    """A SNOMED CT concept."""

    code: str = Field(pattern=r"^[0-9]{6,16}$")
    """SCTIDs have up to 18 digits; CodeValue, in which DICOM carries them, holds 16 (PS3.5, VR SH)."""
    meaning: str = Field(min_length=1, max_length=DICOM_TEXT)


class Label(_Value):
    """One class that can be segmented by name."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    snomed: Snomed | None = None
    window: str | None = None


class Checkpoint(_Value):
    """``checkpoint.json``."""

    format: Literal[1]
    name: str = Field(min_length=1, max_length=DICOM_TEXT, pattern=r"^[a-z0-9][a-z0-9._-]*$")
    trained: bool
    licence: str
    provenance: str
    intended_use: str
    windows: dict[str, HuRange]
    vision: VisionSpec
    projector: ProjectorSpec
    language: LanguageSpec
    segmentation: SegmentationSpec
    labels: tuple[Label, ...]
    files: dict[str, Sha256]
    """SHA-256 of every other file of the folder, by path relative to it."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        named = {
            self.vision.window,
            self.segmentation.window,
            *(la.window for la in self.labels if la.window),
        }
        if unknown := named - self.windows.keys():
            raise ValueError(f"windows {sorted(unknown)} are named but not defined")
        if bad := sorted(k for k, (lower, upper) in self.windows.items() if lower >= upper):
            raise ValueError(f"windows {bad} have a lower bound that is not below the upper")
        if len({la.name for la in self.labels}) != len(self.labels):
            raise ValueError("a label is listed twice")
        if self.language.prompts.segment_answer.count(self.language.seg_token) != 1:
            raise ValueError(f"prompt segment_answer must hold {self.language.seg_token} once")
        if told := self.projector.told:
            if not self.vision.regions:
                raise ValueError("projector.told needs vision.regions")
            if not {*told.kinds} <= {*range(self.vision.regions.kinds)}:
                raise ValueError(f"told.kinds {told.kinds} are not among {self.vision.regions.kinds}")
        if self.segmentation.proposals and self.segmentation.proposals.regions and not self.vision.regions:
            raise ValueError("segmentation.proposals.regions needs vision.regions")
        return self

    @property
    def vision_tokens(self) -> int:
        """T, vision tokens of a volume: those of the low level come first, then those of the high level."""
        return self.projector.low_tokens[-1] + self.projector.high_tokens[-1]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON; it covers every weight through ``files``."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def label(self, name: str) -> Label:
        """Return a class by name.

        Raises
        ------
        UnknownLabel
            When the checkpoint does not know the class; the sentence lists those it knows.
        """
        for label in self.labels:
            if label.name == name:
                return label
        known = ", ".join(la.name for la in self.labels)
        raise UnknownLabel(f"The checkpoint knows no class {name!r}; it knows {known}.")


def parse_checkpoint(text: str | bytes) -> Checkpoint:
    """Read ``checkpoint.json``.

    Raises
    ------
    CheckpointError
        With one line for every mismatch: the field, what was expected, what was found.
    """
    try:
        return Checkpoint.model_validate_json(text)
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, e['loc'])) or CHECKPOINT_FILE}: {e['msg']} (found {e['input']!r:.80})"
            for e in error.errors()
        ]
        raise CheckpointError("\n".join(lines)) from None


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read the ``checkpoint.json`` of a folder.

    Raises
    ------
    CheckpointError
        When the file is missing or breaks the contract.
    """
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        raise CheckpointError(f"The folder {folder.name} holds no {CHECKPOINT_FILE}: it is not a checkpoint.")
    return parse_checkpoint(path.read_bytes())
