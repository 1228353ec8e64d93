"""One small request to every model, which only the model's own code can answer.

Readiness says nothing: a killed stub leaves its model ready and every inference failing for ever, and an engine can
hang while the server is well. Networks get the smallest tensors that fit their signature: a network of fixed size
refuses them in about a millisecond, and that refusal comes from the process that would have run the graph. The language
model generates one token; the segmenter is asked for a series that it does not hold. None of it leaves anything behind
in a cache or store, and answers are read to their end, since Triton's models count callers that go away.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import numpy as np

from medvl.contracts.checkpoint import Checkpoint
from medvl.contracts.errors import BackendUnavailable, DeadlineExceeded, InternalError, InvalidRequest, Overloaded
from medvl.contracts.messages import LanguageOptions, ObjectPrompts, PointPrompt, SegmenterRequest
from medvl.contracts.models import MODELS, Kind, ModelSpec
from medvl.orchestrator.calls import Call
from medvl.orchestrator.encoding import Tensors
from medvl.orchestrator.triton import Triton

WATCHED = tuple(name for name, spec in MODELS.items() if spec.kind is not Kind.ENSEMBLE)
"""Models with a process of their own. An ensemble (``encode_volume``, ``segment_slice``) has none: the server itself
hands tensors from step to step. The steps are asked here, and asking the ensemble would only run an encoder in vain."""

NO_SERIES = "0" * 64
"""A digest that no series has."""


class Canary:
    """Asks models for a sign of life.

    Parameters
    ----------
    triton
        The server.
    checkpoint
        What it serves: the sizes of a valid request to the language model, a window of the segmenter.
    timeout_s
        How long an answer may take.
    """

    def __init__(self, triton: Triton, checkpoint: Checkpoint, timeout_s: float) -> None:
        self._triton = triton
        self._checkpoint = checkpoint
        self._timeout_s = timeout_s

    async def ask(self, model: str) -> None:
        """Ask one model of :data:`WATCHED`.

        Raises
        ------
        BackendUnavailable
            When its process is gone.
        DeadlineExceeded
            When it does not answer in time, or Triton takes no more requests for it: busy or hung.
        MedvlError
            What it says instead of an answer.
        """
        spec, inputs = MODELS[model], question(model, self._checkpoint)
        call = Call("canary", asyncio.get_running_loop().time() + self._timeout_s)
        try:
            if spec.decoupled:
                await self._hear_out(model, inputs, call)
            else:
                await self._be_refused(model, inputs, call)
        except Overloaded:
            raise DeadlineExceeded(f"The queue of the model {model} is full, or does not move.") from None

    async def _hear_out(self, model: str, inputs: Tensors, call: Call) -> None:
        answered = False
        async with aclosing(self._triton.stream(model, inputs, call)) as responses:
            async for _ in responses:
                answered = True
        if not answered:
            raise BackendUnavailable(f"The model {model} ends its answer before it begins.")

    async def _be_refused(self, model: str, inputs: Tensors, call: Call) -> None:
        try:
            await self._triton.infer(model, inputs, call)
        except (InvalidRequest, InternalError):
            # Of InternalError are the words of backends that are not ours.
            return


def question(model: str, checkpoint: Checkpoint) -> Tensors:
    """Return what a model is asked: one token, a series that nobody has, or the smallest tensors of a network."""
    language, segmentation = checkpoint.language, checkpoint.segmentation
    match model:
        case "llm":
            return {
                "vision_tokens": np.zeros((checkpoint.vision_tokens, language.hidden_size), np.float32),
                "prompt": np.frombuffer(language.prompts.report.encode(), np.uint8),
                "options": np.frombuffer(LanguageOptions(max_tokens=1).to_bytes(), np.uint8),
            }
        case "volume_segmenter":
            prompts = ObjectPrompts(object_id=0, points=(PointPrompt(slice=0, row=0.0, column=0.0),))
            window_hu = checkpoint.windows[segmentation.window]
            request = SegmenterRequest(series=NO_SERIES, window_hu=window_hu, shape=(1, 1, 1), objects=(prompts,))
            return {"request": np.frombuffer(request.to_bytes(), np.uint8)}
        case _:
            return _smallest_inputs(MODELS[model])


def _smallest_inputs(spec: ModelSpec) -> Tensors:
    """Return zeros for every input of a network, with a length of 1 for every axis whose length is free."""
    batch = (1,) if spec.max_batch_size > 0 else ()
    return {
        tensor.name: np.zeros((*batch, *(n if isinstance(n, int) else 1 for n in tensor.shape)), tensor.dtype.numpy)
        for tensor in spec.inputs
    }
