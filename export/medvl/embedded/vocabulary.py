"""The tokenizer of the phantom checkpoint: byte-level BPE, trained on sentences of radiology made from a grammar."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

EOS, IMAGE, SEG = "<|endoftext|>", "<image>", "[SEG]"
VOCABULARY = 2048
"""At most; the grammar has fewer merges to offer."""

_ORGANS = (
    *("liver", "spleen", "left kidney", "right kidney", "left lung", "right lung", "heart", "aorta", "trachea"),
    *("gallbladder", "stomach", "urinary bladder", "spine", "ribs", "pancreas", "left adrenal gland"),
)
_FINDINGS = (
    *("nodule", "cyst", "mass", "stone", "lesion", "pleural effusion", "pneumothorax", "hydronephrosis"),
    *("aneurysm", "vertebral fracture", "calcification", "splenomegaly", "consolidation"),
)
_SENTENCES = (
    "The {organ} is unremarkable.",
    "There is a {finding} in the {organ}.",
    "No {finding} is seen in the {organ}.",
    "The {organ} shows a {finding} measuring 12 mm.",
    "Is there a {finding} in the {organ}?",
    "How large is the {finding} in the {organ}?",
    "Segment the {organ}. It is [SEG].",
    "The {organ} cannot be assessed: it lies outside the field of view.",
    "Findings: the {organ} is enlarged. Impression: {finding} of the {organ}.",
    "Multiple {finding}s are present, the largest in the {organ}.",
    "The {organ} is absent after surgery; no residual {finding} is identified.",
)
_NUMBERS = tuple(f"{whole}.{tenth} mm, {whole} HU, {whole} ml." for whole in range(100) for tenth in (0, 5))


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
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer


def _corpus() -> Iterator[str]:
    for sentence, organ, finding in product(_SENTENCES, _ORGANS, _FINDINGS):
        yield sentence.format(organ=organ, finding=finding)
    yield from _NUMBERS
