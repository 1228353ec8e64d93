"""The processes of an engine end with the stub that started them, and nothing else does."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import psutil

SPAWN = "import os, subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], *sys.argv[2:], {}])"
STUB = SPAWN.format("str(os.getpid())")
ENGINE = SPAWN.format("'worker'")
WORKER = """
import os, sys
from medvl.serving.orphans import end_with
end_with(int(sys.argv[1]))
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def test_an_engine_does_not_outlive_a_killed_stub():
    """Killing the stub ends the worker that watches it and the engine between them."""
    argv = [sys.executable, "-c", STUB, ENGINE, WORKER]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as stub:
        assert stub.stdout is not None
        worker = psutil.Process(int(stub.stdout.readline()))
        engine = worker.parent()
        assert engine is not None
        stub.kill()
        _, alive = psutil.wait_procs([worker, engine], timeout=10)
    assert not alive


def test_children_that_ended_are_no_error():
    """Ending processes that are gone already is fine, and those that are there end."""
    script = textwrap.dedent(
        """
        import subprocess, sys
        from medvl.serving import orphans
        gone = subprocess.Popen([sys.executable, "-c", ""])
        there = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        found = orphans.children()
        gone.wait()
        orphans.kill(found, wait_s=10)
        assert there.poll() is not None or there.wait(1) is not None
        print(len(found))
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2"]
