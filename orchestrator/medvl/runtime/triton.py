"""One Triton server process on loopback, its models loaded one by one behind a key."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import SecretStr
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from medvl.contracts.errors import BackendUnavailable
from medvl.contracts.models import MODELS, Kind
from medvl.orchestrator.config import TritonKey
from medvl.runtime import shared_memory
from medvl.runtime.ports import LOOPBACK
from medvl.runtime.processes import Command, ManagedProcess
from medvl.runtime.triton_home import TritonHome

log = logging.getLogger(__name__)

RESTRICTED = "model-repository,model-config,shared-memory,statistics,trace,logging"
"""Protocols of Triton that only the holder of the key may use; health, metadata and inference stay open."""

POLL_S = 0.1
IDLE_GRACE_S = 4.0
"""A stopping server also waits for stubs that were killed, or of decoupled models that hang in their own end: once its
stubs have begun to end and no further one does, there is nothing left to wait for."""

_CHANNEL_OPTIONS = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]


def new_key() -> TritonKey:
    """Return a key for the restricted protocols that nobody can guess.

    Triton takes it on its command line alone, so `ps` shows it to every user of the machine, and who has it can load a
    model that runs code as the owner of the server: `medvl up` is for machines whose users are trusted.
    """
    return TritonKey(name="runtime", secret=SecretStr(secrets.token_hex(16)))


@dataclass(frozen=True, slots=True)
class TritonConfig:
    """How a server is started.

    Attributes
    ----------
    repository
        Folder with one sub-folder per model (``models`` of a built repository).
    grpc_port, metrics_port
        Ports on loopback.
    log_file
        Where the output of the server and of its models goes.
    config_name
        Which ``configs/<name>.pbtxt`` is taken where a model has one.
    models
        What to load, by name.
    key
        Key of the restricted protocols.
    shm_prefix
        Begins the name of every shared-memory region of this server.
    environment
        Variables that are added to the server's.
    startup_timeout_s
        Longest time from the start to a server that answers, models left out.
    load_timeout_s
        Longest time for loading one model.
    stub_timeout_s
        What Triton grants a Python model to start; importing vLLM takes long on a busy machine.
    exit_timeout_s
        Time that requests in flight get when the server stops.
    """

    repository: Path
    grpc_port: int
    metrics_port: int
    log_file: Path
    config_name: str = "cpu"
    models: tuple[str, ...] = tuple(MODELS)
    key: TritonKey = field(default_factory=new_key)
    shm_prefix: str = field(default_factory=shared_memory.new_prefix)
    environment: Mapping[str, str] = field(default_factory=dict)
    startup_timeout_s: float = 60.0
    load_timeout_s: float = 300.0
    stub_timeout_s: int = 240
    exit_timeout_s: int = 20

    def arguments(self) -> tuple[str, ...]:
        """Return the server's options."""
        return (
            f"--model-repository={self.repository}",
            "--model-control-mode=explicit",
            f"--model-config-name={self.config_name}",
            "--allow-http=false",
            f"--grpc-address={LOOPBACK}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-address={LOOPBACK}",
            f"--metrics-port={self.metrics_port}",
            f"--grpc-restricted-protocol={RESTRICTED}:{self.key.name}={self.key.secret.get_secret_value()}",
            f"--exit-timeout-secs={self.exit_timeout_s}",
            f"--backend-config=python,shm-region-prefix-name={self.shm_prefix}",
            f"--backend-config=python,stub-timeout-seconds={self.stub_timeout_s}",
            "--log-format=ISO8601",
        )


class TritonServer:
    """A Triton server; use it with ``async with``, or call :meth:`start` and :meth:`stop`."""

    def __init__(self, home: TritonHome, config: TritonConfig) -> None:
        self._home = home
        self.config = config
        self._process: ManagedProcess | None = None
        self._client: InferenceServerClient | None = None
        self._headers = {f"triton-grpc-protocol-{config.key.name}": config.key.secret.get_secret_value()}

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def endpoint(self) -> str:
        """``host:port`` of the gRPC service."""
        return f"{LOOPBACK}:{self.config.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """Where Prometheus reads Triton's own metrics."""
        return f"http://{LOOPBACK}:{self.config.metrics_port}/metrics"

    @property
    def process(self) -> ManagedProcess:
        """The running server."""
        assert self._process is not None, "the server has not been started"
        return self._process

    @property
    def pid(self) -> int | None:
        """Process id; None while the server is stopped."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the server and load its models.

        Raises
        ------
        SetupError
            When shared memory has no room.
        BackendUnavailable
            When the server or one of its models does not start; the last lines of the log follow the sentence.
        """
        shared_memory.sweep()
        shared_memory.check_room()
        environment = {**self._home.environment(), **self.config.environment}
        argv = (*self._home.arguments(), *self.config.arguments())
        self._process = await ManagedProcess.start(Command(argv, environment, self.config.log_file))
        self._client = InferenceServerClient(self.endpoint, channel_args=_CHANNEL_OPTIONS)
        try:
            await self._until_live()
            await self.load(self.config.models)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End the server, its stubs and what they started; requests in flight get the configured time."""
        if self._process is None:
            return
        await self.process.stop(self.config.exit_timeout_s + IDLE_GRACE_S, idle_grace_s=IDLE_GRACE_S)
        self._process = None
        await self._control.close()
        shared_memory.sweep()

    async def wait(self) -> int:
        """Wait until the server ends by itself and return its exit code."""
        return await self.process.wait()

    async def load(self, models: tuple[str, ...]) -> None:
        """Load models: those with a process at the same time, then the ensembles that lead to them.

        Raises
        ------
        BackendUnavailable
            When one of them cannot be loaded, or the server ends.
        """
        ensembles = tuple(name for name in models if MODELS[name].kind is Kind.ENSEMBLE)
        for together in (tuple(name for name in models if name not in ensembles), ensembles):
            await self._unless_it_ends(self._load_together(together))

    async def reload(self, model: str) -> None:
        """Take a model down and load it again: the only cure for a dead stub.

        Loading alone does nothing, since Triton believes that the model is there; its ensembles come back with it.

        Raises
        ------
        BackendUnavailable
            When it does not come back, or the server ends.
        """
        await self._unless_it_ends(self._reload(model))

    async def executions(self, model: str) -> int:
        """Return how often a model has run since it was loaded, whether well or not.

        Raises
        ------
        BackendUnavailable
            When the server does not say.
        """
        try:
            answer = await self._control.get_inference_statistics(model, headers=self._headers, client_timeout=5.0)
        except InferenceServerException:
            raise BackendUnavailable(f"Triton says nothing about the model {model}.") from None
        return sum(int(s.execution_count) + int(s.inference_stats.fail.count) for s in answer.model_stats)

    @property
    def _control(self) -> InferenceServerClient:
        assert self._client is not None, "the server has not been started"
        return self._client

    async def _until_live(self) -> None:
        try:
            async with asyncio.timeout(self.config.startup_timeout_s):
                await self._unless_it_ends(self._poll_live())
        except TimeoutError:
            raise BackendUnavailable(
                f"Triton did not answer within {self.config.startup_timeout_s:g} s; its log ends with:\n"
                f"{self.process.log_tail()}"
            ) from None

    async def _poll_live(self) -> None:
        while True:
            try:
                if await self._control.is_server_live(client_timeout=1.0):
                    return
            except InferenceServerException:
                pass
            await asyncio.sleep(POLL_S)

    async def _load_together(self, models: tuple[str, ...]) -> None:
        await asyncio.gather(*(self._load(name) for name in models))

    async def _load(self, model: str) -> None:
        try:
            async with asyncio.timeout(self.config.load_timeout_s):
                await self._control.load_model(model, headers=self._headers)
        except InferenceServerException as error:
            log.error("model %s failed to load: %s", model, error)
            raise BackendUnavailable(
                f"Triton could not load the model {model}; its log {self.config.log_file.name} ends with:\n"
                f"{self.process.log_tail()}"
            ) from None
        except TimeoutError:
            raise BackendUnavailable(
                f"The model {model} was not loaded within {self.config.load_timeout_s:g} s: "
                f"read {self.config.log_file.name}."
            ) from None
        log.info("model %s loaded", model)

    async def _reload(self, model: str) -> None:
        try:
            await self._control.unload_model(model, headers=self._headers, client_timeout=30.0)
        except InferenceServerException as error:
            raise BackendUnavailable(f"The model {model} cannot be taken down: {error.status()}.") from None
        await self._load(model)

    async def _unless_it_ends(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine, but stop at once when the server process ends."""
        task = asyncio.ensure_future(work)
        exit_code = asyncio.ensure_future(self.process.wait())
        try:
            await asyncio.wait((task, exit_code), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise BackendUnavailable(
                    f"Triton ended with exit code {exit_code.result()}; its log ends with:\n{self.process.log_tail()}"
                )
            await task
        finally:
            task.cancel()
            exit_code.cancel()
            await asyncio.gather(task, exit_code, return_exceptions=True)
