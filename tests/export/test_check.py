"""``medvl-export check`` names every mismatch between a folder and the contract."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from medvl.contracts.checkpoint import CHECKPOINT_FILE, PROPOSALS_FILE
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


def test_a_rule_for_proposals_wants_weights(folder):
    """Without the rule nobody wants them."""
    (folder / PROPOSALS_FILE).unlink()
    sign(folder)
    (line,) = mismatches(folder)
    assert PROPOSALS_FILE in line
    edit_json(folder / CHECKPOINT_FILE, lambda c: c["segmentation"].pop("proposals"))
    assert mismatches(folder) == []


def test_the_language_model_is_checked_too(folder):
    """Its weights are looked at tensor by tensor as well."""
    edit_tensors(folder, lambda t: t.pop(first(t)), part="llm/model.safetensors")
    (line,) = mismatches(folder)
    assert line.startswith("llm/model.safetensors: ")
    assert line.endswith("expected, but missing")


def split(folder, change=lambda index: None):
    """Put the language model's weights into two shards, then change their index."""
    path = folder / "llm" / "model.safetensors"
    tensors = load_file(path)
    path.unlink()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / "llm" / file)
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    change(index)
    (folder / "llm" / "model.safetensors.index.json").write_text(json.dumps(index))
    sign(folder)
    return names


def test_a_language_model_in_shards_holds(folder):
    """Weights of seven billion parameters come in shards with an index."""
    split(folder)
    assert mismatches(folder) == []


def test_shards_that_contradict_their_index_are_named(folder):
    """A tensor in another shard than the index says, and one that no shard holds."""
    two = "model-00002-of-00002.safetensors"
    names = split(folder, lambda i: i["weight_map"].update({min(i["weight_map"]): two}))
    assert mismatches(folder) == [
        f"llm/model-00001-of-00002.safetensors: {names[0]}: found, but not there by model.safetensors.index.json"
    ]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda i: i.clear(), "expected a weight_map of tensors to files beside it, found none that can be read"),
        (
            lambda i: i["weight_map"].update({min(i["weight_map"]): "../sam2.safetensors"}),
            "expected a weight_map of tensors to files beside it, found none that can be read",
        ),
    ],
)
def test_an_index_that_is_none_is_named(folder, change, line):
    """The index is read, and leads nowhere else."""
    split(folder, change)
    assert mismatches(folder) == [f"llm/model.safetensors.index.json: {line}"]


def test_a_missing_shard_is_named(folder):
    """One line for the shard and none for each of its tensors."""
    split(folder)
    (folder / "llm" / "model-00002-of-00002.safetensors").unlink()
    sign(folder)
    assert mismatches(folder) == ["llm/model-00002-of-00002.safetensors: expected safetensors, but missing"]


def test_a_head_of_its_own_is_expected(folder):
    """Only where word embeddings are tied may a folder lack ``lm_head.weight``."""
    edit_json(folder / "llm" / "config.json", lambda c: c.update(tie_word_embeddings=False))
    sign(folder)
    assert mismatches(folder) == ["llm/model.safetensors: lm_head.weight: expected, but missing"]


def test_answers_have_room(folder):
    """A limit that the context cannot hold would refuse every request."""
    edit_json(folder / CHECKPOINT_FILE, lambda c: c["language"].update(max_report_tokens=1000))
    (line,) = mismatches(folder)
    assert line.startswith("checkpoint.json: language.max_report_tokens: expected at most 7")
    assert line.endswith("vision tokens and a prompt of 17 in a context of 1024, found 1000")


@pytest.mark.parametrize("end", [None, 10**6, []])
def test_answers_have_an_end(folder, end):
    """A model that no token ends would answer until its limit, every time."""
    edit_json(folder / "llm" / "generation_config.json", lambda g: g.update(eos_token_id=end))
    sign(folder)
    (line,) = mismatches(folder)
    assert line.startswith("llm/generation_config.json: eos_token_id: expected tokens below ")
    assert line.endswith(f"that end an answer, found {end}")


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
