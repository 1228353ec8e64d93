"""The language model's folder without its weights: configuration, tokenizer and where answers end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2Tokenizer

from medvl.contracts.checkpoint import LanguageSpec
from medvl.contracts.errors import CheckpointError
from medvl.export.check_language import MODEL_TYPE

MODEL_TYPES = (MODEL_TYPE, "vlm_qwen")
"""Qwen2 itself, and Med3DVLM's name for it (mirthAI/Med3DVLM, src/model/llm/qwen.py, at cbbd633)."""

_FIELDS = (
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
    "vocab_size",
)
"""What defines a Qwen2 model; Med3DVLM's configuration holds the vision tower's fields and code to run beside them."""


def read_config(folder: Path, language: LanguageSpec) -> Any:  # noqa: ANN401 - the library has no types
    """Return the Qwen2 configuration of a folder, in the checkpoint's dtype.

    Raises
    ------
    CheckpointError
        When there is none, or it is another family's.
    """
    fields = _read(folder / "config.json")
    if fields is None:
        raise CheckpointError(f"{folder}: expected config.json of a transformers folder, found none that can be read.")
    if (found := fields.get("model_type")) not in MODEL_TYPES:
        raise CheckpointError(f"config.json: model_type: expected {' or '.join(MODEL_TYPES)}, found {found}")
    return Qwen2Config(
        **{field: fields[field] for field in _FIELDS if field in fields},
        architectures=["Qwen2ForCausalLM"],
        dtype=language.dtype,
    )


def write_language_folder(source: Path, config: Any, language: LanguageSpec, folder: Path) -> None:  # noqa: ANN401
    """Write ``config.json``, ``generation_config.json`` and the tokenizer.

    Generation is greedy: what a source says of temperature and penalties is the orchestrator's to decide, and only
    where answers end goes on.

    Parameters
    ----------
    source
        The transformers folder with configuration and tokenizer.
    config
        As :func:`read_config` gives it, with the vocabulary of the weights.
    folder
        An empty folder.

    Raises
    ------
    CheckpointError
        When the source holds no tokenizer that can be read.
    """
    ends = (_read(source / "generation_config.json") or {}).get("eos_token_id", config.eos_token_id)
    tokenizer = _with_special_tokens(_tokenizer(source), language, config.vocab_size)
    first = ends[0] if isinstance(ends, list) and ends else ends
    end = tokenizer.id_to_token(first) if isinstance(first, int) else None
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end).save_pretrained(folder)
    config.save_pretrained(folder)
    GenerationConfig(eos_token_id=ends, pad_token_id=first, do_sample=False).save_pretrained(folder)


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        fields = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return fields if isinstance(fields, dict) else None


def _tokenizer(source: Path) -> Any:  # noqa: ANN401 - the library has no types
    """Read ``tokenizer.json``, or make it of ``vocab.json`` and ``merges.txt``: Med3DVLM saves its slow tokenizer."""
    try:
        if (source / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(source / "tokenizer.json"))
        return Qwen2Tokenizer.from_pretrained(source).backend_tokenizer
    except Exception:  # neither library has a class of its own for a file that it cannot read
        raise CheckpointError(
            f"{source}: expected tokenizer.json, or vocab.json and merges.txt, found none that can be read."
        ) from None


def _with_special_tokens(tokenizer: Any, language: LanguageSpec, rows: int) -> Any:  # noqa: ANN401
    """Return the tokenizer with image token and [SEG] as special tokens.

    Some training code adds them as ordinary ones. A token that the tokenizer lacks is added only where it is the only
    one, and the embedding has exactly one row more than there are tokens: so does Med3DVLM's
    ``initialize_vision_tokenizer``, which leaves the tokenizer of Qwen beside its weights as it was.
    """
    wanted = (language.image_token, language.seg_token)
    missing = [token for token in wanted if tokenizer.token_to_id(token) is None]
    if len(missing) == 1 and max(tokenizer.get_vocab().values(), default=-1) + 2 == rows:
        tokenizer.add_special_tokens([AddedToken(missing[0], normalized=False)])
    fields = json.loads(tokenizer.to_str())
    for token in fields["added_tokens"]:
        token["special"] = token["special"] or token["content"] in wanted
    return Tokenizer.from_str(json.dumps(fields))
