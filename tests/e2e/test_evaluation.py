"""The served system is evaluated as the torch reference is, and agrees with it."""

from __future__ import annotations

from pathlib import Path

from medvl.client import Client
from medvl.contracts.checkpoint import load_checkpoint
from medvl.embedded.scanner import Protocol
from medvl.evaluation.cases import Case
from medvl.evaluation.comparison import compare
from medvl.evaluation.evaluate import Participant, Plan, evaluate
from medvl.evaluation.records import Records
from medvl.evaluation.subjects import ReferenceSubject, ServedSubject

TINY = Protocol(slices=(8, 8), side=64, spacing_mm=(20.0, 45.0))


def test_served_equals_reference(client: Client, phantom_checkpoint: Path, tmp_path: Path):
    """On one small case: the same texts, the same masks for the report, some classes, words, points and boxes."""
    whole = load_checkpoint(phantom_checkpoint)
    checkpoint = whole.model_copy(update={"labels": whole.labels[::6]})
    participants = [
        Participant(ServedSubject(client, whole.digest), "test", 1),
        Participant(ReferenceSubject(phantom_checkpoint), "test", 1),
    ]
    plan = Plan(seeds=range(2, 3), mask_cases=1, control_cases=0, objects=1, texts=1)
    with Records(tmp_path) as records:
        results = evaluate(
            plan,
            participants,
            checkpoint,
            records,
            make=lambda seed: Case.make(seed, TINY),
            tell=lambda line: None,
        )
    agreement = compare(results, "served", "reference")
    assert agreement.cases == 1
    assert agreement.identical_texts == agreement.texts > 1
    assert agreement.found_alike == agreement.masks > 4
    assert agreement.least_dice >= 0.99
