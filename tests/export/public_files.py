"""A few hundred thousand weights in the public layouts, as somebody has them on disk, and the specification of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from medvl.contracts.checkpoint import Checkpoint
from medvl.export.importing.options import Sources
from medvl.export.presets import MED3DVLM_7B, resolve_spec

from . import public_layouts as public

END, IMAGE, SEG = "<|endoftext|>", "<im_patch>", "[SEG]"
WORDS = 300
QWEN = public.Qwen(WORDS + 3, 64, 96, 2, 2, 1)
MODEL = public.med3dvlm(
    QWEN,
    public.dcformer((8, 8, 16, 16, 16), (1, 1, 2, 1, 1), (3, 3, 3, 3)),
    public.mixer((8, 16), (1, 16), ((6, 4), (3, 4)), 64),
)
HIERA = public.Hiera(32, (1, 2, 3, 1), 7, d=64, memory=16, layers=2, feedforward=128)
PROJECTOR = public.seg_projector(64, 64)

_SAM2 = {
    "image_encoder.trunk.embed_dim": 32,
    "image_encoder.trunk.stages": [1, 2, 3, 1],
    "image_encoder.trunk.global_att_blocks": [5],
    "image_encoder.neck.backbone_channel_list": [256, 128, 64, 32],
    "image_encoder.neck.d_model": 64,
    "image_encoder.neck.position_encoding.num_pos_feats": 64,
    "memory_attention.d_model": 64,
    "memory_attention.num_layers": 2,
    "memory_attention.layer.d_model": 64,
    "memory_attention.layer.dim_feedforward": 128,
    "memory_attention.layer.self_attention.embedding_dim": 64,
    "memory_attention.layer.cross_attention.embedding_dim": 64,
    "memory_attention.layer.cross_attention.kv_in_dim": 16,
    "memory_encoder.out_dim": 16,
    "memory_encoder.position_encoding.num_pos_feats": 16,
    "memory_encoder.in_dim": 64,
    "memory_encoder.mask_downsampler.embed_dim": 64,
    "memory_encoder.fuser.layer.dim": 64,
}


def spec(dtype: str = "float32") -> Checkpoint:
    """Return the shipped specification at the sizes of these files."""
    fields = resolve_spec(MED3DVLM_7B).model_dump()
    fields["name"] = "tiny"
    fields["vision"] |= {"grid": (32, 32, 32), "dims": (8, 8, 16, 16, 16), "depths": (1, 1, 2, 1, 1)}
    fields["vision"] |= {"kernel_sizes": (3, 3, 3, 3), "feature_stages": (2, 3)}
    fields["projector"] |= {"low_tokens": (6, 4), "high_tokens": (3, 4)}
    fields["language"] |= {"hidden_size": 64, "max_context": 256, "dtype": dtype}
    fields["language"] |= {"max_report_tokens": 16, "max_answer_tokens": 16}
    fields["segmentation"] |= {"side": 128, "overrides": _SAM2}
    return Checkpoint.model_validate(fields)


def tokenizer(added: tuple[str, ...] = (END, IMAGE, SEG)) -> Tokenizer:
    """Return a byte-level tokenizer with so many words, and special tokens behind them."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=WORDS, initial_alphabet=alphabet, show_progress=False)
    corpus = ["Please segment the liver in this image. It is.", "Describe the findings of the medical image."]
    made.train_from_iterator(corpus, trainer)
    made.add_special_tokens([AddedToken(token, normalized=False) for token in added])
    return made


def write_language(folder: Path, added: tuple[str, ...] = (END, IMAGE, SEG)) -> None:
    """Write configuration and tokenizer as transformers does."""
    made = tokenizer(added)
    end = made.token_to_id(END)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(QWEN.config() | {"eos_token_id": end, "bos_token_id": end}))
    generation = {"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.05, "eos_token_id": [end]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    made.save(str(folder / "tokenizer.json"))


def write_shards(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write two shards: one of the language model's own tensors, one with everything else."""
    own = {n: t for n, t in tensors.items() if n.startswith("model.layers.0.")}
    shards = {
        "model-00001-of-00002.safetensors": own,
        "model-00002-of-00002.safetensors": {n: t for n, t in tensors.items() if n not in own},
    }
    for file, held in shards.items():
        save_file(held, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_all(folder: Path) -> Sources:
    """Write Med3DVLM in shards, MedSAM2 as a pickle with a state dict in it, and a [SEG] projector."""
    model = folder / "Med3DVLM"
    write_language(model)
    write_shards(model, public.values(MODEL, 0))
    torch.save({"model": public.values(HIERA.layout(), 1)}, folder / "MedSAM2_latest.pt")
    torch.save(public.values(PROJECTOR, 2), folder / "text_hidden_fcs.pth")
    return Sources(model, folder / "MedSAM2_latest.pt", folder / "text_hidden_fcs.pth")
