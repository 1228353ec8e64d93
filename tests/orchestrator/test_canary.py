"""Canary requests fit the signatures of the models, and tell dead ones from silent ones."""

from __future__ import annotations

import pytest

from medvl.contracts.checkpoint import Checkpoint
from medvl.contracts.errors import BackendUnavailable, DeadlineExceeded
from medvl.contracts.models import MODELS, Kind
from medvl.contracts.tensors import check
from medvl.orchestrator.canary import WATCHED, Canary, question
from medvl.orchestrator.triton import Triton

from .fake_triton import FakeTriton, TritonServer


def test_every_model_with_a_process_is_watched():
    """An ensemble has no process; everything else may die."""
    assert set(WATCHED) == {name for name, spec in MODELS.items() if spec.kind is not Kind.ENSEMBLE}


@pytest.mark.parametrize("model", WATCHED)
def test_a_question_fits_the_signature(model: str, checkpoint: Checkpoint):
    """Dtypes, ranks and fixed lengths are right, so that the model and not the client refuses it; and it is small."""
    spec, inputs = MODELS[model], question(model, checkpoint)
    check(spec.inputs, inputs, batched=spec.max_batch_size > 0)
    if spec.kind is Kind.NETWORK:
        assert max(array.size for array in inputs.values()) < 16


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("INVALID_REQUEST: The graph takes other shapes.", None),
        ("failed to set the shape of a binding", None),
        ("Stub process 'vision_encoder_0_0' is not healthy.", BackendUnavailable),
        ("Exceeds maximum queue size", DeadlineExceeded),
        ("Request timeout expired", DeadlineExceeded),
    ],
)
async def test_only_a_refusal_of_the_model_itself_is_a_sign_of_life(checkpoint: Checkpoint, said, error):
    """The server answers for a dead one, and for one whose queue is full because it hangs."""
    fake = FakeTriton(checkpoint)
    fake.refusals["vision_encoder"] = said
    server = TritonServer(fake)
    await server.start()
    async with Triton(f"127.0.0.1:{server.port}") as triton:
        asking = Canary(triton, checkpoint, timeout_s=5.0).ask("vision_encoder")
        if error is None:
            await asking
        else:
            with pytest.raises(error):
                await asking
    await server.stop()
