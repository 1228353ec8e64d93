"""The system on one machine: whatever dies comes back, and a stop leaves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from medvl.contracts.errors import BackendUnavailable, CheckpointError, SetupError
from medvl.contracts.paths import data_folder
from medvl.runtime import shared_memory
from medvl.runtime.folder import DataFolder
from medvl.runtime.repairs import SupervisionPolicy
from medvl.runtime.system import EmbeddedSystem, SystemOptions

pytestmark = pytest.mark.e2e

FAST = SupervisionPolicy(probe_interval_s=0.1, probe_timeout_s=5.0, first_delay_s=0.05, max_repairs=2)


@pytest.fixture
def options(stand_in_repository: Path) -> SystemOptions:
    return SystemOptions(repository=stand_in_repository, triton_folder=data_folder() / "runtime", policy=FAST)


@pytest.fixture
async def system(options: SystemOptions, tmp_path: Path) -> AsyncIterator[EmbeddedSystem]:
    async with EmbeddedSystem(tmp_path / "data", options) as system:
        yield system


async def serving(system: EmbeddedSystem) -> bool:
    async with grpc.aio.insecure_channel(system.endpoint) as channel:
        request = health_pb2.HealthCheckRequest()
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=5.0)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def until(happens: Callable[[], Awaitable[bool]]) -> None:
    """Ask until something has happened; half a minute is ten times what it takes."""
    async with asyncio.timeout(30):
        while True:
            if await happens():
                return
            await asyncio.sleep(0.05)


def stubs(system: EmbeddedSystem) -> dict[str, psutil.Process]:
    """Return the living stubs by instance name."""
    children = psutil.Process(system.triton.process.pid).children(recursive=True)
    found = {}
    for process in children:
        with suppress(psutil.Error):  # one that ends while it is looked at, or has ended
            match process.cmdline():  # empty while a process is a zombie
                case [*_, instance, _]:
                    found[instance] = process
    return found


async def test_a_started_system_serves_and_says_where(system: EmbeddedSystem, tmp_path: Path) -> None:
    """When the start returns, health is SERVING and ``state.json`` names the endpoint."""
    assert await serving(system)
    state = DataFolder(tmp_path / "data").read_state()
    assert state is not None
    assert state.endpoint == system.endpoint
    assert state.processes["triton"].find() is not None


@pytest.mark.parametrize("model", ["llm", "projector", "volume_segmenter"])
async def test_a_killed_model_comes_back(system: EmbeddedSystem, model: str) -> None:
    """The model is loaded again without a restart of the server, whose other models never stop."""
    instance, server = f"{model}_0_0", system.triton.process.pid
    killed = stubs(system)[instance]
    killed.kill()

    async def replaced() -> bool:
        stub = stubs(system).get(instance)
        return stub is not None and stub.pid != killed.pid and await serving(system)

    await until(replaced)
    assert system.triton.process.pid == server


async def test_a_killed_server_comes_back(system: EmbeddedSystem, tmp_path: Path) -> None:
    """The orchestrator keeps its endpoint and serves again, and the state names the new process."""
    killed = psutil.Process(system.triton.process.pid)
    killed.kill()

    async def replaced() -> bool:
        state = DataFolder(tmp_path / "data").read_state()
        return state is not None and state.processes["triton"].pid != killed.pid and await serving(system)

    await until(replaced)


async def test_a_killed_orchestrator_comes_back(system: EmbeddedSystem) -> None:
    """It serves at the same endpoint."""
    endpoint, killed = system.endpoint, psutil.Process(system.state.processes["orchestrator"].pid)
    killed.kill()
    await asyncio.to_thread(psutil.wait_procs, [killed], 10)
    await until(lambda: serving(system))
    assert system.endpoint == endpoint
    assert system.state.processes["orchestrator"].pid != killed.pid


async def test_a_state_can_be_told_while_a_process_is_gone(system: EmbeddedSystem, tmp_path: Path) -> None:
    """A process may end just as another one's new id is written; its own is written when it is started again."""
    ended = system._orchestrator.process
    ended.kill()
    await ended.wait()
    system._publish()
    state = DataFolder(tmp_path / "data").read_state()
    assert state is not None
    assert set(state.processes) == {"runtime", "triton"}

    async def replaced() -> bool:
        state = DataFolder(tmp_path / "data").read_state()
        return state is not None and "orchestrator" in state.processes

    await until(replaced)


async def test_shared_memory_that_is_short_for_a_moment_costs_a_repair(
    system: EmbeddedSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is tried again, and the orchestrator runs on."""
    killed, orchestrator = system.triton.process, system.state.processes["orchestrator"]
    check_room = shared_memory.check_room

    def short_once() -> None:
        monkeypatch.setattr(shared_memory, "check_room", check_room)
        raise SetupError("Shared memory is short.")

    monkeypatch.setattr(shared_memory, "check_room", short_once)
    killed.kill()

    async def replaced() -> bool:
        state = DataFolder(tmp_path / "data").read_state()
        return state is not None and state.processes["triton"].pid != killed.pid and await serving(system)

    await until(replaced)
    assert shared_memory.check_room is check_room
    assert system.state.processes["orchestrator"] == orchestrator


async def test_a_disk_that_takes_no_files_for_a_moment_costs_repairs(options: SystemOptions, tmp_path: Path) -> None:
    """The orchestrator is tried again until its configuration can be written; where the state cannot be, all go on."""
    data = tmp_path / "data"
    options = replace(options, policy=replace(FAST, max_repairs=10))
    async with EmbeddedSystem(data, options) as system:
        (data / ".state.json.draft").mkdir()
        blocked = data / "runtime" / ".orchestrator.json.draft"
        blocked.mkdir()
        killed, triton = psutil.Process(system.state.processes["orchestrator"].pid), system.triton.process.pid
        killed.kill()

        async def logged(words: str) -> bool:
            return words in (data / "logs" / "runtime.log").read_text()

        await until(lambda: logged("the orchestrator did not start"))
        blocked.rmdir()
        await until(lambda: logged("a restart could not be told"))
        await until(lambda: serving(system))
        assert system.triton.process.pid == triton


@pytest.mark.heavy
async def test_what_cannot_be_repaired_is_given_up(system: EmbeddedSystem, stand_in_repository: Path) -> None:
    """A model that is broken on disk is tried a few times, then the system ends with a sentence."""
    (stand_in_repository / "models" / "llm" / "1" / "model.py").write_text("raise RuntimeError('broken')\n")
    stubs(system)["llm_0_0"].kill()
    async with asyncio.timeout(60):
        with pytest.raises(BackendUnavailable, match=r"The Triton server failed 3 times .* is given up"):
            await system.serve()


async def test_a_stop_leaves_nothing(options: SystemOptions, tmp_path: Path) -> None:
    """No process, no shared memory, no state."""
    before = set(psutil.Process().children(recursive=True))
    async with EmbeddedSystem(tmp_path / "data", options) as system:
        children = set(psutil.Process().children(recursive=True)) - before
        prefix = system.triton.config.shm_prefix
    assert not [p for p in children if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not list(shared_memory.FOLDER.glob(f"{prefix}*"))
    assert DataFolder(tmp_path / "data").read_state() is None


async def test_one_data_folder_holds_one_system(system: EmbeddedSystem, options: SystemOptions, tmp_path: Path) -> None:
    """A second one is refused before it starts anything, and the first is not disturbed."""
    with pytest.raises(SetupError, match=rf"already runs on this data folder at {system.endpoint}"):
        async with EmbeddedSystem(tmp_path / "data", options):
            pass
    assert await serving(system)


async def test_a_repository_that_was_changed_is_refused(options: SystemOptions, tmp_path: Path) -> None:
    """The manifest is checked before anything is served; the error names the file."""
    assert options.repository is not None
    (options.repository / "models" / "llm" / "1" / "model.py").write_text("# changed\n")
    before = psutil.Process().children()
    with pytest.raises(CheckpointError, match=r"models/llm/1/model\.py"):
        async with EmbeddedSystem(tmp_path / "data", options):
            pass
    assert psutil.Process().children() == before
