"""What the inference server serves and whether it answers, found out by canary requests.

Readiness is not asked: a model whose process was killed, or whose engine hangs, stays ready. A model that answers
anybody is alive, so a canary that waits behind real work raises no alarm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from medvl.contracts.errors import BackendUnavailable, CheckpointError, DeadlineExceeded, MedvlError
from medvl.contracts.models import MODELS, Kind
from medvl.orchestrator.audit import defect, log
from medvl.orchestrator.canary import Canary
from medvl.orchestrator.config import HealthPolicy
from medvl.orchestrator.triton import Served, Triton

OnChange = Callable[[bool], Awaitable[None]]

NEEDED = ("vision_encoder", "projector", "llm", "volume_segmenter")
"""The models behind every answer: those that are called, and the steps of ensembles that are. SAM2's networks are none
of them: where they have processes of their own, on a CPU, the segmenter runs their graphs itself (ADR 11)."""


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
        self._failure: Exception | None = None
        self._told: set[tuple[type[Exception], str]] = set()
        """What failed since everything answered: it is logged once."""

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
                await self._until_failure(await self._triton.served(self._policy.canary_timeout_s))
            except Exception as error:
                await self._note_failure(error)
            await asyncio.sleep(self._policy.canary_interval_s)

    async def _until_failure(self, served: Served) -> None:
        """Ask every model, each at its own pace, until one of them fails."""
        models = asked(served)
        silent = set(models)
        asking = {asyncio.create_task(self._failure_of(model, served, silent)): model for model in models}
        try:
            ended, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        first = ended.pop()
        await self._note_failure(first.result(), asking[first])

    async def _failure_of(self, model: str, served: Served, silent: set[str]) -> Exception:
        """Ask one model until it fails and return why; when no model is silent any more, what is served is told.

        A model is given up when it has left two canaries in a row unanswered, and anybody else, for as long as two may
        take: on a busy machine it may be this process that was late, and a full queue refuses canaries at once.
        """
        now = asyncio.get_running_loop().time
        timeout_s = self._timeout_s(model)
        canary = Canary(self._triton, served.checkpoint, timeout_s)
        heard_s = start_s = now()
        unanswered = 0
        while True:
            try:
                await canary.ask(model)
                heard_s, unanswered = now(), 0
            except DeadlineExceeded:
                if (answered_s := self._triton.last_answer_s(model)) > heard_s:
                    heard_s, unanswered = answered_s, 0
                unanswered += 1
                if unanswered >= 2 and now() - heard_s >= 2 * timeout_s:
                    return BackendUnavailable(f"The model {model} does not answer.")
            except Exception as error:
                return error
            if heard_s > start_s:
                silent.discard(model)
            silent -= {other for other in silent if self._triton.last_answer_s(other) > start_s}
            if not silent:
                await self._note_serving(served)
            await asyncio.sleep(self._policy.canary_interval_s)

    def _timeout_s(self, model: str) -> float:
        network = MODELS[model].kind is Kind.NETWORK
        return self._policy.network_timeout_s if network else self._policy.canary_timeout_s

    async def _note_serving(self, served: Served) -> None:
        if self._served is not None:
            return
        self._served, self._failure = served, None
        self._told.clear()
        log().info(
            "serving",
            checkpoint=served.checkpoint.name,
            trained=served.checkpoint.trained,
            triton_version=served.triton_version,
        )
        log().warning("health", serving=True, reason="")
        await self._on_change(True)

    async def _note_failure(self, failure: Exception, model: str = "") -> None:
        served, self._served, self._failure = self._served, None, failure
        if (told := (type(failure), model)) not in self._told:
            self._told.add(told)
            if isinstance(failure, MedvlError):
                log().warning("health", serving=False, reason=failure.reason, model=model)
            else:
                log().error("health", serving=False, model=model, **defect(failure))
        if served is not None:
            await self._on_change(False)


def asked(served: Served) -> tuple[str, ...]:
    """Return the models of :data:`NEEDED` that can die or hang alone.

    What TensorRT runs is part of the server, which reports each request that it refuses as an error.
    """
    return tuple(name for name in NEEDED if "tensorrt" not in served.backends[name])
