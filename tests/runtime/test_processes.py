"""Child processes: their logs, and an end that leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import select
import sys
from pathlib import Path

import psutil

from medvl.runtime.processes import Command, ManagedProcess

READY = "import sys; print('ready', flush=True)\n"
FOREVER = "import signal\nwhile True: signal.pause()\n"
IGNORES_TERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
WITH_CHILD = f"import subprocess; subprocess.Popen([sys.executable, '-c', {FOREVER!r}])\n"


async def start(code: str, folder: Path) -> ManagedProcess:
    log_file = folder / "child.log"
    command = Command((sys.executable, "-c", f"import sys\n{code}"), os.environ, log_file)
    return await ManagedProcess.start(command)


async def ready(process: ManagedProcess) -> None:
    async with asyncio.timeout(20):
        while "ready" not in process.log_tail():
            assert not await process.ended_within(0.02), process.log_tail()


async def gone(process: psutil.Process) -> bool:
    """Wait for the end of a process that is no child of ours."""
    try:
        end = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    readable, _, _ = await asyncio.to_thread(select.select, [end], [], [], 20)
    os.close(end)
    return bool(readable)


async def test_the_exit_code_and_the_log_are_kept(tmp_path: Path) -> None:
    """Both streams of a child go to its log, and its exit code is told."""
    process = await start("print('out'); print('err', file=sys.stderr); sys.exit(3)", tmp_path)
    assert await process.wait() == 3
    assert set(process.log_tail().splitlines()) == {"out", "err"}


async def test_only_the_last_lines_are_told(tmp_path: Path) -> None:
    """An error shows the end of a log, not all of it."""
    process = await start("for i in range(5000): print(i)", tmp_path)
    await process.wait()
    assert process.log_tail(3) == "4997\n4998\n4999"


async def test_a_stopped_process_may_clean_up(tmp_path: Path) -> None:
    """A process is asked first."""
    cleanup = "import signal; signal.signal(signal.SIGTERM, lambda *_: (print('clean', flush=True), sys.exit(0)))\n"
    process = await start(cleanup + READY + FOREVER, tmp_path)
    await ready(process)
    await process.stop(20)
    assert await process.wait() == 0
    assert process.log_tail().endswith("clean")


async def test_a_process_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    """Stopping always ends."""
    process = await start(IGNORES_TERM + READY + FOREVER, tmp_path)
    await ready(process)
    await process.stop(0.1)
    assert await process.wait() == -9


async def test_orphans_end_with_the_process(tmp_path: Path) -> None:
    """What a child leaves behind in its group is ended, too."""
    process = await start(WITH_CHILD + READY + FOREVER, tmp_path)
    await ready(process)
    (orphan,) = psutil.Process(process.pid).children()
    await process.stop(20)
    assert await gone(orphan)


async def test_a_process_whose_family_hangs_is_not_waited_for(tmp_path: Path) -> None:
    """A server one of whose workers does not end, long after the others have, is killed with it."""
    mortal = "workers = [subprocess.Popen([sys.executable, '-c', FOREVER]) for _ in range(2)]\n"
    ends_one = "signal.signal(signal.SIGTERM, lambda *_: (workers[0].kill(), workers[0].wait()))\n"
    code = f"import signal, subprocess; FOREVER = {FOREVER!r}\n{mortal}{ends_one}"
    process = await start(code + READY + FOREVER, tmp_path)
    await ready(process)
    (_, hanging) = psutil.Process(process.pid).children()
    async with asyncio.timeout(20):
        await process.stop(3600, idle_grace_s=0.2)
    assert await gone(hanging)


async def test_a_process_without_children_is_not_waited_for(tmp_path: Path) -> None:
    """A server whose workers are gone has nothing left to finish."""
    process = await start(IGNORES_TERM + READY + FOREVER, tmp_path)
    await ready(process)
    async with asyncio.timeout(20):
        await process.stop(3600, idle_grace_s=0.0)
    assert await process.wait() == -9


async def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    """A parent that is killed cannot stop its children, and still they end."""
    script = (
        "import asyncio, os, pathlib, sys\n"
        "from medvl.runtime.processes import Command, ManagedProcess\n"
        "async def main():\n"
        f"    argv = (sys.executable, '-c', {FOREVER!r})\n"
        "    child = await ManagedProcess.start(Command(argv, os.environ, pathlib.Path(sys.argv[1])))\n"
        "    print(child.pid, flush=True)\n"
        "    await child.wait()\n"
        "asyncio.run(main())\n"
    )
    pipe = asyncio.subprocess.PIPE
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, tmp_path / "child.log", stdout=pipe)
    assert parent.stdout is not None
    child = psutil.Process(int(await parent.stdout.readline()))
    parent.kill()
    await parent.wait()
    assert await gone(child)


async def test_a_command_that_does_not_exist_ends_at_once(tmp_path: Path) -> None:
    """The log says what is missing."""
    process = await ManagedProcess.start(Command(("/nowhere/program",), os.environ, tmp_path / "child.log"))
    assert await process.wait() != 0
    assert "No such file" in process.log_tail()
