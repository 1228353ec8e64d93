"""Pings find a dead peer, and end no connection that lives."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from medvl.wire.keepalive import CLIENT_OPTIONS, SERVER_OPTIONS


def faster(options):
    """The same options with twenty times as many pings: gRPC sends no more than one a second."""
    return [(name, value // 20 if name.endswith("_ms") else value) for name, value in options]


def test_a_server_permits_what_a_client_sends():
    """None of four pings in a call that waits is one too many; the second of these would end the connection."""
    checks = health.HealthServicer()
    server = grpc.server(ThreadPoolExecutor(2), options=[*faster(SERVER_OPTIONS), ("grpc.http2.max_ping_strikes", 1)])
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=faster(CLIENT_OPTIONS)) as channel:
        told = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
        assert next(told).status == health_pb2.HealthCheckResponse.SERVING
        threading.Timer(5.0, checks.set, ("", health_pb2.HealthCheckResponse.NOT_SERVING)).start()
        assert next(told).status == health_pb2.HealthCheckResponse.NOT_SERVING
        told.cancel()
    server.stop(None).wait()
