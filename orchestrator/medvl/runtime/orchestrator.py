"""The orchestrator as a child process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from medvl.contracts.errors import BackendUnavailable
from medvl.orchestrator.config import TritonKey
from medvl.runtime.folder import write_private
from medvl.runtime.ports import LOOPBACK
from medvl.runtime.processes import Command, ManagedProcess

POLL_S = 0.1
PING_TIMEOUT_S = 5.0
STOP_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class OrchestratorSettings:
    """How the orchestrator is started; ports are on loopback."""

    port: int
    metrics_port: int
    triton_endpoint: str
    triton_key: TritonKey
    config_file: Path
    """Written before each start; it holds the key, so only this user may read it."""
    log_file: Path
    startup_timeout_s: float = 60.0

    def write(self) -> None:
        """Write the configuration that :class:`medvl.orchestrator.config.OrchestratorConfig` reads."""
        fields = {
            "listen": f"{LOOPBACK}:{self.port}",
            "triton": self.triton_endpoint,
            "triton_key": {"name": self.triton_key.name, "secret": self.triton_key.secret.get_secret_value()},
            "metrics_port": self.metrics_port,
            "drain_s": STOP_GRACE_S / 2,
        }
        write_private(self.config_file, json.dumps(fields, indent=2) + "\n")


class OrchestratorProcess:
    """The orchestrator; :meth:`start` returns when it serves."""

    def __init__(self, settings: OrchestratorSettings) -> None:
        self.settings = settings
        self._process: ManagedProcess | None = None

    @property
    def endpoint(self) -> str:
        """``host:port`` of the service."""
        return f"{LOOPBACK}:{self.settings.port}"

    @property
    def metrics_url(self) -> str:
        """Where Prometheus reads the orchestrator's metrics."""
        return f"http://{LOOPBACK}:{self.settings.metrics_port}/metrics"

    @property
    def process(self) -> ManagedProcess:
        """The running orchestrator."""
        assert self._process is not None, "the orchestrator has not been started"
        return self._process

    @property
    def pid(self) -> int | None:
        """Process id; None while the orchestrator is stopped."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the process and wait until it answers, whether or not the models behind it do.

        Raises
        ------
        BackendUnavailable
            When it ends, or does not answer in time; the last lines of its log follow the sentence.
        """
        self.settings.write()
        argv = (sys.executable, "-m", "medvl.orchestrator", "--config", str(self.settings.config_file))
        self._process = await ManagedProcess.start(Command(argv, os.environ, self.settings.log_file))
        try:
            await self._until(frozenset(health_pb2.HealthCheckResponse.ServingStatus.values()))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End the process; calls in flight get a few seconds."""
        if self._process is not None:
            await self._process.stop(STOP_GRACE_S)
            self._process = None

    async def until_serving(self) -> None:
        """Wait until every model answers through it.

        Raises
        ------
        BackendUnavailable
            When it ends, or does not serve in time; the last lines of its log follow the sentence.
        """
        await self._until(frozenset({health_pb2.HealthCheckResponse.SERVING}))

    async def answers(self) -> bool:
        """Return whether the health service answers at all, whatever it says of the models behind it."""
        return await self._health() is not None

    async def _until(self, statuses: frozenset[int]) -> None:
        now = asyncio.get_running_loop().time
        give_up_s = now() + self.settings.startup_timeout_s
        while now() < give_up_s:
            if await self._health() in statuses:
                return
            if await self.process.ended_within(POLL_S):
                break
        what = "does not serve" if self.process.running else f"ended with exit code {await self.process.wait()}"
        raise BackendUnavailable(f"The orchestrator {what}; its log ends with:\n{self.process.log_tail()}")

    async def _health(self) -> int | None:
        async with grpc.aio.insecure_channel(self.endpoint) as channel:
            try:
                answer = await health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(), timeout=PING_TIMEOUT_S
                )
            except grpc.aio.AioRpcError:
                return None
            return int(answer.status)
