"""One small request to every model, which only the model's own code can answer.

Readiness says nothing: a killed stub leaves its model ready and every inference failing for ever, and an engine can
hang while the server is well. Networks get the smallest tensors that fit their signature: a network of fixed size
refuses them in well under a millisecond, and that refusal comes from the process that would have run the graph. The
language model generates one token; the segmenter is asked for a series that it does not hold.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import numpy as np

from medvl.contracts.checkpoint import Checkpoint
from medvl.contracts.errors import BackendUnavailable, DeadlineExceeded, MedvlError, Overloaded
from medvl.contracts.messages import LanguageOptions, ObjectPrompts, PointPrompt, SegmenterRequest
from medvl.contracts.models import MODELS, Kind, ModelSpec
from medvl.orchestrator.calls import Call
from medvl.orchestrator.triton import Tensors, Triton

WATCHED = tuple(name for name, spec in MODELS.items() if spec.kind is not Kind.ENSEMBLE)
"""Models with a process of their own. An ensemble (``encode_volume``, ``segment_slice``) has none: it is routing inside
the server, as well as the steps that are asked here, and asking it would run an encoder once more for that."""

NO_SERIES = "0" * 64
"""A digest that no series has."""


class Canary:
    """Asks models for a sign of life.

    Parameters
    ----------
    triton
        The server.
    checkpoint
        What it serves: the sizes of a valid request to the language model.
    timeout_s
        How long an answer may take.
    """

    def __init__(self, triton: Triton, checkpoint: Checkpoint, timeout_s: float) -> None:
        self._triton = triton
        self._checkpoint = checkpoint
        self._timeout_s = timeout_s
        self._special: dict[str, Callable[[], Awaitable[None]]] = {
            "llm": self._generate_one_token,
            "volume_segmenter": self._ask_for_no_series,
        }

    async def ask(self, model: str) -> None:
        """Ask one model of :data:`WATCHED`.

        Raises
        ------
        BackendUnavailable
            When its process is gone.
        DeadlineExceeded
            When it does not answer in time: busy or hung.
        MedvlError
            What a language model that cannot generate one token says.
        """
        ask = self._special.get(model)
        await (ask() if ask else self._refuse_or_run(MODELS[model]))

    async def _refuse_or_run(self, spec: ModelSpec) -> None:
        try:
            await self._triton.infer(spec.name, smallest_inputs(spec), self._call())
        except (BackendUnavailable, DeadlineExceeded):
            raise
        except MedvlError:
            return

    async def _generate_one_token(self) -> None:
        tokens, width = self._checkpoint.vision_tokens, self._checkpoint.language.hidden_size
        inputs = {
            "vision_tokens": np.zeros((tokens, width), np.float32),
            "prompt": _bytes(self._checkpoint.language.prompts.report.encode()),
            "options": _bytes(LanguageOptions(max_tokens=1).to_bytes()),
        }
        try:
            await self._drain("llm", inputs)
        except Overloaded:
            return

    async def _ask_for_no_series(self) -> None:
        request = SegmenterRequest(
            series=NO_SERIES,
            window_hu=(0.0, 1.0),
            shape=(1, 1, 1),
            objects=(ObjectPrompts(object_id=1, points=(PointPrompt(slice=0, row=0.0, column=0.0),)),),
        )
        try:
            await self._drain("volume_segmenter", {"request": _bytes(request.to_bytes())})
        except (BackendUnavailable, DeadlineExceeded):
            raise
        except MedvlError:
            return

    async def _drain(self, model: str, inputs: Tensors) -> None:
        async with aclosing(self._triton.stream(model, inputs, self._call())) as responses:
            async for _ in responses:
                pass

    def _call(self) -> Call:
        return Call(secrets.token_hex(8), asyncio.get_running_loop().time() + self._timeout_s)


def smallest_inputs(spec: ModelSpec) -> Tensors:
    """Return zeros for every input of a model, with a length of 1 for every axis whose length is free."""
    batch = (1,) if spec.max_batch_size > 0 else ()
    return {
        tensor.name: np.zeros((*batch, *(n if isinstance(n, int) else 1 for n in tensor.shape)), tensor.dtype.numpy)
        for tensor in spec.inputs
    }


def _bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)
