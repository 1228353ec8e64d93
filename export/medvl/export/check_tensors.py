"""The weights of a checkpoint folder against its contract: names, shapes and types, from headers alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from medvl.contracts.checkpoint import LANGUAGE_FOLDER, Checkpoint
from medvl.contracts.errors import CheckpointError
from medvl.export.tensor_files import TensorHeader, read_headers, tensor_lines
from medvl.network.modules import Modules

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""Weights of a transformers folder: one file, or shards and the index that says which holds what."""


def tensor_mismatches(folder: Path, checkpoint: Checkpoint) -> Iterator[str]:
    """Yield a line for every tensor that is missing, not expected, or of a wrong type or shape."""
    try:
        parts = Modules.shapes(checkpoint).parts
    except CheckpointError as error:
        yield str(error)
        return
    for name, module in parts.items():
        file = f"{name}.safetensors"
        try:
            found = read_headers(folder / file)
        except CheckpointError as error:
            yield str(error)
        else:
            yield from (f"{file}: {key}: {wrong}" for key, wrong in tensor_lines(module.state_dict(), found))
    yield from _language_mismatches(folder / LANGUAGE_FOLDER)


def language_shapes(config: Any) -> nn.Module:  # noqa: ANN401 - the library has no types
    """Return the language model of a transformers configuration on the meta device: names and shapes."""
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model


def tied_weights(model: nn.Module) -> tuple[str, ...]:
    """Return the tensors that a file need not hold because they are others' too."""
    config: Any = model.config
    return tuple(getattr(model, "_tied_weights_keys", None) or ()) if config.tie_word_embeddings else ()


def _language_mismatches(folder: Path) -> Iterator[str]:
    try:
        model = language_shapes(AutoConfig.from_pretrained(folder))
    except Exception:  # whatever transformers finds in a wrong file; check_language says what is wrong with it
        return
    found: dict[str, TensorHeader] = {}
    files: dict[str, str] = {}
    try:
        shards = _shards(folder)
        for shard in sorted(set(shards.values())) or [WHOLE]:
            for key, header in read_headers(folder / shard).items():
                if shards and shards.get(key) != shard:
                    yield f"{LANGUAGE_FOLDER}/{shard}: {key}: found, but not there by {INDEX}"
                found[key], files[key] = header, shard
    except CheckpointError as error:
        yield f"{LANGUAGE_FOLDER}/{error}"
        return
    for key, wrong in tensor_lines(model.state_dict(), found, tied_weights(model)):
        yield f"{LANGUAGE_FOLDER}/{files.get(key, INDEX if shards else WHOLE)}: {key}: {wrong}"


def _shards(folder: Path) -> dict[str, str]:
    """Return which shard holds which tensor by the folder's index; nothing where it has none."""
    path = folder / INDEX
    if not path.is_file():
        return {}
    if (folder / WHOLE).is_file():
        raise CheckpointError(f"{INDEX}: expected shards or {WHOLE}, found both")
    try:
        shards = json.loads(path.read_text("utf-8"))["weight_map"]
        if all(isinstance(s, str) and Path(s).name == s for s in shards.values()):
            return dict(shards)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass
    raise CheckpointError(f"{INDEX}: expected a weight_map of tensors to files beside it, found none that can be read")
