"""The whole system on this machine: Triton and the orchestrator, started in order, watched, stopped in order."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

from medvl.contracts.errors import BackendUnavailable
from medvl.contracts.manifest import MODELS_FOLDER, Manifest
from medvl.orchestrator.canary import WATCHED, Canary
from medvl.orchestrator.config import TritonKey
from medvl.orchestrator.triton import Triton
from medvl.runtime.folder import DataFolder, ProcessRecord, SystemState
from medvl.runtime.logs import log_to
from medvl.runtime.orchestrator import OrchestratorProcess, OrchestratorSettings
from medvl.runtime.ports import check_free, free_ports
from medvl.runtime.repairs import SupervisionPolicy
from medvl.runtime.repository import built_repository, proven_repository, serving_extras_missing
from medvl.runtime.supervisor import Supervisor
from medvl.runtime.triton import TritonConfig, TritonServer
from medvl.runtime.triton_home import install_triton
from medvl.runtime.triton_wheel import TRITON_VERSION
from medvl.runtime.watch import ModelWatch

log = logging.getLogger(__name__)

Progress = Callable[[str], None]

SERVING_MODULES = frozenset({"onnxruntime", "torch", "vllm"})
"""What the models import inside Triton; here they are only looked for, never imported."""

CHECKPOINT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class SystemOptions:
    """What to run.

    Attributes
    ----------
    checkpoint
        Preset or checkpoint folder to serve.
    repository
        A built repository to serve instead.
    port
        Port of the service on loopback; 0 takes a free one.
    triton_folder
        Where the Triton server is kept; None keeps it in the data folder.
    policy
        How the processes are watched.
    """

    checkpoint: str = "phantom"
    repository: Path | None = None
    port: int = 0
    triton_folder: Path | None = None
    policy: SupervisionPolicy = field(default_factory=SupervisionPolicy)


class EmbeddedSystem:
    """A running system; use it with ``async with``.

    Parameters
    ----------
    data_dir
        The folder that it owns; made when it is not there. One system at a time.
    options
        What to run.
    progress
        Gets one line for every step of the start.
    """

    def __init__(self, data_dir: Path, options: SystemOptions | None = None, progress: Progress = log.info) -> None:
        self._folder = DataFolder(data_dir.resolve())
        self._options = options or SystemOptions()
        self._progress = progress
        self._stack = AsyncExitStack()
        self._supervision: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress("stopping")
        await self._stack.aclose()

    @property
    def endpoint(self) -> str:
        """``host:port`` of the service ``medvl.wire.v1``."""
        return self._orchestrator.endpoint

    @property
    def metrics_url(self) -> str:
        """Where Prometheus reads the orchestrator's metrics."""
        return self._orchestrator.metrics_url

    @property
    def triton(self) -> TritonServer:
        """The Triton server."""
        return self._triton

    @property
    def triton_endpoint(self) -> str:
        """``host:port`` of Triton's gRPC."""
        return self._triton.endpoint

    @property
    def triton_key(self) -> TritonKey:
        """Key of Triton's restricted protocols."""
        return self._triton.config.key

    @property
    def state(self) -> SystemState:
        """Where everything is, as ``state.json`` says it."""
        pids = {"runtime": os.getpid(), "triton": self._triton.pid, "orchestrator": self._orchestrator.pid}
        records = {name: ProcessRecord.of(pid) for name, pid in pids.items() if pid is not None}
        return SystemState(
            endpoint=self.endpoint,
            triton_endpoint=self.triton_endpoint,
            metrics_url=self.metrics_url,
            triton_metrics_url=self._triton.metrics_url,
            checkpoint=self._manifest.checkpoint,
            repository=str(self._repository),
            versions={"medvl-sam2": version("medvl-sam2"), "triton": TRITON_VERSION},
            processes={name: record for name, record in records.items() if record is not None},
        )

    async def serve(self) -> None:
        """Stay until the system has failed for good.

        Raises
        ------
        BackendUnavailable
            When a process failed so often that it was given up; the sentence says which.
        """
        assert self._supervision is not None
        await asyncio.shield(self._supervision)

    async def _start(self) -> None:
        missing = frozenset(name for name in SERVING_MODULES if importlib.util.find_spec(name) is None)
        if missing:
            raise serving_extras_missing(missing)
        if self._options.port:
            check_free(self._options.port)
        self._folder.prepare()
        self._stack.enter_context(self._folder.locked())
        self._stack.enter_context(log_to(self._folder.log_file("runtime")))
        await asyncio.to_thread(self._folder.end_leftovers)
        self._repository, self._manifest = await self._find_repository()
        await self._start_triton()
        await self._start_orchestrator()
        self._publish()
        self._stack.callback(self._folder.forget_state)
        await self._supervise()

    async def _find_repository(self) -> tuple[Path, Manifest]:
        repository = self._options.repository
        if repository is None:
            self._progress(f"preparing the repository of {Path(self._options.checkpoint).name}")
            log_file = self._folder.log_file("export")
            repository = await built_repository(self._options.checkpoint, self._folder.repositories, log_file)
        repository = repository.resolve()
        return repository, await proven_repository(repository)

    async def _start_triton(self) -> None:
        self._progress(f"starting Triton {TRITON_VERSION}")
        home = await asyncio.to_thread(install_triton, self._options.triton_folder or self._folder.runtime)
        grpc_port, metrics_port = free_ports(2)
        config = TritonConfig(
            repository=self._repository / MODELS_FOLDER,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            log_file=self._folder.log_file("triton"),
        )
        self._triton = await self._stack.enter_async_context(TritonServer(home, config))

    async def _start_orchestrator(self) -> None:
        self._progress("starting the orchestrator")
        port, metrics_port = free_ports(2)
        settings = OrchestratorSettings(
            port=self._options.port or port,
            metrics_port=metrics_port,
            triton_endpoint=self.triton_endpoint,
            triton_key=self.triton_key,
            config_file=self._folder.runtime / "orchestrator.json",
            log_file=self._folder.log_file("orchestrator"),
        )
        self._orchestrator = OrchestratorProcess(settings)
        self._stack.push_async_callback(self._orchestrator.stop)
        await self._orchestrator.start()
        await self._orchestrator.until_serving()

    async def _supervise(self) -> None:
        client = await self._stack.enter_async_context(Triton(self.triton_endpoint, self.triton_key))
        served = await client.served(CHECKPOINT_TIMEOUT_S)
        policy = self._options.policy
        canary = Canary(client, served.checkpoint, policy.probe_timeout_s)
        watch = ModelWatch(WATCHED, canary, self._triton, policy.stall_s, asyncio.get_running_loop().time)
        supervisor = Supervisor(self._triton, self._orchestrator, watch, policy, self._publish)
        self._supervision = asyncio.create_task(supervisor.run(), name="supervision")
        self._stack.push_async_callback(_end, self._supervision)

    def _publish(self) -> None:
        self._folder.write_state(self.state)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError, BackendUnavailable):
        await task
