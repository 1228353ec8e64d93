"""A process that dies, hangs or grows is an error that says so, and is gone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from medvl.contracts.errors import BuildError
from medvl.export.bounded import Limits, run_bounded

GENEROUS = Limits(time_s=60.0, memory_gib=4.0)


def run(code, limits=GENEROUS):
    return run_bounded([sys.executable, "-c", code], "The engine of x", limits)


def test_the_peak_of_memory_is_told():
    """In bytes, of the process at its highest."""
    assert run("b = bytearray(200 << 20); b[::4096] = b'1' * len(b[::4096]); input_ = [0] * 10**7") > 200 << 20


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import ctypes; ctypes.string_at(0)", "The engine of x was killed by SIGSEGV"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "The engine of x was killed by SIGKILL, most often for want of memory.",
        ),
        ("import sys; print('a', file=sys.stderr); sys.exit('why')", "The engine of x failed with exit status 1: why"),
    ],
)
def test_a_death_is_told_by_its_cause(code, sentence):
    """A signal by name, a failure with its last line."""
    with pytest.raises(BuildError) as caught:
        run(code)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("work", "limits", "sentence"),
    [
        ("signal.pause()", Limits(time_s=1.0, memory_gib=4.0), "took longer than 1 s"),
        (
            "x = bytearray()\nwhile True: x += bytes(2**20)",
            Limits(time_s=60.0, memory_gib=0.25),
            "took more than 0.25 GiB",
        ),
    ],
)
def test_a_process_over_its_limit_is_stopped(tmp_path, work, limits, sentence):
    """The sentence names the limit, and nothing goes on running."""
    pid = tmp_path / "pid"
    with pytest.raises(BuildError, match=sentence):
        run(f"import os, pathlib, signal\npathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\n{work}", limits)
    assert not Path("/proc", pid.read_text()).exists()
