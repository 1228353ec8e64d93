"""Triton is taken at its word only where the word keeps the contract."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest
import pytest_asyncio

from medvl.contracts.checkpoint import Checkpoint
from medvl.contracts.errors import BackendUnavailable, CheckpointError, DeadlineExceeded, InternalError
from medvl.contracts.models import MODELS
from medvl.contracts.quantisation import Quantisation
from medvl.orchestrator import encoding
from medvl.orchestrator.calls import Call
from medvl.orchestrator.canary import question
from medvl.orchestrator.triton import Triton
from medvl.wire.v1 import medvl_pb2 as pb

from .conftest import Series, System, collect
from .fake_triton import FakeTriton, TritonServer

QUANTISATION = Quantisation(
    method="compressed-tensors",
    format="int-quantized",
    weight_bits=8,
    dtype="bfloat16",
    files={"config.json": "1" * 64},
)


@pytest_asyncio.fixture
async def server(checkpoint: Checkpoint) -> AsyncIterator[tuple[FakeTriton, TritonServer]]:
    fake = FakeTriton(checkpoint)
    triton = TritonServer(fake)
    await triton.start()
    yield fake, triton
    await triton.stop()


async def test_the_checkpoint_is_learnt_from_the_server(server, checkpoint: Checkpoint):
    """The orchestrator has no checkpoint of its own that could differ from the served one."""
    async with Triton(f"127.0.0.1:{server[1].port}") as triton:
        served = await triton.served(timeout_s=5)
    assert served.checkpoint == checkpoint
    assert served.checkpoint.digest == checkpoint.digest
    assert served.triton_version == "2.51.0-fake"
    assert served.backends.keys() == MODELS.keys()


async def test_two_checkpoints_in_one_server_are_refused(server, checkpoint: Checkpoint):
    """A [SEG] state of one and a segmenter of another would give masks of nothing."""
    fake, running = server
    fake.checkpoints["llm"] = checkpoint.model_copy(update={"name": "other"})
    async with Triton(f"127.0.0.1:{running.port}") as triton:
        with pytest.raises(CheckpointError):
            await triton.served(timeout_s=5)


async def test_a_quantised_language_model_is_learnt_from_the_server(server):
    """Or that there is none; what nobody understands is not served as if nothing had been said."""
    fake, running = server
    async with Triton(f"127.0.0.1:{running.port}") as triton:
        assert (await triton.served(timeout_s=5)).quantisation is None
        fake.quantisation = QUANTISATION.model_dump_json()
        assert (await triton.served(timeout_s=5)).quantisation == QUANTISATION
        fake.quantisation = "{}"
        with pytest.raises(CheckpointError, match="does not say how it is quantised"):
            await triton.served(timeout_s=5)


async def test_a_server_that_is_not_there_is_unavailable(server):
    """Within the time that was given."""
    await server[1].stop()
    async with Triton(f"127.0.0.1:{server[1].port}") as triton:
        with pytest.raises(BackendUnavailable):
            await triton.served(timeout_s=5)


@pytest.mark.parametrize(("left_s", "kind"), [(5.0, BackendUnavailable), (0.01, DeadlineExceeded)])
async def test_a_request_that_could_not_be_written_is_no_defect(checkpoint: Checkpoint, left_s, kind, monkeypatch):
    """gRPC calls it an internal error, whether the connection broke or the deadline passed meanwhile."""

    async def broken(*_, **__):
        await asyncio.sleep(0.02)
        raise grpc.aio.AioRpcError(
            grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), details="Internal error from Core"
        )
        yield

    class Stream:
        def __aiter__(self):
            return broken()

        def cancel(self):
            pass

    async with Triton("127.0.0.1:1") as triton:
        monkeypatch.setattr(triton, "_stream", lambda *_, **__: Stream())
        call = Call("test", asyncio.get_running_loop().time() + left_s)
        with pytest.raises(kind):
            await anext(triton.stream("llm", question("llm", checkpoint), call))


async def test_slices_are_made_aside_one_series_at_a_time(server, checkpoint: Checkpoint):
    """So that other requests go on, and memory holds those of one; the next begins when they have been written."""
    fake, running = server
    made, go_on = asyncio.Queue[str](), threading.Event()
    loop, here = asyncio.get_running_loop(), threading.get_ident()

    async def send(name: str) -> None:
        def make() -> dict[str, np.ndarray]:
            assert threading.get_ident() != here
            loop.call_soon_threadsafe(made.put_nowait, name)
            go_on.wait(10)
            return {"slices": np.zeros((1, 32, 32), np.uint8)}

        call = Call(name, loop.time() + 10)
        async for _ in triton.stream("volume_segmenter", question("volume_segmenter", checkpoint), call, make):
            pass

    fake.never_resident = True
    fake.arrival.close()
    async with Triton(f"127.0.0.1:{running.port}") as triton, asyncio.TaskGroup() as group:
        for name in ("first", "second"):
            group.create_task(send(name))
        assert await made.get() == "first"
        await triton.served(timeout_s=5)
        assert made.empty()
        go_on.set()
        assert await made.get() == "second", "though the first has no answer yet"
        fake.arrival.open()


async def test_slices_that_have_been_written_are_not_kept(server, checkpoint: Checkpoint):
    """A segmentation takes minutes, and the series is in the store besides."""
    fake, running = server
    fake.never_resident = True
    fake.arrival.close()
    size_bytes = 2**23

    def make() -> dict[str, np.ndarray]:
        return {"slices": np.zeros((8, 2**10, 2**10), np.uint8)}

    def ours_bytes() -> int:
        ours = [tracemalloc.Filter(True, path) for path in (__file__, encoding.__file__)]
        return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(ours).traces)

    async with Triton(f"127.0.0.1:{running.port}") as triton:
        call = Call("test", asyncio.get_running_loop().time() + 10)
        responses = triton.stream("volume_segmenter", question("volume_segmenter", checkpoint), call, make)
        tracemalloc.start()
        try:
            answer = asyncio.ensure_future(anext(responses))
            await fake.arrival.held.wait()
            assert tracemalloc.get_traced_memory()[1] > size_bytes
            async with asyncio.timeout(10):
                while ours_bytes() > size_bytes / 8:  # noqa: ASYNC110 - memory has no events
                    await asyncio.sleep(0.01)
        finally:
            tracemalloc.stop()
        fake.arrival.open()
        await answer
        await responses.aclose()


async def test_a_tensor_that_breaks_its_specification_is_a_defect(system: System, series: Series):
    """It goes no further, and the caller reads nothing of it."""
    await system.put(series)
    system.fake.vision_dtype = np.float16
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(system.stub.Report(pb.ReportRequest(series=series.digest)))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert not system.fake.seen.prompts
    assert (await system.lines(2))[-1]["reason"] == InternalError.reason
