"""Prompts for vLLM: text as token ids, vision tokens as embeddings between them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from medvl.contracts.checkpoint import Checkpoint
from medvl.contracts.errors import CheckpointError, InvalidRequest
from medvl.serving.text_stream import TextStream


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt in vLLM's mixed form."""

    token_ids: list[int]
    """Tokens of the text; the image token where a vision token goes."""
    is_text: list[bool]
    """Where vLLM embeds ``token_ids`` itself."""
    embeddings: torch.Tensor
    """[L, H] in the model's dtype: the vision tokens, zeros where the text is."""
    seg_token_id: int

    def followed_by(self, token_ids: Sequence[int]) -> Prompt:
        """Return the prompt with the beginning of its answer behind it."""
        room = torch.zeros(len(token_ids), self.embeddings.shape[1], dtype=self.embeddings.dtype)
        return Prompt(
            [*self.token_ids, *token_ids],
            [*self.is_text, *[True] * len(token_ids)],
            torch.cat([self.embeddings, room]),
            self.seg_token_id,
        )

    def to_vllm(self) -> dict[str, Any]:
        """Return the prompt as ``AsyncLLM.generate`` takes it."""
        return {
            "prompt_embeds": self.embeddings,
            "prompt_token_ids": self.token_ids,
            "prompt_is_token_ids": self.is_text,
        }


@dataclass(frozen=True, slots=True)
class ForcedAnswer:
    """The tokens of an answer that is given beforehand."""

    tokens: list[int]
    seg_ends: list[int]
    """How many tokens there are up to and with each [SEG]."""
    pieces: list[str]
    """The text before each [SEG] and after the last one."""


def plain_tokenizer(tokenizer_json: str) -> Tokenizer:
    """Return the tokenizer without its added tokens: no text can spell an image token or [SEG] with it."""
    return Tokenizer.from_str(json.dumps(json.loads(tokenizer_json) | {"added_tokens": []}))


class PromptBuilder:
    """Turns requests into prompts, and templates into tokens, by the rules of a checkpoint."""

    def __init__(self, folder: Path, checkpoint: Checkpoint) -> None:
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        self._plain, self._full = plain_tokenizer(text), Tokenizer.from_str(text)
        self._checkpoint = checkpoint
        self._dtype = getattr(torch, checkpoint.language.dtype)
        self.image_token_id = self._special(checkpoint.language.image_token)
        self.seg_token_id = self._special(checkpoint.language.seg_token)

    def build(self, text: str, vision_tokens: np.ndarray) -> Prompt:
        """Return the prompt of a request.

        Parameters
        ----------
        text
            The prompt without image tokens; none of it becomes a special token.
        vision_tokens
            FP32 [T, H] in the language model's embedding space.

        Raises
        ------
        InvalidRequest
            When the text is empty, or the vision tokens have a wrong shape or hold values that are not finite:
            vLLM's engine would end over them, for every request.
        """
        wanted = (self._checkpoint.vision_tokens, self._checkpoint.language.hidden_size)
        if vision_tokens.shape != wanted:
            raise InvalidRequest(f"Tensor vision_tokens should be {list(wanted)} but is {list(vision_tokens.shape)}.")
        if not np.isfinite(vision_tokens).all():
            raise InvalidRequest("Tensor vision_tokens holds values that are not finite.")
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        if not ids:
            raise InvalidRequest("The prompt is empty: ask something.")
        return self._spliced(ids, torch.from_numpy(vision_tokens))

    def forced_answer(self, template: str) -> ForcedAnswer:
        """Return an answer that is given beforehand, in which special tokens are tokens.

        Raises
        ------
        InvalidRequest
            When it holds no [SEG]: there would be nothing to ask the model.
        """
        tokens: list[int] = self._full.encode(template, add_special_tokens=False).ids
        pieces = template.split(self._checkpoint.language.seg_token)
        seg_ends = [i + 1 for i, token in enumerate(tokens) if token == self.seg_token_id]
        if not seg_ends or len(pieces) != len(seg_ends) + 1:
            raise InvalidRequest(f"The answer template must hold {self._checkpoint.language.seg_token}.")
        return ForcedAnswer(tokens, seg_ends, pieces)

    def text_stream(self) -> TextStream:
        """Return a decoder for one answer."""
        return TextStream(self._full, self.seg_token_id)

    def _spliced(self, ids: list[int], vision: torch.Tensor) -> Prompt:
        count, width = vision.shape
        before, behind = self._checkpoint.language.around_vision(ids, self.image_token_id)
        start = len(before)
        token_ids = [*before, *[self.image_token_id] * count, *behind]
        embeddings = torch.zeros(len(token_ids), width, dtype=self._dtype)
        embeddings[start : start + count] = vision.to(self._dtype)
        is_text = [not start <= i < start + count for i in range(len(token_ids))]
        return Prompt(token_ids, is_text, embeddings, self.seg_token_id)

    def _special(self, token: str) -> int:
        token_id = self._full.token_to_id(token)
        if token_id is None:
            raise CheckpointError(f"The tokenizer of the checkpoint does not know the token {token}.")
        return int(token_id)
