"""``medvl-export check`` names every mismatch between a folder and the contract."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from medvl.contracts.checkpoint import CHECKPOINT_FILE
from medvl.contracts.manifest import files_of, sha256_of
from medvl.export.check import mismatches

PART = "projector.safetensors"


@pytest.fixture
def folder(phantom_checkpoint, tmp_path):
    """A copy of the phantom checkpoint, to be broken."""
    return shutil.copytree(phantom_checkpoint, tmp_path / "checkpoint")


def edit_json(path, change):
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def sign(folder):
    """Bring the hashes up to date, so that only the damage itself is a mismatch."""
    hashes = {name: sha256_of(path) for name, path in files_of(folder).items() if name != CHECKPOINT_FILE}
    edit_json(folder / CHECKPOINT_FILE, lambda c: c.update(files=hashes))


def edit_tensors(folder, change, part=PART):
    tensors = load_file(folder / part)
    change(tensors)
    save_file(tensors, folder / part)
    sign(folder)


def first(tensors):
    return min(tensors)


def test_the_preset_holds_the_contract(phantom_checkpoint):
    """What the project writes itself has no mismatch."""
    assert mismatches(phantom_checkpoint) == []


def test_a_wrong_shape_is_named(folder):
    """Expected and found shapes stand in one line with the file and the tensor."""
    name = first(load_file(folder / PART))
    shape = load_file(folder / PART)[name].shape
    edit_tensors(folder, lambda t: t.update({name: np.zeros((*shape[:-1], shape[-1] + 1), np.float32)}))
    (line,) = mismatches(folder)
    assert line == f"{PART}: {name}: expected F32 {list(shape)}, found F32 {[*shape[:-1], shape[-1] + 1]}"


def test_a_wrong_dtype_is_named(folder):
    """A tensor of integers is not a weight."""
    name = first(load_file(folder / PART))
    edit_tensors(folder, lambda t: t.update({name: t[name].astype(np.int32)}))
    (line,) = mismatches(folder)
    assert line.startswith(f"{PART}: {name}: expected F32")
    assert "found I32" in line


def test_missing_and_extra_tensors_are_named(folder):
    """A renamed tensor is one that is missing and one that is too many."""
    name = first(load_file(folder / PART))
    edit_tensors(folder, lambda t: t.update({"stranger": t.pop(name)}))
    missing, extra = mismatches(folder)
    assert missing == f"{PART}: {name}: expected, but missing"
    assert extra == f"{PART}: stranger: found, but not expected"


def test_the_language_model_is_checked_too(folder):
    """Its weights are looked at tensor by tensor as well."""
    edit_tensors(folder, lambda t: t.pop(first(t)), part="llm/model.safetensors")
    (line,) = mismatches(folder)
    assert line.startswith("llm/model.safetensors: ")
    assert line.endswith("expected, but missing")


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda f: (f / PART).write_bytes(b"\x80\x04"), f"{PART}: expected safetensors, found a file that is not"),
        (lambda f: (f / PART).unlink(), f"{PART}: expected safetensors, but missing"),
        (
            lambda f: (f / "llm" / "config.json").write_text("{"),
            "llm/config.json: expected a transformers",
        ),
        (lambda f: (f / "llm" / "tokenizer.json").write_text("{}"), "llm/tokenizer.json: expected a tokenizer"),
        (
            lambda f: edit_json(f / "llm" / "config.json", lambda c: c.update(hidden_size=7)),
            "llm/config.json: hidden_size: expected",
        ),
        (
            lambda f: edit_json(f / "llm" / "config.json", lambda c: c.update(model_type="bert")),
            "llm/config.json: model_type: expected qwen2, found bert",
        ),
        (
            lambda f: edit_json(
                f / "llm" / "tokenizer.json",
                lambda t: t.update(added_tokens=[a for a in t["added_tokens"] if a["content"] != "[SEG]"]),
            ),
            "llm/tokenizer.json: expected the special token [SEG], found none of that name",
        ),
    ],
)
def test_a_damaged_file_is_named(folder, damage, line):
    """Each damage gives a line that says what was expected there."""
    damage(folder)
    sign(folder)
    assert [found for found in mismatches(folder) if found.startswith(line)]


def test_a_changed_file_is_named(folder):
    """One flipped bit is a wrong hash, and nothing else."""
    content = bytearray((folder / PART).read_bytes())
    content[-1] ^= 1
    (folder / PART).write_bytes(content)
    (line,) = mismatches(folder)
    assert line.startswith(f"{PART}: expected SHA-256 ")


def test_a_pickle_is_refused(folder):
    """Weights that run code are refused, listed or not."""
    (folder / "sam2.pt").write_bytes(b"\x80\x04N.")
    expected = ["sam2.pt: expected safetensors, found a pickle, which may run code when it is loaded"]
    assert mismatches(folder) == expected
    sign(folder)
    assert mismatches(folder) == expected


def test_an_unlisted_file_is_named(folder):
    """What no hash covers is not part of a checkpoint."""
    (folder / "notes.txt").touch()
    assert mismatches(folder) == [f"notes.txt: found, but not listed in {CHECKPOINT_FILE}"]


def test_an_unknown_field_is_named(folder):
    """A field that the contract does not know is refused before anything else is looked at."""
    edit_json(folder / CHECKPOINT_FILE, lambda c: c.update(colour="red"))
    assert mismatches(folder) == ["colour: Extra inputs are not permitted (found 'red')"]


def test_a_width_that_the_weights_deny_is_named(folder):
    """When the language model is said to be wider, every part that must fit it is named."""
    edit_json(folder / CHECKPOINT_FILE, lambda c: c["language"].update(hidden_size=2 * c["language"]["hidden_size"]))
    lines = mismatches(folder)
    for part in ("projector.safetensors", "seg_projector.safetensors", "llm/config.json"):
        assert any(line.startswith(part) for line in lines)
