"""The language path of the torch reference: transformers, one answer at a time, greedy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Qwen2ForCausalLM

from medvl.contracts.checkpoint import LANGUAGE_FOLDER, LanguageSpec


@dataclass(frozen=True, eq=False)
class ReferenceText:
    """An answer.

    Attributes
    ----------
    text
        Without the token that ended it.
    token_ids
        That token included.
    seg_hidden
        FP32 [n, H], a state for each [SEG].
    """

    text: str
    token_ids: tuple[int, ...]
    seg_hidden: NDArray[np.float32]


class LanguageModel:
    """A Qwen2-family folder with vision tokens as embeddings.

    Parameters
    ----------
    folder
        A checkpoint folder.
    spec
        Its language part.

    Attributes
    ----------
    model
        That of transformers, in the dtype of the checkpoint.
    """

    def __init__(self, folder: Path, spec: LanguageSpec) -> None:
        text = (folder / LANGUAGE_FOLDER / "tokenizer.json").read_text("utf-8")
        self._full: Any = Tokenizer.from_str(text)
        # Text of users never becomes a special token.
        self._plain: Any = Tokenizer.from_str(json.dumps(json.loads(text) | {"added_tokens": []}))
        self._spec = spec
        dtype = getattr(torch, spec.dtype)
        self.model: Any = Qwen2ForCausalLM.from_pretrained(folder / LANGUAGE_FOLDER, dtype=dtype).eval()
        ends = self.model.generation_config.eos_token_id
        self._ends = set(ends) if isinstance(ends, list) else {ends}
        self._seg: Any = self._full.token_to_id(spec.seg_token)
        self._image: Any = self._full.token_to_id(spec.image_token)

    @property
    def embedding_size(self) -> float:
        """Root mean square of the values of word embeddings."""
        some: Tensor = self.model.get_input_embeddings().weight[:1024].detach().float()
        return float(some.square().mean().sqrt())

    @torch.inference_mode()
    def answer(self, vision_tokens: Tensor, prompt: str, max_tokens: int) -> ReferenceText:
        """Answer freely.

        Parameters
        ----------
        vision_tokens
            FP32 [T, H].
        """
        embeddings, cache = self._embedded(vision_tokens, prompt), None
        tokens: list[int] = []
        states: list[Tensor] = []
        while True:
            out = self.model.model(inputs_embeds=embeddings, past_key_values=cache, use_cache=True)
            cache, state = out.past_key_values, out.last_hidden_state[0, -1]
            if self._spec.seg_state == "at" and tokens and tokens[-1] == self._seg:
                states.append(state)
            if len(tokens) == max_tokens or (tokens and tokens[-1] in self._ends):
                break
            tokens.append(int(self.model.lm_head(state).argmax()))
            if self._spec.seg_state == "predicting" and tokens[-1] == self._seg:
                states.append(state)
            embeddings = self._words(tokens[-1:])
        spoken = tokens[:-1] if tokens[-1] in self._ends else tokens
        text: str = self._full.decode(spoken, skip_special_tokens=False)
        return ReferenceText(text, tuple(tokens), self._rows(states))

    @torch.inference_mode()
    def seg_state(self, vision_tokens: Tensor, prompt: str, answer: str) -> NDArray[np.float32]:
        """Return the state FP32 [H] of the [SEG] of an answer that is given beforehand."""
        tokens: list[int] = self._full.encode(answer, add_special_tokens=False).ids
        end = tokens.index(self._seg) + (1 if self._spec.seg_state == "at" else 0)
        embeddings = self._embedded(vision_tokens, prompt)
        if end:
            embeddings = torch.cat([embeddings, self._words(tokens[:end])], dim=1)
        state = self.model.model(inputs_embeds=embeddings).last_hidden_state[0, -1]
        return np.asarray(state.float().numpy())

    def _embedded(self, vision_tokens: Tensor, prompt: str) -> Tensor:
        """Return the prompt's embeddings [1, L, H] with the vision tokens in their place."""
        text: list[int] = self._plain.encode(prompt, add_special_tokens=False).ids
        before, behind = (self._words(ids) for ids in self._spec.around_vision(text, self._image))
        return torch.cat([before, vision_tokens[None].to(behind.dtype), behind], dim=1)

    def _words(self, token_ids: list[int]) -> Tensor:
        embedded: Tensor = self.model.get_input_embeddings()(torch.tensor([token_ids], dtype=torch.long))
        return embedded

    def _rows(self, states: list[Tensor]) -> NDArray[np.float32]:
        if not states:
            return np.empty((0, self._spec.hidden_size), np.float32)
        return np.stack([state.float().numpy() for state in states])
