"""Packed utterances are learnt as they are served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medvl.contracts.checkpoint import ProjectorSpec
from medvl.embedded.preset import phantom_checkpoint, phantom_language_model
from medvl.embedded.random_truth import random_truth
from medvl.embedded.truth import FindingKind
from medvl.embedded.vocabulary import train_tokenizer
from medvl.imaging.geometry import Geometry
from medvl.network.projector import Projector, TokenShape
from medvl.training.cases import Case, Voxels
from medvl.training.descriptors import Place
from medvl.training.language import Pack, Utterance, begin_locally, seen_by, utterances

VISION = 5
SAID = (
    Utterance("Write the report.\n", "Findings: a cyst [SEG] and a stone [SEG].", (), decisive=False),
    Utterance("Question: Is there a cyst?\n", "Yes, there is.", (), decisive=True),
    Utterance("Segment the liver.\n", "It is [SEG].", (), decisive=False),
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Any):
    torch.manual_seed(1)
    return phantom_language_model(tokenizer).eval()


@torch.inference_mode()
def hidden(model, tokens: torch.Tensor, pack: Pack) -> torch.Tensor:
    embeddings = torch.cat([tokens, model.get_input_embeddings()(torch.tensor([pack.ids]))], 1)
    positions = torch.tensor([[*range(VISION), *(VISION + p for p in pack.positions)]])
    mask = seen_by(torch.tensor([pack.owner]), VISION)
    out = model.model(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions)
    return out.last_hidden_state[0, VISION:]


def test_a_token_begins_as_the_mean_of_its_cells():
    """A lesion in one cell changes one token, whatever the mixer's random weights."""
    torch.manual_seed(0)
    low, high = TokenShape(2 * 4 * 4, 6), TokenShape(2 * 2 * 2, 6)
    spec = ProjectorSpec(architecture="mixer", low_tokens=(8, 8), high_tokens=(8, 8), mlp_depth=2)
    projector = Projector(spec, low, high, hidden_size=16)
    begin_locally(projector.low_mixer, (2, 4, 4), (1, 2, 2))
    features, other = torch.randn(1, 32, 6), torch.randn(1, 8, 6)
    changed = features.clone()
    changed[0, 16 + 4 * 1 + 2] *= -1  # slice 1, row 1, column 2: the second block of the first row of blocks
    with torch.inference_mode():
        difference = (projector.seen(changed, other) - projector.seen(features, other))[0, :8].abs().sum(1)
    assert difference.argmax() == 4 + 1
    assert difference[5] > 3 * difference.sort().values[-2]


def test_neighbours_in_a_pack_do_not_hear_each_other(tokenizer: Any, model):
    """Every state is that of the utterance alone behind the vision tokens, as the served model computes it."""
    tokens = torch.randn(1, VISION, model.config.hidden_size)
    together = hidden(model, tokens, Pack.of(SAID, tokenizer))
    start = 0
    for one in SAID:
        alone = Pack.of([one], tokenizer)
        plain = torch.cat([tokens, model.get_input_embeddings()(torch.tensor([alone.ids]))], 1)
        with torch.inference_mode():
            expected = model.model(inputs_embeds=plain).last_hidden_state[0, VISION:]
        assert torch.allclose(together[start : start + len(alone.ids)], expected, atol=1e-4)
        start += len(alone.ids)


def test_an_answer_is_what_comes_behind_the_prompt(tokenizer: Any):
    """Its tokens and the end, predicted from the place before; [SEG] tokens are found; beginnings decide."""
    pack = Pack.of(SAID, tokenizer)
    assert tokenizer.decode(pack.wanted, skip_special_tokens=False) == "<|endoftext|>".join(
        [*(one.answer for one in SAID), ""]
    )
    assert [pack.ids[at + 1] for at in pack.asked] == pack.wanted
    assert pack.wanted.count(tokenizer.token_to_id("<|endoftext|>")) == len(SAID)
    assert [pack.ids[at] for at in pack.seg] == 3 * [tokenizer.token_to_id("[SEG]")]
    assert sum(weight > 1 for weight in pack.weight) == 2


@pytest.mark.parametrize("seed", range(8))
def test_every_seg_has_its_target(tokenizer: Any, seed: int):
    """In reports, findings in the order of the text; in requests, the object or its absence."""
    rng = np.random.default_rng(seed)
    truth = random_truth(rng)
    values = [*truth.names, *(f.value for f in truth.findings if f.value is not None)]
    places = {v: Place((0.5, 0.5, 0.5), (0.1, 0.1, 0.1)) for v in values}
    geometry = Geometry((60, 70, 70), (5.0, 5.0, 5.0), (0.0, 0.0, 0.0), ((0, 0, 1), (0, 1, 0), (1, 0, 0)))
    case = Case(0, Voxels(Path("nowhere"), geometry.shape), geometry, truth, places)
    said = utterances(case, phantom_checkpoint({}).language.prompts, rng)
    pack = Pack.of(said, tokenizer)
    assert len(pack.seg) == len(pack.targets)
    for one in said:
        assert one.answer.count("[SEG]") == len(one.targets)
    kinds = {str(kind) for kind in FindingKind}
    assert all(t.kind in kinds for t in said[0].targets)
