"""What the environments of images are made with, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from .environment import make_tools, make_wheel


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the build has as ``/tools/venv``."""
    return make_tools(tmp_path_factory.mktemp("tools"))


@pytest.fixture(scope="session")
def wheel(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    return make_wheel(tools, tmp_path_factory.mktemp("wheel"))
