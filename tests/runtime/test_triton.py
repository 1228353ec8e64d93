"""The Triton server as a child: started, healed, and ended without a trace."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import psutil
import pytest
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from medvl.contracts.errors import BackendUnavailable
from medvl.runtime import shared_memory
from medvl.runtime.triton import TritonConfig, TritonServer
from medvl.runtime.triton_home import TritonHome

pytestmark = pytest.mark.e2e

ECHO = "llm"


@pytest.fixture
async def server(triton_home: TritonHome, echo_config: TritonConfig) -> AsyncIterator[TritonServer]:
    async with TritonServer(triton_home, echo_config) as server:
        yield server


async def echo(server: TritonServer, values: list[int]) -> list[int]:
    async with InferenceServerClient(server.endpoint) as client:
        tensor = InferInput("x", [len(values)], "UINT8").set_data_from_numpy(np.array(values, np.uint8))
        answer = await client.infer(ECHO, [tensor], client_timeout=10.0)
        return answer.as_numpy("y").tolist()


def regions(server: TritonServer) -> list[str]:
    return [p.name for p in shared_memory.FOLDER.glob(f"{server.config.shm_prefix}*")]


async def test_it_answers_when_start_returns(server: TritonServer) -> None:
    """A started server has its models loaded and its metrics on loopback."""
    assert await echo(server, [1, 2, 3]) == [1, 2, 3]
    page = await asyncio.to_thread(urllib.request.urlopen, server.metrics_url)
    with page:
        assert b"nv_inference_request_success" in page.read()


async def test_nobody_unloads_models_without_the_key(server: TritonServer) -> None:
    """The model repository is closed to whoever does not hold the key."""
    async with InferenceServerClient(server.endpoint) as client:
        with pytest.raises(InferenceServerException, match="restricted"):
            await client.unload_model(ECHO)
    assert await echo(server, [7]) == [7]


async def test_a_killed_stub_comes_back_by_reload(server: TritonServer) -> None:
    """A model whose process was killed stays ready and fails for ever, until it is loaded again."""
    (stub,) = psutil.Process(server.process.pid).children()
    stub.kill()
    with pytest.raises(InferenceServerException, match="not healthy"):
        await echo(server, [1])
    await server.reload(ECHO)
    assert await echo(server, [1]) == [1]


async def test_runs_are_counted(server: TritonServer) -> None:
    """The count of runs moves with every request: progress that a watchdog can see."""
    assert await server.executions(ECHO) == 0
    await echo(server, [1])
    async with asyncio.timeout(20):  # Triton answers first and counts then
        while not await server.executions(ECHO):
            pass
    assert await server.executions(ECHO) == 1


async def test_stop_leaves_no_process_and_no_shared_memory(triton_home: TritonHome, echo_config: TritonConfig) -> None:
    """After a stop the server, its stubs and its regions are gone, even when a stub had been killed."""
    server = TritonServer(triton_home, echo_config)
    await server.start()
    family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    assert regions(server)
    family[-1].kill()
    await server.stop()
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not regions(server)


async def test_a_server_that_ends_while_starting_says_why(triton_home: TritonHome, echo_config: TritonConfig) -> None:
    """The error comes at once and holds the end of the log."""
    server = TritonServer(triton_home, replace(echo_config, repository=echo_config.repository / "none"))
    with pytest.raises(BackendUnavailable, match=r"(?s)ended with exit code 1.*failed to stat"):
        await server.start()


async def test_a_model_that_does_not_load_is_named(triton_home: TritonHome, echo_config: TritonConfig) -> None:
    """The error names the model and ends with what the server logged, and the server is gone."""
    (echo_config.repository / ECHO / "1" / "model.py").write_text("raise RuntimeError('no weights')\n")
    server = TritonServer(triton_home, echo_config)
    with pytest.raises(BackendUnavailable, match=rf"(?s)could not load the model {ECHO}.*no weights"):
        await server.start()
    assert not regions(server)


async def test_the_end_of_a_running_server_is_noticed(server: TritonServer) -> None:
    """Whoever waits for the server learns of its death and of the signal."""
    psutil.Process(server.process.pid).kill()
    assert await server.wait() == -9
    with pytest.raises(BackendUnavailable, match="ended with exit code -9"):
        await server.reload(ECHO)
