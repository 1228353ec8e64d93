"""A language model that is served in fewer bits than its checkpoint has: what ``config.pbtxt`` and the manifest say.

The networks, the prompts and everything else stay the checkpoint's, and so does the reference that it is held to.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medvl.contracts.checkpoint import LANGUAGE_FOLDER, Checkpoint, LanguageSpec, Sha256
from medvl.contracts.errors import CheckpointError

HalfPrecision = Literal["bfloat16", "float16"]


class Quantisation(BaseModel):
    """How the served language model is quantised, as its ``config.json`` says, and what its files are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    """``quantization_config.quant_method``: ``compressed-tensors``."""
    format: str
    """Of the method, where it has several: ``int-quantized``; else empty."""
    weight_bits: int = Field(gt=0, lt=32)
    """Of the linear layers; of the coarsest where they differ."""
    activation_bits: int | None = Field(default=None, gt=0, lt=32)
    """Of what linear layers take in; None where that stays in floating point."""
    dtype: HalfPrecision
    """What is not quantised is computed in."""
    files: dict[str, Sha256]
    """SHA-256 of every file of the folder, by path relative to it."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON; it covers every weight through ``files``."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def half_precision(language: LanguageSpec) -> HalfPrecision:
    """Return what a quantised model computes the rest in: vLLM's kernels of few bits take no FP32."""
    return "bfloat16" if language.dtype == "float32" else language.dtype


def served_files(checkpoint: Checkpoint, quantisation: Quantisation | None) -> dict[str, Sha256]:
    """Return the SHA-256 of the files that are served, by path: a quantised model's in the place of its original's."""
    if quantisation is None:
        return checkpoint.files
    prefix = f"{LANGUAGE_FOLDER}/"
    others = {name: digest for name, digest in checkpoint.files.items() if not name.startswith(prefix)}
    return others | {prefix + name: digest for name, digest in quantisation.files.items()}


def served_weights(checkpoint: Checkpoint, quantisation: Quantisation | None = None) -> str:
    """Return how a model names the weights that it answers with: the digest of the checkpoint, and of fewer bits."""
    return ":".join(one.digest for one in (checkpoint, quantisation) if one is not None)


def parse_quantisation(text: str | bytes) -> Quantisation:
    """Read the parameter of a model's configuration.

    Raises
    ------
    CheckpointError
        When it is not what a build writes.
    """
    try:
        return Quantisation.model_validate_json(text)
    except ValidationError:
        raise CheckpointError(
            "The configuration of the language model does not say how it is quantised: build the repository again."
        ) from None
