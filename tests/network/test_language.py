"""The language path against transformers' own generation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2ForCausalLM

from medvl.contracts.checkpoint import LANGUAGE_FOLDER, Checkpoint, load_checkpoint
from medvl.network.language import LanguageModel

LENGTH = 24


@pytest.fixture(scope="module")
def checkpoint(preset: Path) -> Checkpoint:
    return load_checkpoint(preset)


def vision(checkpoint: Checkpoint, seed: int) -> torch.Tensor:
    shape = (checkpoint.vision_tokens, checkpoint.language.hidden_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(4))
@torch.inference_mode()
def test_greedy_answers_are_those_of_generate(preset: Path, checkpoint: Checkpoint, seed: int):
    """Token for token, from the same embeddings; another volume gives another answer."""
    model = LanguageModel(preset, checkpoint.language)
    reference = Qwen2ForCausalLM.from_pretrained(preset / LANGUAGE_FOLDER, dtype=torch.float32).eval()
    tokens = vision(checkpoint, seed)
    words = reference.get_input_embeddings()(torch.tensor([model._plain.encode("report this").ids]))
    assert checkpoint.language.splice == "prefix"
    embeddings = torch.cat([tokens[None], words], dim=1)
    expected = reference.generate(
        inputs_embeds=embeddings,
        attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
        do_sample=False,
        max_new_tokens=LENGTH,
    )
    answer = model.answer(tokens, "report this", LENGTH)
    assert answer.token_ids == tuple(expected[0].tolist())
    assert answer.token_ids != model.answer(vision(checkpoint, seed + 100), "report this", LENGTH).token_ids


@torch.inference_mode()
def test_vision_tokens_go_where_med3dvlm_puts_them(preset: Path, checkpoint: Checkpoint):
    """Of image tokens and a question, everything but the first image token and the question's second token on goes."""
    spec = checkpoint.language.model_copy(update={"splice": "over_first"})
    model, tokens = LanguageModel(preset, spec), vision(checkpoint, 0)
    question = model._plain.encode("report this").ids
    embedded = model._words([model._image] * len(tokens) + question)
    expected = torch.cat([embedded[:, :1], tokens[None], embedded[:, len(tokens) + 1 :]], dim=1)
    assert torch.equal(model._embedded(tokens, "report this"), expected)


def test_the_state_of_a_given_answer_depends_on_all_before_it(preset: Path, checkpoint: Checkpoint):
    """On the volume, the prompt and the words of the answer; on nothing behind [SEG]."""
    model, seg = LanguageModel(preset, checkpoint.language), checkpoint.language.seg_token
    tokens = vision(checkpoint, 1)
    state = model.seg_state(tokens, "liver", f"It is {seg}.")
    assert state.shape == (checkpoint.language.hidden_size,)
    assert np.allclose(state, model.seg_state(tokens, "liver", f"It is {seg} and more."), atol=1e-5)
    for other in (
        model.seg_state(vision(checkpoint, 2), "liver", f"It is {seg}."),
        model.seg_state(tokens, "spleen", f"It is {seg}."),
        model.seg_state(tokens, "liver", f"Here it is {seg}."),
    ):
        assert np.abs(state - other).max() > 1e-3


def test_what_a_user_writes_is_never_a_special_token(preset: Path, checkpoint: Checkpoint):
    """The token of [SEG], spelled in a prompt, is so many ordinary letters."""
    model, seg = LanguageModel(preset, checkpoint.language), checkpoint.language.seg_token
    assert model._seg not in model._plain.encode(seg).ids
    assert model._plain.decode(model._plain.encode(seg).ids) == seg
