"""Series on disk and a client for the whole system: real Triton, real vLLM, real gRPC on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from medvl.client import Client
from medvl.embedded.files import write_phantom_series
from medvl.imaging.series import LoadedSeries, read_series
from medvl.runtime.system import EmbeddedSystem


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here drives the whole system."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def client(embedded_system: EmbeddedSystem) -> Iterator[Client]:
    """A client of the running system."""
    with Client(embedded_system.endpoint) as client:
        yield client


@pytest.fixture(scope="session")
def series_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The DICOM files of a small phantom."""
    folder = tmp_path_factory.mktemp("phantom") / "series"
    write_phantom_series(folder, seed=11, slices=24, side=128)
    return folder


@pytest.fixture(scope="session")
def series(series_folder: Path) -> LoadedSeries:
    """That phantom, read."""
    return read_series(series_folder)


@pytest.fixture(scope="session")
def other_series(tmp_path_factory: pytest.TempPathFactory) -> LoadedSeries:
    """Another patient's phantom."""
    folder = tmp_path_factory.mktemp("other") / "series"
    write_phantom_series(folder, seed=12, slices=24, side=128)
    return read_series(folder)
