"""The tokenizer of the phantom checkpoint: byte-level BPE, trained on what is written and asked about phantoms."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from medvl.embedded.questions import questions
from medvl.embedded.random_truth import random_truth
from medvl.embedded.report import write_report
from medvl.embedded.requests import requests
from medvl.embedded.words import SEG

__all__ = ["EOS", "IMAGE", "SEG", "VOCABULARY", "corpus", "train_tokenizer"]

EOS, IMAGE = "<|endoftext|>", "<image>"
VOCABULARY = 2048
"""At most; the grammar has fewer merges to offer."""
_SEED, _TRUTHS = 1, 300
_PROMPTS = (
    "Write the radiology report of this CT.\n",
    "Question: Is it normal?\nAnswer: Yes.",
    f"Segment the liver.\nIt is {SEG}.",
    "Field of view: 320 x 400 x 400 mm.\n",
)
"""Words around what is asked and said, as prompts have them."""


def train_tokenizer() -> Tokenizer:
    """Return the tokenizer; the same wherever and whenever it is trained."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[EOS, IMAGE, SEG],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(np.random.default_rng(_SEED), _TRUTHS), trainer)
    return tokenizer


def corpus(rng: np.random.Generator, count: int) -> Iterator[str]:
    """Yield what is said and asked about ``count`` random truths, and every number that it can take.

    Special tokens are cut out, as the tokenizer never sees their letters.
    """
    for _ in range(count):
        truth = random_truth(rng)
        yield write_report(truth, rng).replace(SEG, "")
        for asked in questions(truth, rng):
            yield f"{asked.question}\n {asked.answer}"
        for request in requests(truth, rng):
            yield f"Segment {request.text}."
    for prompt in _PROMPTS * count:
        yield prompt.replace(SEG, "")
    for number in range(1000):
        yield f" {number} mm" * (_NUMBER_WEIGHT if number % 5 == 0 else 2)


_NUMBER_WEIGHT = 20
"""How often multiples of 5, the sizes of reports, are seen: so often that each is one token."""
