"""The orchestrator as a server: service, health, metrics and the watch over the backend, begun and ended together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from medvl.contracts.errors import SetupError
from medvl.orchestrator.audit import log
from medvl.orchestrator.backend import Backend
from medvl.orchestrator.config import OrchestratorConfig
from medvl.orchestrator.metrics import Metrics
from medvl.orchestrator.service import MedVLService
from medvl.orchestrator.triton import Triton
from medvl.wire import keepalive
from medvl.wire.codec import MAX_CHUNK_BYTES
from medvl.wire.v1 import medvl_pb2_grpc as pb_grpc

SERVICE = "medvl.wire.v1.MedVL"
_SERVICES = ("", SERVICE)
"""Names under which the standard health service tells whether calls are answered: the whole server, the one service."""
ALIVE = "alive"
"""Name under which it serves whatever Triton does: an answer shows that the event loop turns."""

# grpc-stubs knows the synchronous health service only, and generated registration functions have no types.
_HealthServicer = cast("Any", health).aio.HealthServicer
_add_service = cast("Any", pb_grpc).add_MedVLServicer_to_server

_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 2 * MAX_CHUNK_BYTES),
    ("grpc.max_send_message_length", -1),
    *keepalive.SERVER_OPTIONS,
)


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers; ``metrics_port`` is None when metrics are not exposed."""

    port: int
    metrics_port: int | None


@asynccontextmanager
async def running(config: OrchestratorConfig) -> AsyncIterator[Running]:
    """Serve for the length of a ``with`` block, then drain: calls at work may end, new ones are refused.

    Raises
    ------
    SetupError
        When an address cannot be listened on.
    """
    metrics = Metrics()
    checks = _HealthServicer()

    async def tell(serving: bool) -> None:
        metrics.serving(serving)
        states = health_pb2.HealthCheckResponse
        for name in _SERVICES:
            await checks.set(name, states.SERVING if serving else states.NOT_SERVING)

    async with AsyncExitStack() as stack:
        triton = await stack.enter_async_context(Triton(config.triton, config.triton_key))
        backend = Backend(triton, config.health, tell)
        await tell(False)
        await checks.set(ALIVE, health_pb2.HealthCheckResponse.SERVING)
        metrics_port = _expose(metrics, config, stack)
        server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=config.admission.max_open_calls)
        _add_service(MedVLService(config, triton, backend, metrics), server)
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        port = _bind(server, config)
        await server.start()
        watch = asyncio.create_task(backend.watch())
        log().info("listening", address=config.host, port=port)
        try:
            yield Running(port, metrics_port)
        finally:
            watch.cancel()
            await checks.enter_graceful_shutdown()
            await server.stop(config.drain_s)
            log().info("stopped")


def _bind(server: grpc.aio.Server, config: OrchestratorConfig) -> int:
    try:
        return server.add_insecure_port(config.listen)
    except RuntimeError:
        raise SetupError(f"The address {config.listen} cannot be listened on: choose a free one.") from None


def _expose(metrics: Metrics, config: OrchestratorConfig, stack: AsyncExitStack) -> int | None:
    if config.metrics_port is None:
        return None
    try:
        server = metrics.expose(config.metrics_port, config.host)
    except OSError:
        raise SetupError(f"Port {config.metrics_port} is taken: choose a free one for the metrics.") from None
    stack.callback(server.server_close)
    stack.callback(server.shutdown)
    return server.server_port
