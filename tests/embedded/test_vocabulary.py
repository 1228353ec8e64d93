"""The tokenizer holds the grammar in few tokens, and is the same whenever it is trained."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from medvl.embedded.questions import questions
from medvl.embedded.random_truth import random_truth
from medvl.embedded.report import write_report
from medvl.embedded.truth import Coverage, FindingKind
from medvl.embedded.vocabulary import EOS, IMAGE, SEG, VOCABULARY, corpus, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer()


def test_it_is_trained_the_same_way_twice(tokenizer: Any):
    """Byte for byte: the checkpoint's hashes depend on it."""
    assert train_tokenizer().to_str() == tokenizer.to_str()


def test_special_tokens_come_first(tokenizer: Any):
    """And the vocabulary is as large as the embedding of the preset expects at most."""
    assert [tokenizer.token_to_id(t) for t in (EOS, IMAGE, SEG)] == [0, 1, 2]
    assert tokenizer.get_vocab_size() <= VOCABULARY


def test_typed_special_tokens_are_letters(tokenizer: Any):
    """With the added tokens taken out, as for texts of users, no spelling becomes a special token."""
    plain: Any = Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_str()) | {"added_tokens": []}))
    for token in (EOS, IMAGE, SEG):
        assert not {0, 1, 2} & set(plain.encode(f"Segment {token} now").ids)


def test_any_text_survives(tokenizer: Any):
    """Bytes are its alphabet."""
    text = "Größe 3,5 cm, 肝臓?\n\tFindings: [SEG]"
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_a_size_is_one_token(tokenizer: Any):
    """Every multiple of 5 up to 150, with the blank before it."""
    for size_mm in range(5, 155, 5):
        assert tokenizer.encode(f" {size_mm} mm").tokens == [f"Ġ{size_mm}", "Ġmm"]


def test_reports_and_answers_are_short(tokenizer: Any):
    """At most 150 tokens in 99 % of reports; a question and its answer in 40."""
    rng = np.random.default_rng(11)
    truths = [random_truth(rng) for _ in range(400)]
    reports = [len(tokenizer.encode(write_report(truth, rng)).ids) for truth in truths]
    assert np.mean(np.array(reports) <= 150) >= 0.99
    asked = [f"{q.question} {q.answer}" for truth in truths for q in questions(truth, rng)]
    assert np.percentile([len(tokenizer.encode(text).ids) for text in asked], 99) <= 40


def test_the_corpus_spells_no_special_token():
    """What the merges learn from are words."""
    for text in corpus(np.random.default_rng(0), 20):
        assert not any(token in text for token in (EOS, IMAGE, SEG))


def test_random_truths_cover_everything():
    """Every kind, every coverage, and truths without any finding."""
    rng = np.random.default_rng(4)
    truths = [random_truth(rng) for _ in range(400)]
    assert {f.kind for truth in truths for f in truth.findings} == set(FindingKind)
    assert {coverage for truth in truths for coverage in truth.organs.values()} == set(Coverage)
    assert any(not truth.findings for truth in truths)
    assert all(truth.seen(f.organ) for truth in truths for f in truth.findings if f.value is not None)
