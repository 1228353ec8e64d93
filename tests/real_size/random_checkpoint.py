"""The preset ``med3dvlm-7b`` with random weights: every network at its size, the language model cut to two layers."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from medvl.contracts.checkpoint import CHECKPOINT_FILE, LANGUAGE_FOLDER, Checkpoint
from medvl.contracts.manifest import files_of, sha256_of
from medvl.embedded.preset import enliven
from medvl.export.presets import MED3DVLM_7B, resolve_spec
from medvl.network.modules import Modules

VOCABULARY, WIDTH, INNER, HEADS, KV_HEADS, LAYERS = 152064, 3584, 18944, 28, 4, 2
"""Of Qwen2.5-7B's ``config.json``, which has 28 layers."""
END = "<|endoftext|>"


@dataclass(frozen=True)
class Size:
    """Which SAM2, and how large its slices are."""

    architecture: str
    side: int

    @property
    def name(self) -> str:
        """Short, for folders and tables."""
        return f"{self.architecture.removeprefix('sam2.1_hiera_')}-{self.side}"


SIZES = (Size("sam2.1_hiera_t", 512), Size("sam2.1_hiera_l", 512), Size("sam2.1_hiera_t", 1024))


def write_networks(folder: Path, size: Size, language: Path) -> Checkpoint:
    """Write a checkpoint folder whose language model is linked from a folder of :func:`write_language`."""
    fields = resolve_spec(MED3DVLM_7B).model_dump()
    fields |= {"name": f"random-{size.name}", "trained": False, "provenance": "Random weights from a seed; no data."}
    fields["segmentation"] |= {"architecture": size.architecture, "side": size.side}
    spec = Checkpoint.model_validate(fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        modules = Modules.build(spec)
        enliven(modules)
    for name, module in modules.parts.items():
        save_file({k: t.contiguous() for k, t in module.state_dict().items()}, folder / f"{name}.safetensors")
    (folder / LANGUAGE_FOLDER).mkdir()
    for name, path in files_of(language).items():
        os.link(path, folder / LANGUAGE_FOLDER / name)
    hashes = {name: sha256_of(path) for name, path in files_of(folder).items()}
    checkpoint = Checkpoint.model_validate(spec.model_dump() | {"files": hashes})
    (folder / CHECKPOINT_FILE).write_text(checkpoint.model_dump_json(indent=2) + "\n", "utf-8")
    return checkpoint


def write_language(folder: Path) -> None:
    """Write a transformers folder of the true width and vocabulary in bfloat16, shard by shard."""
    spec = resolve_spec(MED3DVLM_7B).language
    tokenizer = _tokenizer((END, spec.image_token, spec.seg_token))
    tokenizer.save(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id(END)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "torch_dtype": "bfloat16",
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "eos_token_id": end,
    }
    for name, fields in (("config", config), ("generation_config", {"do_sample": False, "eos_token_id": end})):
        (folder / f"{name}.json").write_text(json.dumps(fields, indent=2) + "\n", "utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END}) + "\n", "utf-8"
    )
    shapes = list(_shards())
    index: dict[str, str] = {}
    generator = torch.Generator().manual_seed(11)
    for number, shard in enumerate(shapes, 1):
        file = f"model-{number:05}-of-{len(shapes):05}.safetensors"
        save_file({name: _values(name, shape, generator) for name, shape in shard.items()}, folder / file)
        index |= dict.fromkeys(shard, file)
    text = json.dumps({"metadata": {}, "weight_map": index}, indent=2)
    (folder / "model.safetensors.index.json").write_text(text + "\n", "utf-8")


def _shards() -> list[dict[str, tuple[int, ...]]]:
    kv = WIDTH // HEADS * KV_HEADS
    shards: list[dict[str, tuple[int, ...]]] = [{"model.embed_tokens.weight": (VOCABULARY, WIDTH)}]
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        shard: dict[str, tuple[int, ...]] = {
            f"{layer}.mlp.gate_proj.weight": (INNER, WIDTH),
            f"{layer}.mlp.up_proj.weight": (INNER, WIDTH),
            f"{layer}.mlp.down_proj.weight": (WIDTH, INNER),
            f"{layer}.self_attn.o_proj.weight": (WIDTH, WIDTH),
            f"{layer}.input_layernorm.weight": (WIDTH,),
            f"{layer}.post_attention_layernorm.weight": (WIDTH,),
        }
        for name, rows in (("q", WIDTH), ("k", kv), ("v", kv)):
            shard |= {f"{layer}.self_attn.{name}_proj.weight": (rows, WIDTH)}
            shard |= {f"{layer}.self_attn.{name}_proj.bias": (rows,)}
        shards.append(shard)
    return [*shards, {"lm_head.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}]


def _values(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if name.endswith("norm.weight"):
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=generator)


def _tokenizer(special: tuple[str, ...]) -> Tokenizer:
    """Return a byte-level tokenizer with a token for every row of the embedding."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fill = VOCABULARY - len(alphabet) - len(special)
    words = {token: i for i, token in enumerate([*alphabet, *(f"w{i}\u0120" for i in range(fill))])}
    made = Tokenizer(models.BPE(vocab=words, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return made
