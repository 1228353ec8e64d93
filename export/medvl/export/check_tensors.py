"""The weights of a checkpoint folder against its contract: names, shapes and types, from headers alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from medvl.contracts.checkpoint import LANGUAGE_FOLDER, Checkpoint
from medvl.contracts.errors import CheckpointError
from medvl.network.modules import Modules

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}


def tensor_mismatches(folder: Path, checkpoint: Checkpoint) -> Iterator[str]:
    """Yield a line for every tensor that is missing, not expected, or of a wrong type or shape."""
    try:
        parts = Modules.shapes(checkpoint).parts
    except CheckpointError as error:
        yield str(error)
        return
    for name, module in parts.items():
        yield from _file_mismatches(folder, f"{name}.safetensors", module, ())
    language = _language_shapes(folder)
    if language is not None:
        tied = tuple(getattr(language, "_tied_weights_keys", None) or ())
        yield from _file_mismatches(folder, f"{LANGUAGE_FOLDER}/model.safetensors", language, tied)


def _language_shapes(folder: Path) -> nn.Module | None:
    """Return the language model on the meta device, or None when its configuration cannot be read."""
    try:
        config = AutoConfig.from_pretrained(folder / LANGUAGE_FOLDER)
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(config)
    except Exception:  # whatever transformers finds in a wrong file; check_language says what is wrong with it
        return None
    return model


def _file_mismatches(folder: Path, name: str, module: nn.Module, optional: tuple[str, ...]) -> Iterator[str]:
    path = folder / name
    if not path.is_file():
        yield f"{name}: expected safetensors, but missing"
        return
    try:
        with safe_open(path, "pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            found = {key: (s.get_dtype(), s.get_shape()) for key, s in slices.items()}
    except (SafetensorError, OSError):
        yield f"{name}: expected safetensors, found a file that is not"
        return
    yield from _tensor_lines(name, module.state_dict(), found, optional)


def _tensor_lines(
    name: str,
    expected: Mapping[str, torch.Tensor],
    found: Mapping[str, tuple[str, list[int]]],
    optional: tuple[str, ...],
) -> Iterator[str]:
    for key in sorted(expected.keys() - found.keys() - set(optional)):
        yield f"{name}: {key}: expected, but missing"
    for key in sorted(found.keys() - expected.keys()):
        yield f"{name}: {key}: found, but not expected"
    for key in sorted(expected.keys() & found.keys()):
        dtype, shape = found[key]
        wanted, wanted_shape = _DTYPES[expected[key].dtype], list(expected[key].shape)
        fits = dtype in _FLOATS if expected[key].is_floating_point() else dtype == wanted
        if not fits or shape != wanted_shape:
            yield f"{name}: {key}: expected {wanted} {wanted_shape}, found {dtype} {shape}"
