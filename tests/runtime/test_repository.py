"""The repository to serve: built by `medvl-export` in a process of its own, or proven."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from medvl.contracts.errors import CheckpointError, SetupError
from medvl.contracts.manifest import MANIFEST_FILE, load_manifest
from medvl.runtime.repository import built_repository, proven_repository


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `medvl-export` beside the interpreter, to be filled in."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    path = tmp_path / "bin" / "medvl-export"
    path.parent.mkdir()
    return path


async def test_a_machine_without_the_builder_is_told_what_to_install(builder: Path, tmp_path: Path) -> None:
    """The models need extras that a PACS host does not have."""
    with pytest.raises(SetupError, match="run make setup in a checkout"):
        await built_repository("phantom", tmp_path, tmp_path / "export.log")


async def test_the_builder_is_asked_for_this_machine(tmp_path: Path) -> None:
    """A preset that nobody knows is refused by the builder, whose sentence is passed on."""
    with pytest.raises(CheckpointError, match=r"(?s)repository of no-such-preset was not built.*no-such-preset"):
        await built_repository("no-such-preset", tmp_path, tmp_path / "export.log")
    assert not (tmp_path / "no-such-preset").exists()


async def test_a_repository_for_another_machine_is_refused(stand_in_repository: Path) -> None:
    """Plans of a GPU cannot be served here; the sentence ends with the command that builds what can."""
    manifest = load_manifest(stand_in_repository).model_copy(update={"target": "tensorrt"})
    manifest.write(stand_in_repository)
    with pytest.raises(CheckpointError, match="built for tensorrt") as caught:
        await proven_repository(stand_in_repository)
    command = f"medvl-export build --checkpoint {manifest.checkpoint} --target cpu --out {stand_in_repository}"
    assert str(caught.value).endswith(command)


async def test_a_folder_without_a_manifest_is_refused(stand_in_repository: Path) -> None:
    """What was not built by the builder is not served."""
    (stand_in_repository / MANIFEST_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        await proven_repository(stand_in_repository)
