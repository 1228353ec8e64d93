"""Whether a quantised folder holds the language model of a checkpoint: configuration, tokenizer and tensor headers.

Arithmetic is not looked at here: what vLLM says from the folder is compared by :mod:`medvl.export.check_engine`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medvl.contracts.checkpoint import LANGUAGE_FOLDER, Checkpoint, load_checkpoint
from medvl.contracts.errors import CheckpointError
from medvl.contracts.manifest import files_of
from medvl.export.check import PICKLE_LINE, PICKLES
from medvl.export.check_language import end_tokens, fields_of, tokenizer_of
from medvl.export.quantised import CONFIG_FILE, read_quantisation
from medvl.export.tensor_files import FLOATS, TensorHeader, read_headers

_ARCHITECTURE = (
    "architectures",
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "tie_word_embeddings",
    "vocab_size",
)
"""Fields that make another model where they differ. Others, such as those of rotary positions, are spelt differently by
versions of transformers: where they are wrong, states of [SEG] are."""

_HEAD = "lm_head.weight"
"""Need not be there where it is the embedding."""
_TOKENIZER = "tokenizer.json"
_NOT_OF_THE_TEXT = frozenset({"version", "truncation", "padding"})
"""Fields of a tokenizer that its last user has left there."""


def require_quantised(folder: Path, checkpoint_folder: Path) -> None:
    """Refuse a folder that does not hold the language model of a checkpoint in fewer bits.

    Raises
    ------
    CheckpointError
        With one line for every mismatch: the file, what was expected, what was found.
    """
    if lines := list(quantised_mismatches(folder, checkpoint_folder, load_checkpoint(checkpoint_folder))):
        raise CheckpointError("\n".join(lines))


def quantised_mismatches(folder: Path, checkpoint_folder: Path, checkpoint: Checkpoint) -> Iterator[str]:
    """Yield a line for everything by which a folder is not that language model, or is not quantised.

    Parameters
    ----------
    folder
        A transformers folder.
    checkpoint_folder, checkpoint
        A checkpoint that holds the contract.
    """
    source = checkpoint_folder / LANGUAGE_FOLDER
    yield from (f"{folder.name}/{n}: {PICKLE_LINE}" for n, p in files_of(folder).items() if p.suffix.lower() in PICKLES)
    try:
        read_quantisation(folder, checkpoint.language, {})
        found = _headers(folder)
    except CheckpointError as error:
        yield str(error)
        return
    config, expected = fields_of(folder / CONFIG_FILE) or {}, fields_of(source / CONFIG_FILE) or {}
    lines = (
        *_config_lines(config, expected, checkpoint),
        *_end_lines(folder, config, source, expected),
        *_tokenizer_lines(folder, source, checkpoint),
        *_tensor_lines(found, _headers(source), tied=bool(expected.get("tie_word_embeddings"))),
    )
    yield from (f"{folder.name}/{line}" for line in lines)


def _config_lines(config: dict[str, Any], expected: dict[str, Any], checkpoint: Checkpoint) -> Iterator[str]:
    for field in _ARCHITECTURE:
        if config.get(field) != expected.get(field):
            yield f"{CONFIG_FILE}: {field}: expected {expected.get(field)}, found {config.get(field)}"
    positions, least = config.get("max_position_embeddings"), checkpoint.language.max_context
    if not isinstance(positions, int) or positions < least:
        yield f"{CONFIG_FILE}: max_position_embeddings: expected at least {least}, found {positions}"


def _end_lines(folder: Path, config: dict[str, Any], source: Path, expected: dict[str, Any]) -> Iterator[str]:
    found, wanted = end_tokens(folder, config), end_tokens(source, expected)
    if set(found.tokens) != set(wanted.tokens):
        yield f"{found.file}: eos_token_id: expected {list(wanted.tokens)}, found {list(found.tokens)}"


def _tokenizer_lines(folder: Path, source: Path, checkpoint: Checkpoint) -> Iterator[str]:
    found, expected = tokenizer_of(folder), tokenizer_of(source)
    if found is None:
        yield f"{_TOKENIZER}: expected a tokenizer, found none that can be read"
        return
    for token in (checkpoint.language.image_token, checkpoint.language.seg_token):
        if (number := found.token_to_id(token)) != (wanted := expected.token_to_id(token)):
            yield f"{_TOKENIZER}: {token}: expected the special token {wanted}, found {number}"
    ours, theirs = json.loads(expected.to_str()), json.loads(found.to_str())
    for field in sorted((ours.keys() | theirs.keys()) - _NOT_OF_THE_TEXT):
        if ours.get(field) != theirs.get(field):
            yield f"{_TOKENIZER}: {field}: expected the checkpoint's, found another"


def _headers(folder: Path) -> dict[str, TensorHeader]:
    """Return the headers of all weights of a transformers folder, as vLLM finds them."""
    paths = [path for path in files_of(folder).values() if path.suffix == ".safetensors"]
    if not paths:
        raise CheckpointError(f"{folder.name}: expected weights as safetensors, found none")
    return {key: header for path in paths for key, header in read_headers(path).items()}


def _tensor_lines(found: dict[str, TensorHeader], expected: dict[str, TensorHeader], *, tied: bool) -> Iterator[str]:
    """Yield a line for every tensor that is not there, neither as it was nor quantised, and where none is quantised."""
    for name, wanted in sorted(expected.items()):
        if name in found:
            if found[name].shape != wanted.shape:
                yield f"{name}: expected {list(wanted.shape)}, found {list(found[name].shape)}"
        elif tied and name == _HEAD:
            continue
        elif not (name.endswith(".weight") and any(key.startswith(name.removesuffix("weight")) for key in found)):
            yield f"{name}: expected, but missing"
    if all(header.dtype in FLOATS for header in found.values()):
        yield "expected linear layers in fewer bits, found floating point alone"
