"""A repository that differs from its manifest by a byte is refused."""

from __future__ import annotations

import pytest

from medvl.contracts.errors import CheckpointError
from medvl.contracts.manifest import MANIFEST_FILE, Manifest, record_files, verify_repository


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "models" / "llm" / "1").mkdir(parents=True)
    (tmp_path / "checkpoint.json").write_text("{}")
    (tmp_path / "models" / "llm" / "1" / "model.py").write_text("x = 1\n")
    Manifest(
        checkpoint="tiny",
        checkpoint_digest="0" * 64,
        trained=False,
        target="cpu",
        inputs="1" * 64,
        versions={"torch": "2.13.0"},
        files=record_files(tmp_path),
    ).write(tmp_path)
    return tmp_path


def test_an_untouched_repository_holds(repository):
    """The manifest comes back; what Python caches beside a model does not count."""
    (repository / "models" / "llm" / "1" / "__pycache__").mkdir()
    (repository / "models" / "llm" / "1" / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"\0")
    manifest = verify_repository(repository)
    assert manifest.files.keys() == {"checkpoint.json", "models/llm/1/model.py"}


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda r: (r / "checkpoint.json").write_text("[]"), "checkpoint.json: expected SHA-256"),
        (lambda r: (r / "checkpoint.json").write_text("{} "), "checkpoint.json: expected 2 bytes, found 3"),
        (lambda r: (r / "checkpoint.json").unlink(), "checkpoint.json: expected by the manifest, but missing"),
        (lambda r: (r / "models/llm/1/extra.py").touch(), "models/llm/1/extra.py: found, but not listed"),
        (lambda r: (r / MANIFEST_FILE).unlink(), "holds no manifest.json: build it with medvl-export build"),
        (lambda r: (r / MANIFEST_FILE).write_text("{"), "cannot be read: build the repository again"),
    ],
)
def test_damage_is_named(repository, damage, line):
    """A file changed, cut, removed or added is one line that names it."""
    damage(repository)
    with pytest.raises(CheckpointError) as caught:
        verify_repository(repository)
    assert line in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
