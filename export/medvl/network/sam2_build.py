"""SAM2 from the ``sam2`` package, in the size that a checkpoint names; public SAM2.1 state dicts load unchanged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import torch
from sam2.build_sam import build_sam2
from sam2.modeling.sam2_base import SAM2Base
from torch.overrides import TorchFunctionMode

from medvl.contracts.checkpoint import SegmentationSpec
from medvl.contracts.errors import CheckpointError

STRIDE = 16
"""Pixels of a slice per position of the coarse feature map."""

_SEMANTICS: Mapping[str, object] = {
    "num_maskmem": 7,
    "max_obj_ptrs_in_encoder": 16,
    "memory_temporal_stride_for_eval": 1,
    "backbone_stride": STRIDE,
    "use_high_res_features_in_sam": True,
    "directly_add_no_mem_embed": True,
    "binarize_mask_from_pts_for_mem_enc": False,
    "non_overlap_masks_for_mem_enc": False,
    "multimask_output_in_sam": True,
    "multimask_output_for_tracking": True,
    "multimask_min_pt_num": 0,
    "multimask_max_pt_num": 1,
    "use_multimask_token_for_obj_ptr": True,
    "use_obj_ptrs_in_encoder": True,
    "add_tpos_enc_to_obj_ptrs": True,
    "proj_tpos_enc_in_obj_ptrs": True,
    "use_signed_tpos_enc_to_obj_ptrs": True,
    "only_obj_ptrs_in_the_past_for_eval": True,
    "pred_obj_scores": True,
    "fixed_no_obj_ptr": True,
    "soft_no_obj_ptr": False,
    "sam_mask_decoder_extra_args": None,
    "image_encoder.neck.fuse_type": "sum",
    "image_encoder.neck.fpn_interp_model": "nearest",
    "memory_attention.layer.self_attention.num_heads": 1,
    "memory_attention.layer.cross_attention.num_heads": 1,
}
"""What SAM2.1's configurations say and the graphs implement; an override that says otherwise is refused."""


_ATTRIBUTES: Mapping[str, str] = {
    "memory_attention.layer.self_attention.num_heads": "memory_attention.layers.0.self_attn.num_heads",
    "memory_attention.layer.cross_attention.num_heads": "memory_attention.layers.0.cross_attn_image.num_heads",
}
"""Where SAM2 has them, unless they are called there as in the configuration."""


def build_sam(spec: SegmentationSpec) -> SAM2Base:
    """Build an unmodified SAM2 in eval mode, on the CPU or on the device of an enclosing context.

    Raises
    ------
    CheckpointError
        When an override breaks the architecture or changes what the graphs implement.
    """
    config, overrides = sam_config(spec)
    try:
        sam: SAM2Base = build_sam2(
            config, device=None, mode="eval", hydra_overrides_extra=overrides, apply_postprocessing=False
        )
    except Exception as error:
        raise CheckpointError(f"segmentation.overrides: {spec.architecture} cannot be built with them.") from error
    _check_semantics(sam)
    return sam


def sam_config(spec: SegmentationSpec) -> tuple[str, list[str]]:
    """Return the name of SAM2's configuration and the hydra overrides that make it that of a checkpoint."""
    size = f"[{spec.side // STRIDE},{spec.side // STRIDE}]"
    attention = "memory_attention.layer"
    derived = {
        "image_size": spec.side,
        f"{attention}.self_attention.feat_sizes": size,
        f"{attention}.cross_attention.feat_sizes": size,
    }
    overrides = [f"++model.{key}={_hydra(value)}" for key, value in (spec.overrides | derived).items()]
    return f"configs/sam2.1/{spec.architecture}.yaml", overrides


def build_sam_shapes(spec: SegmentationSpec) -> SAM2Base:
    """Build SAM2 on the meta device: shapes and names without memory.

    Raises
    ------
    CheckpointError
        As :func:`build_sam`.
    """
    with torch.device("meta"), _LinspaceOnCpu():
        return build_sam(spec)


class _LinspaceOnCpu(TorchFunctionMode):
    """The trunk reads its drop-path rates from a ``linspace``, which a meta tensor cannot give."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - torch's own signature
        extra = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **(kwargs or {}) | extra)


def _hydra(value: object) -> str:
    return str(value).replace(" ", "").lower() if isinstance(value, bool) else str(value).replace(" ", "")


def _check_semantics(sam: SAM2Base) -> None:
    for name, expected in _SEMANTICS.items():
        if (found := attrgetter(_ATTRIBUTES.get(name, name))(sam)) != expected:
            raise CheckpointError(f"segmentation.overrides: {name}: expected {expected}, found {found}.")
