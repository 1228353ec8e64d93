"""Canary requests fit the signatures of the models."""

from __future__ import annotations

import pytest

from medvl.contracts.models import MODELS, Kind
from medvl.contracts.tensors import check
from medvl.runtime.canary import WATCHED, smallest_inputs


def test_every_model_with_a_process_is_watched() -> None:
    """An ensemble has no process; everything else may die."""
    assert set(WATCHED) == {name for name, spec in MODELS.items() if spec.kind is not Kind.ENSEMBLE}


@pytest.mark.parametrize("model", WATCHED)
def test_the_smallest_inputs_fit_the_signature(model: str) -> None:
    """Dtypes, ranks and fixed lengths are right, so that the model and not the client refuses them."""
    spec = MODELS[model]
    inputs = smallest_inputs(spec)
    check(spec.inputs, inputs, batched=spec.max_batch_size > 0)
    assert max(array.size for array in inputs.values()) < 16
