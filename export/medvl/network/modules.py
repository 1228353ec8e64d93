"""The modules of a checkpoint: built for its sizes, loaded from its files, and seen as the networks that are served."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from sam2.modeling.sam2_base import SAM2Base
from torch import nn
from torch.overrides import TorchFunctionMode

from medvl.contracts.checkpoint import PARTS, PROPOSALS, Checkpoint
from medvl.contracts.errors import CheckpointError
from medvl.network.projector import Projector, TokenShape
from medvl.network.proposals import FEATURES, ProposalScorer
from medvl.network.region_choice import RegionScorer, feature_count, region_numbers
from medvl.network.regions import NOTHING
from medvl.network.sam2_build import STRIDE, build_sam, build_sam_shapes
from medvl.network.sam2_parts import ImageEncoder, MaskDecoder, MaskPrompt, MemoryEncoder, TrackStep
from medvl.network.seg_projector import SegProjector
from medvl.network.vision import VisionEncoder, cells_of


class ProposalMap(nn.Linear):
    """Maps [SEG] states [B, H] to weights of :data:`medvl.network.proposals.FEATURES`; begins with the score alone.

    ``regions`` maps them to weights of :func:`medvl.network.region_choice.features_of_regions`; begins with none.

    Parameters
    ----------
    width
        H.
    kinds
        Of regions; 0 where texts choose none.
    """

    def __init__(self, width: int, kinds: int = 0) -> None:
        super().__init__(width, len(FEATURES))
        self.regions: nn.Linear | None = None
        if kinds:
            with torch.random.fork_rng(devices=[]):  # as the encoder's regions
                self.regions = nn.Linear(width, feature_count(kinds))
            nn.init.zeros_(self.regions.weight)
            nn.init.zeros_(self.regions.bias)
            with torch.no_grad():
                self.regions.bias[-1] = 1.0

    def reset_parameters(self) -> None:
        """Choose what has the highest score, without drawing random numbers, whatever the state says."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.bias[FEATURES.index("score")] = 1.0


@dataclass(frozen=True)
class Modules:
    """The parts of a checkpoint besides its language model, in eval mode; their state dicts are its files.

    Attributes
    ----------
    proposals
        None without a rule of proposals.
    """

    checkpoint: Checkpoint
    vision_encoder: VisionEncoder
    projector: Projector
    seg_projector: SegProjector
    sam2: SAM2Base
    proposals: ProposalMap | None

    @classmethod
    def build(cls, checkpoint: Checkpoint) -> Self:
        """Build the parts on the CPU, with the weights of their initialisation.

        Raises
        ------
        CheckpointError
            When the sizes of the checkpoint contradict one another.
        """
        return cls._assembled(checkpoint, build_sam(checkpoint.segmentation))

    @classmethod
    def shapes(cls, checkpoint: Checkpoint) -> Self:
        """Build the parts on the meta device: names and shapes without memory; raises as :meth:`build`."""
        sam = build_sam_shapes(checkpoint.segmentation)
        with torch.device("meta"):
            return cls._assembled(checkpoint, sam)

    @classmethod
    def load(cls, folder: Path, checkpoint: Checkpoint) -> Self:
        """Build the parts and load the weights of a checkpoint folder as FP32.

        Weights that are FP32 in their file are mapped, not copied: what nobody uses is not read.

        Raises
        ------
        CheckpointError
            When a file does not hold exactly the tensors of its part.
        """
        with _Unfilled():
            modules = cls.build(checkpoint)
        for name, module in modules.parts.items():
            types = {key: tensor.dtype for key, tensor in module.state_dict().items()}
            found = load_file(folder / f"{name}.safetensors")
            tensors = {key: tensor.to(types.get(key, tensor.dtype)) for key, tensor in found.items()}
            try:
                module.load_state_dict(tensors, strict=True, assign=True)
            except RuntimeError:
                raise CheckpointError(
                    f"{name}.safetensors: does not hold the tensors of its part: see medvl-export check."
                ) from None
        return modules

    @classmethod
    def _assembled(cls, checkpoint: Checkpoint, sam: SAM2Base) -> Self:
        low, high = feature_shapes(checkpoint)
        width = checkpoint.language.hidden_size
        return cls(
            checkpoint=checkpoint,
            vision_encoder=VisionEncoder(checkpoint.vision).eval(),
            projector=Projector(checkpoint.projector, low, high, width).eval(),
            seg_projector=SegProjector(width, sam.hidden_dim).eval(),
            sam2=sam,
            proposals=_proposals(checkpoint),
        )

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """Modules by the names of their files."""
        own = {name: getattr(self, name) for name in (*PARTS, PROPOSALS)}
        return {name: module for name, module in own.items() if module is not None}

    @property
    def scorer(self) -> ProposalScorer | None:
        """What chooses among proposals, where the checkpoint has it."""
        rule = self.checkpoint.segmentation.proposals
        if self.proposals is None or rule is None:
            return None
        return ProposalScorer(*_values(self.proposals), rule)

    @property
    def region_scorer(self) -> RegionScorer | None:
        """What chooses among regions, where the checkpoint has it."""
        rule = self.checkpoint.segmentation.proposals
        if self.proposals is None or self.proposals.regions is None or rule is None or rule.regions is None:
            return None
        return RegionScorer(*_values(self.proposals.regions), rule.regions)

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """Networks by the names of their models; what one makes comes before what takes it."""
        return {
            "vision_encoder": self.vision_encoder,
            "projector": self.projector,
            "sam2_image_encoder": ImageEncoder(self.sam2).eval(),
            "sam2_mask_decoder": MaskDecoder(self.sam2, self.seg_projector).eval(),
            "sam2_memory_encoder": MemoryEncoder(self.sam2).eval(),
            "sam2_mask_prompt": MaskPrompt(self.sam2).eval(),
            "sam2_track_step": TrackStep(self.sam2).eval(),
        }

    @property
    def axes(self) -> Mapping[str, int]:
        """Lengths of the axes that the checkpoint fixes, by the names of the contract."""
        low, high = feature_shapes(self.checkpoint)
        side, channels = self.checkpoint.segmentation.side, self.sam2.hidden_dim
        vision = self.checkpoint.vision
        d, h, w = vision.grid
        f = side // STRIDE
        return {
            "d": d,
            "h": h,
            "w": w,
            "S": side,
            "f": f,
            "f_2": 2 * f,
            "f_4": 4 * f,
            "HW": f * f,
            "T_low": low.tokens,
            "C_low": low.channels,
            "T_high": high.tokens,
            "C_high": high.channels,
            "G": vision.regions.count if vision.regions else len(NOTHING),
            "n_region": region_numbers(vision),
            "T": self.checkpoint.vision_tokens,
            "H": self.checkpoint.language.hidden_size,
            "C": channels,
            "C_4": channels // 4,
            "C_8": channels // 8,
            "Cm": self.sam2.mem_dim,
        }


class _Unfilled(TorchFunctionMode):
    """Leaves parameters as they are allocated, which costs neither time nor memory: a file will give their values."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # noqa: ANN401 - torch's own signature
        kwargs = kwargs or {}
        # torch.nn.init hands its tensor over by name, tensors' own methods theirs by position.
        target = args[0] if args else kwargs.get("tensor")
        if isinstance(target, nn.Parameter) and func.__name__ in _FILLS:
            return target
        return func(*args, **kwargs)


_FILLS = frozenset(
    {"constant_", "kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_", "uniform_"}
    | {"xavier_normal_", "xavier_uniform_", "zeros_", "ones_", "fill_", "zero_", "erfinv_", "mul_", "add_", "clamp_"}
)
"""What :mod:`torch.nn.init` and its functions call on a tensor."""


def _proposals(checkpoint: Checkpoint) -> ProposalMap | None:
    rule, regions = checkpoint.segmentation.proposals, checkpoint.vision.regions
    if rule is None:
        return None
    kinds = regions.kinds if rule.regions and regions else 0
    return ProposalMap(checkpoint.language.hidden_size, kinds).eval()


def _values(linear: nn.Linear) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return linear.weight.detach().numpy(), linear.bias.detach().numpy()


def feature_shapes(checkpoint: Checkpoint) -> tuple[TokenShape, TokenShape]:
    """Return the shapes of the low and of the high level of the vision encoder."""
    low, high = (_shape(checkpoint, stage) for stage in checkpoint.vision.feature_stages)
    return low, high


def _shape(checkpoint: Checkpoint, stage: int) -> TokenShape:
    return TokenShape(math.prod(cells_of(checkpoint.vision, stage)), checkpoint.vision.dims[stage])
