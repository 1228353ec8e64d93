"""The committed stubs are those of the committed protocol."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = "medvl/wire/v1"


@pytest.mark.parametrize("stub", ["medvl_pb2.py", "medvl_pb2.pyi", "medvl_pb2_grpc.py"])
def test_stubs_are_what_the_protocol_generates(stub: str, tmp_path: Path) -> None:
    """`make proto` changes nothing."""
    subprocess.run([sys.executable, ROOT / "scripts" / "proto.py", tmp_path], check=True)
    assert (ROOT / "contracts" / FOLDER / stub).read_text() == (tmp_path / FOLDER / stub).read_text()
