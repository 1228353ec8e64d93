"""Fixtures that every area of the suite shares."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings

from medvl.contracts.paths import data_folder
from medvl.export.presets import PHANTOM, resolve_checkpoint
from medvl.runtime.system import EmbeddedSystem, SystemOptions
from medvl.runtime.triton import TritonServer
from medvl.runtime.triton_home import TritonHome, install_triton

ROOT = Path(__file__).parents[1]

T = TypeVar("T")

# On a busy machine a test takes as long as it takes.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture
def own_logging() -> Iterator[None]:
    """For what sets up the logging of its process: others' is as it was afterwards, and so are Python's hooks."""
    root = logging.getLogger()
    handlers, level = [*root.handlers], root.level
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning
    with warnings.catch_warnings():
        yield
    root.handlers[:] = handlers
    root.setLevel(level)
    sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning = hooks


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of real CT series (``MEDVL_TEST_DATA``, default ``../shared/data``), or a skip that says why."""
    folder = Path(os.environ.get("MEDVL_TEST_DATA", ROOT.parent / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real CT data at {folder}: set MEDVL_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def triton_home() -> TritonHome:
    """The Triton server, fetched once into this user's data folder."""
    return install_triton(data_folder() / "runtime")


@pytest.fixture(scope="session")
def phantom_repository() -> Path:
    """The repository of the phantom checkpoint, built once for the code as it stands and kept under ``build/``."""
    repository = ROOT / "build" / "tests" / "phantom-repository"
    command = [sys.executable, "-m", "medvl.export.cli", "build", "--checkpoint", PHANTOM, "--out", str(repository)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"the phantom repository was not built: {done.stderr}")
    return repository


@pytest.fixture(scope="session")
def phantom_checkpoint(phantom_repository: Path) -> Path:
    """The folder of the checkpoint that :func:`phantom_repository` was built from; copy it to change it."""
    return resolve_checkpoint(PHANTOM)


@pytest.fixture(scope="session")
def embedded_system(phantom_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedSystem]:
    """The whole system on the phantom repository, watched on a loop of its own."""
    options = SystemOptions(repository=phantom_repository, triton_folder=data_folder() / "runtime")
    with in_background(EmbeddedSystem(tmp_path_factory.mktemp("system"), options)) as system:
        yield system


@pytest.fixture(scope="session")
def triton_server(embedded_system: EmbeddedSystem) -> TritonServer:
    """The Triton server of the system, for calls without the orchestrator; its key is ``config.key``."""
    return embedded_system.triton


@contextmanager
def in_background(system: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Run an asynchronous context manager on an event loop that keeps turning in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="background", daemon=True)
    thread.start()
    try:
        entered = asyncio.run_coroutine_threadsafe(system.__aenter__(), loop).result()
        try:
            yield entered
        finally:
            asyncio.run_coroutine_threadsafe(system.__aexit__(None, None, None), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
