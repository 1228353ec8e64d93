"""A folder with a checkpoint's language model in fewer bits: what its ``config.json`` says of them. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from medvl.contracts.checkpoint import LANGUAGE_FOLDER, LanguageSpec
from medvl.contracts.errors import CheckpointError, SetupError
from medvl.contracts.manifest import MODELS_FOLDER
from medvl.contracts.quantisation import Quantisation, half_precision
from medvl.export.folders import VERSION
from medvl.export.stamps import hashes_of

CONFIG_FILE = "config.json"
SCHEME_FIELD = "quantization_config"
"""Of ``config.json``, as transformers, compressed-tensors, AutoAWQ and vLLM spell it."""

_FP8 = "fp8"
"""Method whose name tells its bits."""


@dataclass(frozen=True, slots=True)
class Bits:
    """Of linear layers; of the coarsest where they differ."""

    weights: int
    activations: int | None
    """None where they stay in floating point."""


@dataclass(frozen=True, slots=True)
class QuantisedLanguage:
    """A folder that is served in the place of a checkpoint's language model."""

    folder: Path
    quantisation: Quantisation

    @classmethod
    def read(cls, folder: Path, language: LanguageSpec, kept: Path) -> Self:
        """Read what a folder says of itself, and its hashes; ``kept`` as in :func:`medvl.export.stamps.hashes_of`.

        Raises
        ------
        CheckpointError
            As :func:`read_quantisation`.
        """
        return cls(folder, read_quantisation(folder, language, hashes_of(folder, kept)))

    def require_unchanged(self, served: Mapping[str, str]) -> None:
        """Refuse to install other files than those that the build began with.

        Parameters
        ----------
        served
            SHA-256 of every file of the repository, by path.

        Raises
        ------
        SetupError
            When one of the language model's differs.
        """
        prefix = f"{MODELS_FOLDER}/llm/{VERSION}/{LANGUAGE_FOLDER}/"
        written = {name.removeprefix(prefix): sha256 for name, sha256 in served.items() if name.startswith(prefix)}
        if written != self.quantisation.files:
            raise SetupError(
                f"The folder {self.folder.name} was changed while a repository was built of it: build it again."
            )


def read_quantisation(folder: Path, language: LanguageSpec, files: Mapping[str, str]) -> Quantisation:
    """Return how the language model of a folder is quantised.

    Parameters
    ----------
    folder
        A transformers folder.
    language
        Of the checkpoint.
    files
        SHA-256 of every file of the folder, by relative path.

    Raises
    ------
    CheckpointError
        When there is no configuration, or it does not say so.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        raise CheckpointError(
            f"{folder.name}/{CONFIG_FILE}: expected a transformers configuration, found none that can be read"
        ) from None
    scheme = config.get(SCHEME_FIELD) if isinstance(config, dict) else None
    if not isinstance(scheme, dict):
        raise CheckpointError(
            f"{folder.name}/{CONFIG_FILE}: {SCHEME_FIELD}: expected how the layers are quantised, found none: "
            "medvl-export quantise writes such a folder"
        )
    bits = _bits(scheme)
    if bits is None:
        raise CheckpointError(
            f"{folder.name}/{CONFIG_FILE}: {SCHEME_FIELD}: expected a quant_method with its bits, found {scheme!r:.80}"
        )
    return Quantisation(
        method=scheme["quant_method"],
        format=str(scheme.get("format") or scheme.get("version") or ""),
        weight_bits=bits.weights,
        activation_bits=bits.activations,
        dtype=half_precision(language),
        files=dict(files),
    )


def _bits(scheme: dict[str, Any]) -> Bits | None:
    """Return the bits by which a scheme goes: those of compressed-tensors' groups, or of AWQ, GPTQ or FP8."""
    if not isinstance(scheme.get("quant_method"), str):
        return None
    if scheme["quant_method"] == _FP8:
        return Bits(8, 8)
    try:
        if groups := scheme.get("config_groups"):
            weights = [int(group["weights"]["num_bits"]) for group in groups.values()]
            inputs = [group.get("input_activations") for group in groups.values()]
            activations = min(int(given["num_bits"]) for given in inputs) if all(inputs) else None
            return Bits(min(weights), activations)
        return Bits(int(scheme["bits"]), None)
    except (LookupError, TypeError, ValueError, AttributeError):
        return None
