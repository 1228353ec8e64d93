"""A language model of a few hundred thousand weights that often says [SEG], and what it should answer.

The oracle is transformers' own model, run token by token: nothing of the served path is in it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from medvl.contracts import pbtxt
from medvl.contracts.checkpoint import LANGUAGE_FOLDER, Checkpoint, parse_checkpoint
from medvl.contracts.models import MODELS

EOS, IMAGE, SEG = "<|endoftext|>", "<image>", "[SEG]"
TOKENS, WIDTH, CONTEXT = 24, 64, 2048
TEMPLATE = "Sure, it is [SEG]."
CORPUS = ["The liver shows a lesion of 23 mm.", "Sure, it is there.", "Größe der Läsion in 肝臓?"] * 20


def checkpoint(seg_state: str, splice: str) -> Checkpoint:
    """Return a checkpoint whose language part is real."""
    prompts = {
        "report": "Describe the findings.",
        "ask": "{question}",
        "segment_label": "{label}",
        "segment_text": "{text}",
        "segment_answer": TEMPLATE,
    }
    language = {
        "hidden_size": WIDTH,
        "max_context": CONTEXT,
        "dtype": "float32",
        "image_token": IMAGE,
        "seg_token": SEG,
        "splice": splice,
        "seg_state": seg_state,
        "max_report_tokens": 64,
        "max_answer_tokens": 64,
        "prompts": prompts,
    }
    vision = {
        "architecture": "dcformer",
        "grid": (16, 16, 16),
        "window": "body",
        "dims": (16,) * 5,
        "depths": (1,) * 5,
        "kernel_sizes": (3,) * 4,
        "feature_stages": (3, 4),
    }
    segmentation = {
        "architecture": "sam2.1_hiera_t",
        "side": 256,
        "fit": "pad",
        "window": "body",
        "max_conditioning_slices": 4,
        "stop_after_absent": 3,
        "key_slices": {"max_slices": 1, "min_gap": 1, "min_score": 0.5},
    }
    fields = {
        "format": 1,
        "name": "tiny",
        "trained": False,
        "licence": "none",
        "provenance": "random",
        "intended_use": "tests",
        "windows": {"body": (-160.0, 240.0)},
        "vision": vision,
        "projector": {"architecture": "mixer", "low_tokens": (16,), "high_tokens": (8,), "mlp_depth": 1},
        "language": language,
        "segmentation": segmentation,
        "labels": [{"name": "liver"}],
        "files": {},
    }
    return parse_checkpoint(json.dumps(fields))


def write_language_model(folder: Path) -> None:
    """Write a transformers folder with seeded random weights."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=[EOS, IMAGE, SEG], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS).save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=320,
        hidden_size=WIDTH,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=0,
        tie_word_embeddings=False,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).float().eval()
    with torch.no_grad():
        model.lm_head.weight[tokenizer.token_to_id(SEG)] *= 4
    model.save_pretrained(folder)


def write_model(models_folder: Path, entry_point: Path, spec: Checkpoint) -> None:
    """Write the folder of the Triton model ``llm``."""
    version = models_folder / "llm" / "1"
    version.mkdir(parents=True)
    write_language_model(version / LANGUAGE_FOLDER)
    shutil.copyfile(entry_point, version / "model.py")
    text = pbtxt.render(MODELS["llm"], pbtxt.Profile.CPU, spec.model_dump_json())
    (models_folder / "llm" / "config.pbtxt").write_text(text, "utf-8")


@dataclass(frozen=True)
class Expected:
    """What the oracle says."""

    text: str
    states: np.ndarray
    """FP32 [n, H], one for each [SEG] that is not the last token of an answer that ran out of tokens."""
    starts: list[int]
    """Code points of the text before each of them."""
    finish_reason: str
    completion_tokens: int


class Oracle:
    """Answers as transformers does."""

    def __init__(self, folder: Path, spec: Checkpoint) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._language = spec.language
        self._seg = self._tokenizer.token_to_id(SEG)

    def free(self, prompt: str, vision: np.ndarray, max_tokens: int) -> Expected:
        """Decode greedily."""
        return self._decode(prompt, vision, max_tokens, None)

    def forced(self, prompt: str, vision: np.ndarray, template: str) -> Expected:
        """Read an answer that is given."""
        tokens = self._tokenizer.encode(template, add_special_tokens=False).ids
        return self._decode(prompt, vision, len(tokens) + 1, [*tokens, 0])

    @torch.inference_mode()
    def _decode(self, prompt: str, vision: np.ndarray, max_tokens: int, forced: list[int] | None) -> Expected:
        steps, out, states, starts = self._prompt(prompt, vision), [], [], []
        past, previous, reason = None, None, "length"
        for i in range(max_tokens):
            output = self._model.model(inputs_embeds=steps, past_key_values=past, use_cache=True)
            past, state = output.past_key_values, output.last_hidden_state[0, -1]
            if out and out[-1] == self._seg:
                states.append(state if self._language.seg_state == "at" else previous)
                starts.append(len(self._tokenizer.decode(out[:-1], skip_special_tokens=False)))
            token = int(self._model.lm_head(state).argmax()) if forced is None else forced[i]
            previous = state
            if token == 0:
                reason = "stop"
                break
            out.append(token)
            steps = self._embed([token])
        stacked = torch.stack(states).numpy() if states else np.zeros((0, WIDTH), np.float32)
        text = self._tokenizer.decode(out, skip_special_tokens=False)
        return Expected(text, stacked, starts, reason, len(out) + (reason == "stop"))

    def _prompt(self, prompt: str, vision: np.ndarray) -> torch.Tensor:
        ids = self._tokenizer.encode(prompt, add_special_tokens=False).ids
        start = 0 if self._language.splice == "prefix" else 1
        parts = [self._embed(ids[:start]), torch.from_numpy(vision)[None], self._embed(ids[start:])]
        return torch.cat(parts, dim=1)

    def _embed(self, ids: list[int]) -> torch.Tensor:
        embedded: torch.Tensor = self._model.get_input_embeddings()(torch.tensor([ids], dtype=torch.long))
        return embedded
