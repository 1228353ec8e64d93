"""The phantom preset: what it says of itself is so, and a seed is a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from medvl.contracts.checkpoint import load_checkpoint
from medvl.contracts.manifest import files_of, sha256_of
from medvl.embedded.preset import write_phantom_preset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preset")
    write_phantom_preset(folder, seed=1)
    return folder


def test_the_same_seed_writes_the_same_bytes(folder: Path, tmp_path: Path):
    """And another seed other weights."""
    again, other = tmp_path / "again", tmp_path / "other"
    for path, seed in ((again, 1), (other, 2)):
        path.mkdir()
        write_phantom_preset(path, seed)
    digests = [{n: sha256_of(p) for n, p in files_of(f).items()} for f in (folder, again, other)]
    assert digests[0] == digests[1]
    assert digests[0].keys() == digests[2].keys()
    assert any(digests[0][name] != digests[2][name] for name in digests[0] if name.endswith(".safetensors"))


def test_it_says_that_nobody_trained_it(folder: Path):
    """Every result carries this, so random weights never pass for a model."""
    checkpoint = load_checkpoint(folder)
    assert not checkpoint.trained
    assert checkpoint.name == "phantom"


def test_it_fits_into_a_repository(folder: Path):
    """At most 48 MB, the limit for weights that are kept with the code."""
    assert sum(p.stat().st_size for p in files_of(folder).values()) <= 48_000_000
