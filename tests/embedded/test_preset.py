"""The phantom checkpoint: what it says of itself is so, and with random weights a seed is a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from medvl.contracts.checkpoint import CHECKPOINT_FILE, LANGUAGE_FOLDER, load_checkpoint
from medvl.contracts.manifest import files_of, sha256_of
from medvl.embedded.preset import phantom_checkpoint, write_untrained
from medvl.embedded.vocabulary import train_tokenizer
from medvl.export.check import mismatches
from medvl.export.presets import PRESETS

SHIPPED = PRESETS["phantom"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untrained")
    write_untrained(folder, seed=1)
    return folder


def test_the_same_seed_writes_the_same_bytes(folder: Path, tmp_path: Path):
    """And another seed other weights."""
    again, other = tmp_path / "again", tmp_path / "other"
    for path, seed in ((again, 1), (other, 2)):
        path.mkdir()
        write_untrained(path, seed)
    digests = [{n: sha256_of(p) for n, p in files_of(f).items()} for f in (folder, again, other)]
    assert digests[0] == digests[1]
    assert digests[0].keys() == digests[2].keys()
    assert any(digests[0][name] != digests[2][name] for name in digests[0] if name.endswith(".safetensors"))


def test_whoever_may_read_what_a_checkpoint_says_may_read_its_weights(folder: Path):
    """A server seldom runs as the user who has trained."""
    assert {path.stat().st_mode for path in files_of(folder).values()} == {(folder / CHECKPOINT_FILE).stat().st_mode}


def test_random_weights_never_pass_for_a_model(folder: Path):
    """Every result carries this."""
    assert not load_checkpoint(folder).trained
    assert load_checkpoint(SHIPPED).trained


def test_what_ships_keeps_the_contract():
    """To the hash of every file; with at most 48 MB, the limit for weights that are kept with the code."""
    assert mismatches(SHIPPED) == []
    assert sum(p.stat().st_size for p in files_of(SHIPPED).values()) <= 48_000_000


def test_what_ships_is_what_the_code_makes():
    """A change of the networks, the prompts or the grammar's words without new weights would go unseen otherwise."""
    shipped = load_checkpoint(SHIPPED)
    assert shipped == phantom_checkpoint(shipped.files, training=shipped.provenance)
    tokenizer = Tokenizer.from_file(str(SHIPPED / LANGUAGE_FOLDER / "tokenizer.json"))
    assert tokenizer.get_vocab() == train_tokenizer().get_vocab()
