"""The language model's folder against the contract: configuration and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from medvl.contracts.checkpoint import CHECKPOINT_FILE, LANGUAGE_FOLDER, Checkpoint, LanguageSpec

MODEL_TYPE = "qwen2"
"""``model_type`` of the family that the contract names."""

_CONFIG = f"{LANGUAGE_FOLDER}/config.json"
_TOKENIZER = f"{LANGUAGE_FOLDER}/tokenizer.json"


def language_mismatches(folder: Path, checkpoint: Checkpoint) -> Iterator[str]:
    """Yield a line for everything in the language model's folder that contradicts ``checkpoint.json``."""
    config = fields_of(folder / _CONFIG)
    if config is None:
        yield f"{_CONFIG}: expected a transformers configuration, found none that can be read"
    else:
        yield from _config_mismatches(config, checkpoint.language)
        yield from _end_mismatches(folder / LANGUAGE_FOLDER, config)
    tokenizer = tokenizer_of(folder / LANGUAGE_FOLDER)
    if tokenizer is None:
        yield f"{_TOKENIZER}: expected a tokenizer, found none that can be read"
    else:
        yield from _tokenizer_mismatches(tokenizer, checkpoint.language, config or {})
        yield from _length_mismatches(tokenizer, checkpoint)


@dataclass(frozen=True, slots=True)
class EndTokens:
    """What ends an answer."""

    file: str
    """The one that transformers and vLLM take it from."""
    tokens: tuple[Any, ...]
    """As that file has them, whatever they are."""


def end_tokens(folder: Path, config: dict[str, Any]) -> EndTokens:
    """Return what ends an answer of a transformers folder, by its fields."""
    generation = fields_of(folder / "generation_config.json")
    file, ends = ("config.json", config) if generation is None else ("generation_config.json", generation)
    found = ends.get("eos_token_id")
    return EndTokens(file, tuple(found) if isinstance(found, list) and found else (found,))


def fields_of(path: Path) -> dict[str, Any] | None:
    """Return the JSON object of a file, None where it holds none."""
    try:
        fields = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return fields if isinstance(fields, dict) else None


def tokenizer_of(folder: Path) -> Any:  # noqa: ANN401 - the library has no types
    """Return the tokenizer of a transformers folder, None where it holds none."""
    path = folder / "tokenizer.json"
    try:
        return Tokenizer.from_str(path.read_text("utf-8"))
    except Exception:  # the library has no class of its own for a file that it cannot read
        return None


def _config_mismatches(config: dict[str, Any], language: LanguageSpec) -> Iterator[str]:
    for field, expected in (("model_type", MODEL_TYPE), ("hidden_size", language.hidden_size)):
        if (found := config.get(field)) != expected:
            yield f"{_CONFIG}: {field}: expected {expected}, found {found}"
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions < language.max_context:
        yield f"{_CONFIG}: max_position_embeddings: expected at least {language.max_context}, found {positions}"


def _end_mismatches(folder: Path, config: dict[str, Any]) -> Iterator[str]:
    """Yield a line where no token of the vocabulary ends an answer."""
    ends, size = end_tokens(folder, config), config.get("vocab_size")
    if not all(isinstance(t, int) and isinstance(size, int) and 0 <= t < size for t in ends.tokens):
        found = list(ends.tokens) if len(ends.tokens) > 1 else ends.tokens[0]
        file = f"{LANGUAGE_FOLDER}/{ends.file}"
        yield f"{file}: eos_token_id: expected tokens below {size} that end an answer, found {found}"


def _tokenizer_mismatches(tokenizer: Any, language: LanguageSpec, config: dict[str, Any]) -> Iterator[str]:  # noqa: ANN401
    special = {t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special}
    for token in (language.seg_token, language.image_token):
        if token not in special:
            yield f"{_TOKENIZER}: expected the special token {token}, found none of that name"
    embedded, needed = config.get("vocab_size"), max(tokenizer.get_vocab().values(), default=-1) + 1
    if isinstance(embedded, int) and needed > embedded:
        yield f"{_TOKENIZER}: expected token ids below {embedded}, the vocab_size of {_CONFIG}, found {needed - 1}"


def _length_mismatches(tokenizer: Any, checkpoint: Checkpoint) -> Iterator[str]:  # noqa: ANN401
    """Yield a line for every limit that leaves no room for prompt and vision tokens: no request could be answered."""
    language, vision = checkpoint.language, checkpoint.vision_tokens
    prompts = language.prompts
    for field, template, limit in (
        ("max_report_tokens", prompts.report, language.max_report_tokens),
        ("max_answer_tokens", prompts.ask, language.max_answer_tokens),
    ):
        prompt = len(tokenizer.encode(template, add_special_tokens=False).ids)
        if (most := language.max_context - vision - prompt) < limit:
            yield (
                f"{CHECKPOINT_FILE}: language.{field}: expected at most {most}, behind {vision} vision tokens and a "
                f"prompt of {prompt} in a context of {language.max_context}, found {limit}"
            )
