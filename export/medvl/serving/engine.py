"""vLLM's AsyncLLM on an asyncio loop in a thread of its own, with its processes accounted for."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from psutil import Process
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM

from medvl.serving import orphans
from medvl.serving.engine_settings import EngineSettings

log = logging.getLogger(__name__)

T = TypeVar("T")

STOP_GRACE_S = 8.0
"""vLLM's processes take about 4 s to end by themselves."""


class Engine:
    """A running AsyncLLM; its methods may be called from any thread."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._children: list[Process] = []
        self._llm: AsyncLLM | None = None

    @property
    def llm(self) -> AsyncLLM:
        """The engine, to be used on its own loop only."""
        assert self._llm is not None
        return self._llm

    def start(self) -> None:
        """Start the engine and wait until it can answer; whatever is raised, it is to be stopped."""
        self._thread.start()
        self.submit(self._start()).result()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the engine's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self) -> None:
        """End the engine, its processes and its thread."""
        try:
            self.submit(self._stop()).result(STOP_GRACE_S + 1.0)
        except TimeoutError:
            log.warning("the engine did not stop within %s s and is killed", STOP_GRACE_S)
        orphans.kill(self._children, wait_s=1.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(1.0)

    async def _start(self) -> None:
        before = set(orphans.children())
        try:
            self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**self._settings.arguments()))
            await self._llm.collective_rpc("seg_install")
            await self._llm.collective_rpc("end_with", args=(os.getpid(),))
        finally:
            self._children = [child for child in orphans.children() if child not in before]

    async def _stop(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if self._llm is not None:
            self._llm.shutdown(timeout=STOP_GRACE_S)
            self._llm = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
