"""vLLM answers as transformers does, or a line says where it does not."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medvl.export.check_engine import case_mismatch
from medvl.export.gates import LANGUAGE_GATES
from medvl.export.importing.importer import import_checkpoint
from medvl.export.quantise import write_int8
from medvl.serving.language_parity import LanguageCase, Spoken

from . import public_files

STATES = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)


def judge(served, *, dtype="float32", free=True):
    case = LanguageCase("Where?", free, served, Spoken("It is [SEG].", STATES))
    return case_mismatch(case, LANGUAGE_GATES[dtype])


def test_equal_answers_pass():
    """Rounding in the states is no difference."""
    assert judge(Spoken("It is [SEG].", STATES * np.float32(1 + 1e-6))) is None


def test_other_words_are_named():
    """In FP32 greedy words are equal; in half precision a free answer may choose others, a given one may not."""
    other = Spoken("It was.", STATES[:0])
    assert judge(other) == "expected 'It is [SEG].' as transformers says, found 'It was.'"
    assert judge(other, dtype="bfloat16") is None
    assert judge(other, dtype="bfloat16", free=False) == judge(other)


def test_other_states_are_named():
    """A state too few, the other [SEG]'s state, and values that are not finite."""
    text = "It is [SEG]."
    assert judge(Spoken(text, STATES[:1])) == "expected 2 states of [SEG], found 1"
    assert "expected a state of [SEG] of cosine 0.99999 to transformers', found " in judge(Spoken(text, STATES[::-1]))
    assert "of cosine 0.999 to transformers', found nan" in judge(Spoken(text, STATES * np.nan), dtype="float16")


def check(folder, *options):
    command = [sys.executable, "-m", "medvl.export.cli", "check", "--vllm", str(folder), *map(str, options)]
    environment = os.environ | {"MEDVL_LLM_KV_CACHE_BYTES": str(64 * 2**20)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_vllm_answers_as_transformers_on_the_phantom_checkpoint(phantom_checkpoint):
    """Greedy words and the states of [SEG], free and forced, from the weights that ship."""
    done = check(phantom_checkpoint)
    assert (done.returncode, done.stdout) == (0, f"{phantom_checkpoint} holds the contract\n"), done.stderr


@pytest.mark.e2e
@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_vllm_answers_from_int8(phantom_checkpoint, tmp_path):
    """A quarter of the linear layers' bytes, the same words of a given answer, states of [SEG] behind a gate."""
    quantised = tmp_path / "int8"
    quantised.mkdir()
    write_int8(phantom_checkpoint, quantised)
    tensors = load_file(quantised / "model.safetensors")
    linear = [name for name in tensors if name.endswith("_proj.weight")]
    assert len(linear) == 6 * 7
    assert all(tensors[name].dtype == torch.int8 for name in linear)
    done = check(phantom_checkpoint, "--quantised", quantised)
    assert (done.returncode, done.stdout) == (0, f"{phantom_checkpoint} holds the contract\n"), done.stderr


@pytest.mark.e2e
@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_vllm_loads_what_an_import_wrote(tmp_path):
    """Shards, tokenizer and generation defaults of an imported folder, with Med3DVLM's splice, in vLLM."""
    sources = public_files.write_all(tmp_path / "disk")
    shard = sources.med3dvlm / "model-00002-of-00002.safetensors"
    tensors = load_file(shard)
    tensors["lm_head.weight"][public_files.WORDS + 2] *= 4  # says [SEG] often
    save_file(tensors, shard)
    result = import_checkpoint(sources, public_files.spec(), tmp_path / "out", lambda _: None)
    done = check(result.folder)
    assert (done.returncode, done.stdout) == (0, f"{result.folder} holds the contract\n"), done.stderr
