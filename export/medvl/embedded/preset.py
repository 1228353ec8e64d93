"""The ``phantom`` checkpoint: small enough for a CPU, with every part of the contract, and trained on phantoms.

What ships is the folder ``checkpoints/phantom`` beside this file; ``docs/training-log.md`` tells how it was trained.
Tests of mechanisms make the same networks with random weights, for which nothing has to be learnt.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from medvl.contracts.checkpoint import (
    CHECKPOINT_FILE,
    LANGUAGE_FOLDER,
    Checkpoint,
    LookSpec,
    ProposalRule,
    RegionRule,
    ToldSpec,
)
from medvl.contracts.manifest import files_of, sha256_of
from medvl.embedded.vocabulary import EOS, IMAGE, SEG, train_tokenizer
from medvl.network.modules import Modules

HIDDEN, LAYERS, CONTEXT = 256, 6, 1024
SIDE, CHANNELS, MEMORY = 256, 64, 16

WINDOW = "wide"
"""One window for everything, wide enough for air and contrast: all objects share one set of slice features."""

_SAM2 = {
    "image_encoder.trunk.embed_dim": 32,
    "image_encoder.trunk.num_heads": 1,
    "image_encoder.trunk.stages": [1, 2, 3, 1],
    "image_encoder.trunk.global_att_blocks": [5],
    "image_encoder.neck.backbone_channel_list": [256, 128, 64, 32],
    "image_encoder.neck.d_model": CHANNELS,
    "image_encoder.neck.position_encoding.num_pos_feats": CHANNELS,
    "memory_attention.d_model": CHANNELS,
    "memory_attention.num_layers": 2,
    "memory_attention.layer.d_model": CHANNELS,
    "memory_attention.layer.dim_feedforward": 256,
    "memory_attention.layer.self_attention.embedding_dim": CHANNELS,
    "memory_attention.layer.cross_attention.embedding_dim": CHANNELS,
    "memory_attention.layer.cross_attention.kv_in_dim": MEMORY,
    "memory_encoder.out_dim": MEMORY,
    "memory_encoder.position_encoding.num_pos_feats": MEMORY,
    "memory_encoder.in_dim": CHANNELS,
    "memory_encoder.mask_downsampler.embed_dim": CHANNELS,
    "memory_encoder.fuser.layer.dim": CHANNELS,
}

REGION_RULE = RegionRule(min_score=0.3, reach=1.6)
PROPOSAL_RULE = ProposalRule(min_score=0.1, min_share=0.05, regions=REGION_RULE)

_SOFT_TISSUE = (0.62, 0.9)
"""-132 to 260 HU in the window of the encoder."""
LOOKS = tuple(
    LookSpec(kinds=kinds, likely=likely, spots=spots, channels=channels, window=_SOFT_TISSUE)
    for kinds, likely, spots, channels in (
        ((0, 1), 96, 32, (32, 48, 64, 64, 96)),
        ((2, 3), 64, 0, (32, 48, 64, 64, 96)),
    )
)
"""For nodules, of which many are smaller than a cell, and cysts of kidneys, of which some differ from what lies about
them by a sixtieth of the window; kinds are numbers of :data:`medvl.training.regions.LESIONS`."""
TOLD = ToldSpec(
    kinds=(0, 1, 2, 3),
    unsure=0.5,
    sure=0.8,
    doubtful=(0.08, 0.4),
    taken_away=0.7,
    low_cells=(6, 5, 5),
    high_cells=(3, 5, 5),
)
"""Nodules and cysts of kidneys: those of the liver the language model reads well enough by itself."""

UNTRAINED = "Random weights from a seed, made by medvl.embedded.preset; no data."

_LABELS: tuple[tuple[str, str, str], ...] = (
    ("lung_left", "44029006", "Left lung structure"),
    ("lung_right", "3341006", "Right lung structure"),
    ("heart", "80891009", "Heart structure"),
    ("aorta", "15825003", "Aortic structure"),
    ("trachea", "44567001", "Tracheal structure"),
    ("liver", "10200004", "Liver structure"),
    ("spleen", "78961009", "Splenic structure"),
    ("kidney_left", "18639004", "Left kidney structure"),
    ("kidney_right", "9846003", "Right kidney structure"),
    ("gallbladder", "28231008", "Gallbladder structure"),
    ("stomach", "69695003", "Stomach structure"),
    ("urinary_bladder", "89837001", "Urinary bladder structure"),
    ("vertebral_column", "421060004", "Vertebral column structure"),
    ("rib", "113197003", "Bone structure of rib"),
)
"""Name, SNOMED CT code and meaning."""


def write_untrained(folder: Path, seed: int) -> None:
    """Write the checkpoint with random weights, byte for byte the same for the same seed and software.

    Parameters
    ----------
    folder
        An empty folder.
    seed
        Of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        modules = Modules.build(phantom_checkpoint({}))
        enliven(modules)
        write_checkpoint(folder, modules, phantom_language_model(train_tokenizer()))


def phantom_checkpoint(hashes: dict[str, str], training: str | None = None, *, proposals: bool = True) -> Checkpoint:
    """Return what ``checkpoint.json`` says.

    Parameters
    ----------
    hashes
        SHA-256 of the other files.
    training
        What the weights were trained with, for the provenance; None for random ones.
    proposals
        Whether words choose among proposals.
    """
    return Checkpoint.model_validate(_fields(hashes, training, proposals=proposals))


def phantom_language_model(tokenizer: Tokenizer) -> Qwen2ForCausalLM:
    """Build the language model in FP32, with the weights of its initialisation."""
    end = tokenizer.token_to_id(EOS)
    config = Qwen2Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
        initializer_range=0.08,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).float()


def write_checkpoint(folder: Path, modules: Modules, language: Qwen2ForCausalLM, training: str | None = None) -> None:
    """Write networks and language model as a checkpoint folder; trained weights as FP16, which halves them.

    Parameters
    ----------
    folder
        An empty folder.
    training
        As in :func:`phantom_checkpoint`.
    """
    dtype = torch.float32 if training is None else torch.float16
    for name, module in modules.parts.items():
        tensors = {
            key: tensor.to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
            for key, tensor in module.state_dict().items()
        }
        save_file(tensors, folder / f"{name}.safetensors")
    tokenizer = train_tokenizer()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS).save_pretrained(
        folder / LANGUAGE_FOLDER
    )
    language.to(dtype).save_pretrained(folder / LANGUAGE_FOLDER)
    hashes = {name: sha256_of(path) for name, path in sorted(files_of(folder).items())}
    whole = phantom_checkpoint(hashes, training, proposals=modules.proposals is not None)
    said = folder / CHECKPOINT_FILE
    said.write_text(whole.model_dump_json(indent=2) + "\n", "utf-8")
    for name in hashes:
        shutil.copymode(said, folder / name)  # safetensors lets nobody but its writer read


@torch.no_grad()
def enliven(modules: Modules) -> None:
    """Scale random weights so that answers depend on volume and prompt, and masks are neither empty nor full.

    Vision tokens get the size of word embeddings, residual branches a share in their sum, objects a positive score,
    and masks logits around zero that follow the prompt.
    """
    for name, parameter in modules.vision_encoder.named_parameters():
        if name.endswith(".scale"):
            parameter.fill_(0.5)
    for mixer in (modules.projector.low_mixer, modules.projector.high_mixer):
        _last_linear(mixer).weight.mul_(8.0)
    decoder = modules.sam2.sam_mask_decoder
    for head, bias in ((decoder.pred_obj_score_head, 2.0), (decoder.iou_prediction_head, 0.5)):
        _last_linear(head).bias.fill_(bias)
    for mlp in decoder.output_hypernetworks_mlps:
        for layer in _linears(mlp):
            layer.weight.mul_(3.0)
    for layer in _linears(decoder.transformer):
        layer.weight.mul_(1.5)


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


def _last_linear(module: nn.Module) -> nn.Linear:
    return _linears(module)[-1]


def _fields(hashes: dict[str, str], training: str | None, *, proposals: bool) -> dict[str, Any]:
    return {
        "format": 1,
        "name": "phantom",
        "trained": training is not None,
        "licence": "Apache-2.0",
        "provenance": training or UNTRAINED,
        "intended_use": "A demonstration and a test instrument. Not for diagnosis.",
        "windows": {WINDOW: (-1000.0, 400.0)},
        "vision": {
            "architecture": "dcformer",
            "grid": (96, 160, 160),
            "window": WINDOW,
            "stem": "full",
            "dims": (64, 96, 160, 192, 192),
            "depths": (1, 2, 3, 2, 1),
            "kernel_sizes": (7, 5, 5, 3),
            "feature_stages": (2, 3),
            "regions": {"count": 24, "kinds": 6, "channels": 48, "looks": LOOKS},
        },
        "projector": {
            "architecture": "mixer",
            "low_tokens": (150, 150),
            "high_tokens": (75, 75),
            "mlp_depth": 2,
            "told": TOLD.model_dump(),
        },
        "language": {
            "hidden_size": HIDDEN,
            "max_context": CONTEXT,
            "dtype": "float32",
            "image_token": IMAGE,
            "seg_token": SEG,
            "splice": "prefix",
            "seg_state": "at",
            "max_report_tokens": 192,
            "max_answer_tokens": 48,
            "prompts": {
                "report": "CT of {extent}. Write the report.\n",
                "ask": "CT of {extent}. Question: {question}\n",
                "segment_label": "CT of {extent}. Segment the class {label}.\n",
                "segment_text": "CT of {extent}. Segment {text}.\n",
                "segment_answer": f"It is {SEG}.",
            },
        },
        "segmentation": {
            "architecture": "sam2.1_hiera_t",
            "overrides": _SAM2,
            "side": SIDE,
            "fit": "pad",
            "window": WINDOW,
            "max_conditioning_slices": 4,
            "stop_after_absent": 3,
            "heed_clicks_px": 8.0,
            "edges": {"within_px": 4.0, "sigma_px": 1.8, "noise": 3.0},
            "key_slices": {"max_slices": 1, "min_gap": 4, "min_score": 0.3},
            "proposals": PROPOSAL_RULE.model_dump() if proposals else None,
        },
        "labels": [{"name": name, "snomed": {"code": code, "meaning": meaning}} for name, code, meaning in _LABELS],
        "files": hashes,
    }
