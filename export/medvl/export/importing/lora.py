"""LoRA adapters, merged into the weights that they change."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from medvl.contracts.errors import CheckpointError, InvalidRequest
from medvl.export.importing.sources import StoredTensor

ADAPTER_CONFIG = "adapter_config.json"
_REFUSED = ("use_dora", "fan_in_fan_out", "alpha_pattern", "rank_pattern", "alora_invocation_tokens")
"""Fields of PEFT's configuration under which an adapter is more than ``alpha / r * B A``."""
_ON_THE_MODEL = (True, False, None, "gaussian", "eva", "orthogonal")
"""``init_lora_weights`` that leave the model's own weights as they were; PiSSA, OLoRA and others change them."""


class Scale:
    """The factor of adapters, from PEFT's configuration or a number that a user gives.

    Parameters
    ----------
    folder
        Folder of an adapter; its configuration is read where it has one.
    alpha
        ``lora_alpha``, where no configuration tells it: a state dict does not.

    Raises
    ------
    CheckpointError
        When the configuration says what this merging cannot do.
    InvalidRequest
        When both give an alpha.
    """

    def __init__(self, folder: Path | None, alpha: float | None) -> None:
        config = _config(folder)
        if config and alpha is not None:
            raise InvalidRequest(f"{ADAPTER_CONFIG} gives lora_alpha: leave --lora-alpha out.")
        self._alpha = config.get("lora_alpha", alpha)
        self._root = bool(config.get("use_rslora"))

    def of_rank(self, rank: int) -> float:
        """Return ``alpha / r``, or ``alpha / sqrt(r)`` where the adapter is rank-stabilised.

        Raises
        ------
        InvalidRequest
            When nothing gives an alpha.
        """
        if not isinstance(self._alpha, int | float):
            raise InvalidRequest(
                f"The weights hold LoRA adapters of rank {rank}, and a state dict does not say their alpha: give "
                "--lora-alpha as it was trained with (Med3DVLM's code: 32)."
            )
        return float(self._alpha) / (math.sqrt(rank) if self._root else rank)


def _config(folder: Path | None) -> Mapping[str, object]:
    path = None if folder is None else folder / ADAPTER_CONFIG
    if path is None or not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError:
        config = None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise CheckpointError(f"{ADAPTER_CONFIG}: peft_type: expected LORA, found another or none that can be read")
    for field in _REFUSED:
        if config.get(field):
            raise CheckpointError(f"{ADAPTER_CONFIG}: {field}: expected none, found {config[field]}")
    if (found := config.get("init_lora_weights")) not in _ON_THE_MODEL:
        raise CheckpointError(
            f"{ADAPTER_CONFIG}: init_lora_weights: {found} changes the model's own weights: expected an adapter "
            "that was converted to plain LoRA"
        )
    return config


def merge(base: StoredTensor, a: StoredTensor, b: StoredTensor, scale: Scale) -> StoredTensor:
    """Return ``W + scale * B A``, computed in FP32 when it is read and rounded to W's type.

    Parameters
    ----------
    base
        W [out, in].
    a, b
        A [r, in] and B [out, r], see :func:`pair_lines`.
    """
    factor = scale.of_rank(a.header.shape[0])

    def read() -> torch.Tensor:
        weight = base.read()
        return weight.float().addmm(b.read().float(), a.read().float(), alpha=factor).to(weight.dtype)

    return base.computed(read)


def pair_lines(
    language: Mapping[str, StoredTensor], a: Mapping[str, StoredTensor], b: Mapping[str, StoredTensor]
) -> Iterator[str]:
    """Yield a line for every adapter that lacks a factor or its weight, or whose shapes do not fit the weight's."""
    for name in sorted(a.keys() | b.keys()):
        one = a.get(name) or b[name]
        if name not in a or name not in b:
            yield f"{one}: expected lora_A and lora_B, found one of them"
        elif name not in language:
            yield f"{one}: expected {name} for it to change, but missing"
        else:
            rank, shape = a[name].header.shape[:1], language[name].header.shape
            for factor, wanted in ((a[name], rank + shape[1:]), (b[name], shape[:1] + rank)):
                if factor.header.shape != wanted:
                    yield f"{factor}: expected {list(wanted)}, found {factor.header}"
