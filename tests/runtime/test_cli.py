"""``medvl up`` as a person or a script meets it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from medvl.runtime.triton_home import TritonHome

SETUP_EXIT = 7
USAGE_EXIT = 2
UP = (sys.executable, "-m", "medvl.client.cli", "up")


def up(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*UP, *arguments], capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def data(tmp_path: Path, triton_home: TritonHome) -> Path:
    """A data folder that has the Triton server already."""
    runtime = tmp_path / "data" / "runtime"
    runtime.mkdir(parents=True)
    content = triton_home.assembled.parent
    (runtime / content.name).symlink_to(content)
    return runtime.parent


@pytest.fixture
def running(data: Path, stand_in_repository: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, object]]]:
    """A system started by the command, and the document that it printed when it was ready."""
    command = [*UP, "--data", data, "--repository", stand_in_repository, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "}\n")
        yield process, json.loads("".join(lines) + "}")
        process.terminate()
        process.communicate()


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_clean_stop(
    running: tuple[subprocess.Popen[str], dict[str, object]], data: Path, number: signal.Signals
) -> None:
    """Ctrl-C and SIGTERM end every process, take the state away and exit with 0."""
    process, document = running
    family = psutil.Process(process.pid).children(recursive=True)
    assert {"endpoint", "triton_endpoint", "metrics_url", "versions"} <= document.keys()
    process.send_signal(number)
    assert process.wait(60) == 0
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not (data / "state.json").exists()
    assert {p.name for p in (data / "logs").iterdir()} == {"runtime.log", "triton.log", "orchestrator.log"}


@pytest.mark.e2e
def test_a_second_start_names_the_first(
    running: tuple[subprocess.Popen[str], dict[str, object]], data: Path, stand_in_repository: Path
) -> None:
    """One sentence says where the running system is, and how to stop it."""
    process, document = running
    second = up("--data", data, "--repository", stand_in_repository)
    assert second.returncode == SETUP_EXIT
    (line,) = second.stderr.splitlines()
    assert str(document["endpoint"]) in line
    assert f"kill {process.pid}" in line


def test_a_taken_port_is_said_at_once(tmp_path: Path) -> None:
    """Nothing is built or fetched first."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = up("--data", tmp_path, "--port", str(taken.getsockname()[1]))
    assert done.returncode == SETUP_EXIT
    (line,) = done.stderr.splitlines()
    assert "is in use: choose another with --port" in line


def test_a_failure_is_a_json_document_too(tmp_path: Path) -> None:
    """A script that asked for JSON reads there why nothing was started."""
    done = up("--data", tmp_path / "data", "--repository", tmp_path, "--json")
    assert done.returncode == SETUP_EXIT
    error = json.loads(done.stdout)["error"]
    assert error["reason"] == "CHECKPOINT_ERROR"
    assert done.stderr.endswith(f"medvl: {error['message']}\n")


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_an_impossible_port_is_refused(port: str) -> None:
    """It is a mistake in the command line."""
    assert up(f"--port={port}").returncode == USAGE_EXIT


def test_a_folder_that_is_no_repository_is_refused(tmp_path: Path) -> None:
    """The sentence says what to run."""
    done = up("--data", tmp_path / "data", "--repository", tmp_path)
    assert done.returncode == SETUP_EXIT
    assert "build it with medvl-export build" in done.stderr
