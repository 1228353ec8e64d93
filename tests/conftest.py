"""Fixtures that every area of the suite shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of real CT series (``MEDVL_TEST_DATA``, default ``../shared/data``), or a skip that says why."""
    folder = Path(os.environ.get("MEDVL_TEST_DATA", ROOT.parent / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real CT data at {folder}: set MEDVL_TEST_DATA")
    return folder
