"""Keeps Triton, its models and the orchestrator running: what dies or hangs is started again, a few times."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from medvl.contracts.errors import BackendUnavailable, SetupError
from medvl.runtime.orchestrator import OrchestratorProcess
from medvl.runtime.repairs import RepairBudget, SupervisionPolicy
from medvl.runtime.triton import TritonServer
from medvl.runtime.watch import Ailment, ModelWatch

log = logging.getLogger(__name__)

SILENT_ROUNDS = 3
"""An orchestrator that leaves this many health checks in a row unanswered is started again."""

START_FAILURES = (BackendUnavailable, SetupError, OSError)
"""What a start that fails raises: shared memory or a disk may be full for a moment, so each is tried again."""


class Supervisor:
    """Watches the two processes and repairs them.

    Parameters
    ----------
    triton, orchestrator
        Both started.
    watch
        Tells which models are ill.
    policy
        When and how often to repair.
    on_restart
        Called after each start of a process, whose id has changed; an OSError of it is logged.
    """

    def __init__(
        self,
        triton: TritonServer,
        orchestrator: OrchestratorProcess,
        watch: ModelWatch,
        policy: SupervisionPolicy,
        on_restart: Callable[[], None],
    ) -> None:
        self._triton = triton
        self._orchestrator = orchestrator
        self._watch = watch
        self._policy = policy
        self._on_restart = on_restart
        self._budget = RepairBudget(policy, asyncio.get_running_loop().time)

    async def run(self) -> None:
        """Watch for ever.

        Raises
        ------
        BackendUnavailable
            When something failed too often.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._tend_triton())
                group.create_task(self._tend_orchestrator())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _tend_triton(self) -> None:
        while True:
            if await self._triton.process.ended_within(self._policy.probe_interval_s):
                await self._restart_triton(f"ended with exit code {await self._triton.wait()}")
                continue
            ill = await self._watch.round()
            if ill and self._triton.process.running:
                await self._cure(ill)

    async def _cure(self, ill: Mapping[str, Ailment]) -> None:
        if Ailment.STALLED in ill.values():
            await self._restart_triton(f"hangs in {', '.join(sorted(ill))}")
            return
        for model in ill:
            try:
                await self._reload(model)
            except BackendUnavailable as error:
                await self._restart_triton(f"could not bring {model} back ({error})")
                return

    async def _reload(self, model: str) -> None:
        delay_s = self._budget.spend(f"The model {model}")
        log.warning("model %s is dead: loading it again in %.1f s", model, delay_s)
        await asyncio.sleep(delay_s)
        await self._triton.reload(model)
        self._watch.forget(model)

    async def _restart_triton(self, why: str) -> None:
        while True:
            delay_s = self._budget.spend("The Triton server")
            log.error("Triton %s: starting it again in %.1f s", why, delay_s)
            await self._triton.stop()
            await asyncio.sleep(delay_s)
            try:
                await self._triton.start()
            except START_FAILURES as error:
                why = f"did not start ({error})"
                continue
            self._watch.forget()
            self._tell()
            return

    async def _tend_orchestrator(self) -> None:
        silent = 0
        while True:
            if await self._orchestrator.process.ended_within(self._policy.probe_interval_s):
                silent = 0
                await self._restart_orchestrator(f"ended with exit code {await self._orchestrator.process.wait()}")
                continue
            silent = 0 if await self._orchestrator.answers() else silent + 1
            if silent >= SILENT_ROUNDS:
                silent = 0
                await self._restart_orchestrator("does not answer")

    async def _restart_orchestrator(self, why: str) -> None:
        while True:
            delay_s = self._budget.spend("The orchestrator")
            log.error("the orchestrator %s: starting it again in %.1f s", why, delay_s)
            await self._orchestrator.stop()
            await asyncio.sleep(delay_s)
            try:
                await self._orchestrator.start()
            except START_FAILURES as error:
                why = f"did not start ({error})"
                continue
            self._tell()
            return

    def _tell(self) -> None:
        try:
            self._on_restart()
        except OSError as error:
            log.error("a restart could not be told (%s): what is told names the process before", error.strerror)
