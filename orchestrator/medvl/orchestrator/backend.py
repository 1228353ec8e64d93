"""What the inference server serves and whether it answers, found out by canary requests.

Readiness is not asked: a model whose process was killed, or whose engine hangs, stays ready. A model that answers
anybody is alive, so a canary that waits behind real work raises no alarm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvl.contracts.checkpoint import Checkpoint
from medvl.contracts.errors import (
    BackendUnavailable,
    CheckpointError,
    DeadlineExceeded,
    InvalidRequest,
    MedvlError,
    Overloaded,
)
from medvl.contracts.messages import LanguageOptions, ObjectPrompts, PointPrompt, SegmenterRequest
from medvl.orchestrator import segmentation
from medvl.orchestrator.audit import defect, log
from medvl.orchestrator.calls import Call
from medvl.orchestrator.config import HealthPolicy
from medvl.orchestrator.triton import Served, Triton

OnChange = Callable[[bool], Awaitable[None]]

_UNKNOWN_SERIES = "0" * 64


class Backend:
    """Watches one Triton server.

    Parameters
    ----------
    triton
        The server.
    policy
        How often to ask, and how long to wait.
    on_change
        Told True when every canary is answered, False when one is not; each time that changes.
    """

    def __init__(self, triton: Triton, policy: HealthPolicy, on_change: OnChange) -> None:
        self._triton = triton
        self._policy = policy
        self._on_change = on_change
        self._served: Served | None = None
        self._serving = False
        self._failure: Exception | None = None

    def served(self) -> Served:
        """Return what is served.

        Raises
        ------
        BackendUnavailable
            While the server does not answer: what comes back may serve another checkpoint.
        CheckpointError
            While its models do not fit each other: waiting does not help.
        """
        if isinstance(self._failure, CheckpointError):
            raise CheckpointError(str(self._failure))
        if self._served is None:
            raise BackendUnavailable("The models are still loading, or do not answer: try again later.")
        return self._served

    def still(self, served: Served) -> None:
        """Refuse to go on with what was served before.

        Raises
        ------
        BackendUnavailable
            When something else is served now, or nothing.
        """
        if self._served != served:
            raise BackendUnavailable("The models do not answer, or are others by now: try again.")

    async def watch(self) -> None:
        """Ask for ever; cancel to end."""
        while True:
            try:
                await self._ask()
                await self._note()
            except Exception as error:
                await self._note(error)
            await asyncio.sleep(self._policy.canary_interval_s)

    async def _ask(self) -> None:
        if self._served is None:
            self._served = await self._triton.served(self._policy.canary_timeout_s)
            log().info(
                "serving",
                checkpoint=self._served.checkpoint.name,
                trained=self._served.checkpoint.trained,
                triton_version=self._served.triton_version,
            )
        checkpoint = self._served.checkpoint
        await asyncio.gather(
            self._canary("llm", _language_canary(checkpoint)),
            self._canary(segmentation.MODEL, _segmenter_canary(checkpoint)),
        )

    async def _canary(self, model: str, inputs: dict[str, NDArray[Any]]) -> None:
        start_s = asyncio.get_running_loop().time()
        call = Call("canary", start_s + self._policy.canary_timeout_s)
        try:
            async with (
                asyncio.timeout_at(call.deadline_s),
                aclosing(self._triton.stream(model, inputs, call)) as answer,
            ):
                await anext(answer)
        except (DeadlineExceeded, TimeoutError, StopAsyncIteration):
            if self._triton.last_answer_s(model) < start_s:
                raise BackendUnavailable(f"The model {model} does not answer.") from None
        except (InvalidRequest, Overloaded):
            # A refusal is an answer, too.
            return

    async def _note(self, failure: Exception | None = None) -> None:
        serving, changed = failure is None, type(failure) is not type(self._failure)
        self._failure = failure
        if changed or serving != self._serving:
            if failure is None or isinstance(failure, MedvlError):
                log().warning("health", serving=serving, reason=failure.reason if failure else "")
            else:
                log().error("health", serving=serving, **defect(failure))
        if not serving:
            self._served = None
        if serving != self._serving:
            self._serving = serving
            await self._on_change(serving)


def _language_canary(checkpoint: Checkpoint) -> dict[str, NDArray[Any]]:
    """Return a request for one token about a volume of zeros."""
    language = checkpoint.language
    return {
        "vision_tokens": np.zeros((checkpoint.vision_tokens, language.hidden_size), np.float32),
        "prompt": np.frombuffer(language.prompts.report.encode(), np.uint8),
        "options": np.frombuffer(LanguageOptions(max_tokens=1).to_bytes(), np.uint8),
    }


def _segmenter_canary(checkpoint: Checkpoint) -> dict[str, NDArray[Any]]:
    """Return a request about a series that nobody has: the segmenter says so without work."""
    window_hu = checkpoint.windows[checkpoint.segmentation.window]
    prompts = ObjectPrompts(object_id=0, points=(PointPrompt(slice=0, row=0.0, column=0.0),))
    request = SegmenterRequest(series=_UNKNOWN_SERIES, window_hu=window_hu, shape=(1, 1, 1), objects=(prompts,))
    return {"request": np.frombuffer(request.to_bytes(), np.uint8)}
