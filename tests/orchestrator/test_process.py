"""The orchestrator as a process: it says where it listens, and ends without losing what it works on."""

from __future__ import annotations

import asyncio
import json
import signal
import sys

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from medvl.contracts.checkpoint import Checkpoint
from medvl.orchestrator.server import SERVICE
from medvl.wire.metadata import UPLOAD_KEY
from medvl.wire.v1 import medvl_pb2 as pb
from medvl.wire.v1 import medvl_pb2_grpc as pb_grpc

from .conftest import Series, kinds
from .fake_triton import FakeTriton, TritonServer


async def line_with(process: asyncio.subprocess.Process, event: str) -> dict:
    while True:
        line = json.loads(await process.stderr.readline())
        if line["event"] == event:
            return line


async def test_sigterm_lets_requests_end(tmp_path, checkpoint: Checkpoint, series: Series):
    """A report that is being written when the signal comes is completed; the process then ends with status 0."""
    fake = FakeTriton(checkpoint)
    triton = TritonServer(fake)
    await triton.start()
    config = tmp_path / "orchestrator.json"
    config.write_text(json.dumps({"listen": "127.0.0.1:0", "triton": f"127.0.0.1:{triton.port}", "drain_s": 20}))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "medvl.orchestrator", "--config", str(config), stderr=asyncio.subprocess.PIPE
    )
    try:
        port = (await line_with(process, "listening"))["port"]
        await line_with(process, "health")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub, health = pb_grpc.MedVLStub(channel), health_pb2_grpc.HealthStub(channel)
            upload = stub.PutSeries()
            header, *chunks = series.messages()
            await upload.write(header)
            assert UPLOAD_KEY in dict(await upload.initial_metadata())
            for chunk in chunks:
                await upload.write(chunk)
            await upload.done_writing()
            await upload
            fake.language_end.close()
            report = aiter(stub.Report(pb.ReportRequest(series=series.digest)))
            events = [await anext(report)]
            await fake.language_end.held.wait()
            watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            process.send_signal(signal.SIGTERM)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            watch.cancel()
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await grpc_call_on_new_channel(port)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            fake.language_end.open()
            events += [e async for e in report]
        assert kinds(events)[-1] == "done"
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await triton.stop()


async def grpc_call_on_new_channel(port: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await pb_grpc.MedVLStub(channel).Describe(pb.DescribeRequest())
