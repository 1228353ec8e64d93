"""Tensors of public weights, by name, type and shape: written by hand from public code, never made by our own classes.

Read in (owner/name at commit: path):

- mirthAI/Med3DVLM at cbbd633: ``src/model/encoder/dcformer.py`` (``decomp_small``), ``src/model/encoder/builder.py``,
  ``src/model/projector/mlp.py`` (``MixerLowHighHybridMLP``), ``src/model/vlm_arch.py`` (its sizes), ``src/train/
  train_vlm.py`` (rank 16 on every linear layer of the language model; ``model_with_lora.bin``).
- Qwen/Qwen2.5-7B-Instruct: ``config.json``; 151,666 rows after Med3DVLM has added ``<im_patch>``, one more with [SEG].
- facebookresearch/sam2 at 2b90b9f: ``sam2/configs``, ``sam2/modeling``; bowang-lab/MedSAM2 at 332f30d:
  ``sam2/configs/sam2.1_hiera_t512.yaml``, whose modules differ from these in no name and no shape.
- magic-research/Sa2VA at d01bf3f: ``projects/llava_sam2/hf/models/modeling_sa2va_chat.py``, ``.../convert_to_hf.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path

import torch

Layout = dict[str, tuple[str, tuple[int, ...]]]
"""Type, as safetensors names it, and shape by name."""

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8}
TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


def under(prefix: str, layout: Layout) -> Layout:
    return {prefix + name: tensor for name, tensor in layout.items()}


def in_type(dtype: str, layout: Layout) -> Layout:
    return {n: (dtype if t != "I64" else t, shape) for n, (t, shape) in layout.items()}


def weight(name: str, *shape: int) -> Layout:
    return {f"{name}.weight": ("F32", shape)}


def layer(name: str, *shape: int) -> Layout:
    """A linear layer or convolution [out, ...] with its bias."""
    return weight(name, *shape) | {f"{name}.bias": ("F32", shape[:1])}


def norm(name: str, channels: int) -> Layout:
    return layer(name, channels)


def mlp(name: str, *widths: int) -> Layout:
    """SAM2's MLP: ``layers.0``, ``layers.1``, ..."""
    return joined(layer(f"{name}.layers.{i}", after, before) for i, (before, after) in enumerate(pairwise(widths)))


def joined(layouts: Iterator[Layout]) -> Layout:
    return {name: tensor for layout in layouts for name, tensor in layout.items()}


def decomposed(name: str, channels: int, per_group: int, kernel: int) -> Layout:
    """Three convolutions along single axes, each with its batch norm."""
    found: Layout = {}
    for axis in range(3):
        size = tuple(kernel if a == axis else 1 for a in range(3))
        found |= layer(f"{name}.c{axis + 1}.0", channels, per_group, *size)
        found |= layer(f"{name}.c{axis + 1}.1", channels)
        found |= {f"{name}.c{axis + 1}.1.{s}": ("F32", (channels,)) for s in ("running_mean", "running_var")}
        found |= {f"{name}.c{axis + 1}.1.num_batches_tracked": ("I64", ())}
    return found


def dcformer(dims: tuple[int, ...], depths: tuple[int, ...], kernels: tuple[int, ...]) -> Layout:
    found: Layout = {}
    for conv in range(4):
        found |= decomposed(f"encoder.s0.0.{conv}", dims[0], dims[0] if conv else 1, 3 if conv else 7)
    for stage in range(1, 5):
        c = dims[stage]
        found |= weight(f"encoder.s{stage}.0.proj", c, dims[stage - 1], 1, 1, 1)
        for i in range(depths[stage]):
            block = f"encoder.s{stage}.{i}"
            found |= decomposed(f"{block}.dwconv", c, 1, kernels[stage - 1])
            found |= layer(f"{block}.mlp.mlp.0", 4 * c, c) | layer(f"{block}.mlp.mlp.3", c, 4 * c)
            found |= {f"{block}.scale": ("F32", (c,))}
    return found


def mixer(low: tuple[int, int], high: tuple[int, int], tokens: tuple[tuple[int, ...], ...], width: int) -> Layout:
    """``low`` and ``high`` are tokens and channels of the features, ``tokens`` those after each layer of both."""
    found: Layout = {}
    for name, before, counts in (("low_mixer", low, tokens[0]), ("high_mixer", high, tokens[1])):
        count, channels = before
        for i, after in enumerate(counts):
            wider = width // 2 ** (len(counts) - 1 - i)
            found |= norm(f"{name}.{i}.ln1", channels) | norm(f"{name}.{i}.ln2", channels)
            found |= layer(f"{name}.{i}.mlp1.mm_projector.0", after, count)
            found |= layer(f"{name}.{i}.mlp1.mm_projector.1.1", after, after)
            found |= layer(f"{name}.{i}.mlp2.mm_projector.0", wider, channels)
            found |= layer(f"{name}.{i}.mlp2.mm_projector.1.1", wider, wider)
            count, channels = after, wider
    return found


@dataclass(frozen=True)
class Qwen:
    vocabulary: int
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int

    @property
    def kv(self) -> int:
        return self.width // self.heads * self.kv_heads

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Linear layers, [out, in], that adapters change."""
        w, kv, inner = self.width, self.kv, self.inner
        one = {
            "self_attn.q_proj": (w, w),
            "self_attn.k_proj": (kv, w),
            "self_attn.v_proj": (kv, w),
            "self_attn.o_proj": (w, w),
            "mlp.gate_proj": (inner, w),
            "mlp.up_proj": (inner, w),
            "mlp.down_proj": (w, inner),
        }
        return {f"model.layers.{i}.{name}": shape for i in range(self.layers) for name, shape in one.items()}

    def layout(self) -> Layout:
        w = self.width
        found = weight("model.embed_tokens", self.vocabulary, w) | weight("model.norm", w)
        found |= weight("lm_head", self.vocabulary, w)
        for i in range(self.layers):
            found |= weight(f"model.layers.{i}.input_layernorm", w)
            found |= weight(f"model.layers.{i}.post_attention_layernorm", w)
        for name, shape in self.linear.items():
            biased = name.endswith(("q_proj", "k_proj", "v_proj"))
            found |= layer(name, *shape) if biased else weight(name, *shape)
        return found

    def config(self) -> dict[str, object]:
        return {
            "architectures": "VLMQwenForCausalLM",
            "model_type": "vlm_qwen",
            "vision_tower": "dcformer",
            "mm_projector_type": "mixer",
            "attention_dropout": 0.0,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "hidden_act": "silu",
            "hidden_size": self.width,
            "initializer_range": 0.02,
            "intermediate_size": self.inner,
            "max_position_embeddings": 32768,
            "max_window_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": self.vocabulary,
        }


QWEN_7B = Qwen(151_667, 3584, 18944, 28, 28, 4)


def with_adapters(qwen: Qwen, layout: Layout, rank: int) -> Layout:
    """What a PEFT model of a model with this layout holds."""
    found: Layout = {}
    for name, tensor in layout.items():
        owner, _, kind = name.rpartition(".")
        found[f"base_model.model.{owner}.base_layer.{kind}" if owner in qwen.linear else f"base_model.model.{name}"] = (
            tensor
        )
    for name, (out, into) in qwen.linear.items():
        found[f"base_model.model.{name}.lora_A.default.weight"] = ("F32", (rank, into))
        found[f"base_model.model.{name}.lora_B.default.weight"] = ("F32", (out, rank))
    return found


def adapters_alone(qwen: Qwen, rank: int) -> Layout:
    """What ``adapter_model.safetensors`` holds: without the adapter's name."""
    found: Layout = {}
    for name, (out, into) in qwen.linear.items():
        found[f"base_model.model.{name}.lora_A.weight"] = ("F32", (rank, into))
        found[f"base_model.model.{name}.lora_B.weight"] = ("F32", (out, rank))
    return found


def seg_projector(width: int, channels: int) -> Layout:
    return under("text_hidden_fcs.", layer("0", width, width) | layer("2", channels, width))


@dataclass(frozen=True)
class Hiera:
    width: int
    stages: tuple[int, ...]
    background: int
    d: int = 256
    memory: int = 64
    layers: int = 4
    feedforward: int = 2048

    def layout(self) -> Layout:
        """SAM2.1's."""
        return self._image_encoder() | self._memory() | self._prompt_encoder() | self._mask_decoder() | self._pointers()

    def layout_of_2_0(self) -> Layout:
        """SAM2's, of July 2024: ``no_obj_embed_spatial`` and ``proj_tpos_enc_in_obj_ptrs`` are off."""
        new = ("no_obj_embed_spatial", "obj_ptr_tpos_proj.weight", "obj_ptr_tpos_proj.bias")
        return {name: tensor for name, tensor in self.layout().items() if name not in new}

    def _image_encoder(self) -> Layout:
        trunk, width = "image_encoder.trunk", self.width
        found: Layout = {
            f"{trunk}.pos_embed": ("F32", (1, width, self.background, self.background)),
            f"{trunk}.pos_embed_window": ("F32", (1, width, 8, 8)),
        }
        found |= layer(f"{trunk}.patch_embed.proj", width, 3, 7, 7)
        firsts = [sum(self.stages[:i]) for i in range(1, 4)]
        for i in range(sum(self.stages)):
            into, width = width, width * (2 if i in firsts else 1)
            block = f"{trunk}.blocks.{i}"
            found |= norm(f"{block}.norm1", into) | norm(f"{block}.norm2", width)
            found |= layer(f"{block}.attn.qkv", 3 * width, into) | layer(f"{block}.attn.proj", width, width)
            found |= mlp(f"{block}.mlp", width, 4 * width, width)
            if into != width:
                found |= layer(f"{block}.proj", width, into)
        for i in range(4):
            found |= layer(f"image_encoder.neck.convs.{i}.conv", self.d, width // 2**i, 1, 1)
        return found

    def _attention(self, name: str, inner: int, into: int | None = None) -> Layout:
        found = layer(f"{name}.q_proj", inner, self.d) | layer(f"{name}.out_proj", self.d, inner)
        return found | joined(layer(f"{name}.{n}_proj", inner, into or self.d) for n in "kv")

    def _memory(self) -> Layout:
        d, encoder = self.d, "memory_encoder"
        found = norm("memory_attention.norm", d)
        for i in range(self.layers):
            name = f"memory_attention.layers.{i}"
            found |= self._attention(f"{name}.self_attn", d) | self._attention(
                f"{name}.cross_attn_image", d, self.memory
            )
            found |= layer(f"{name}.linear1", self.feedforward, d) | layer(f"{name}.linear2", d, self.feedforward)
            found |= joined(norm(f"{name}.norm{n}", d) for n in (1, 2, 3))
        for i, (before, after) in enumerate(pairwise((1, 4, 16, 64, 256))):
            found |= layer(f"{encoder}.mask_downsampler.encoder.{3 * i}", after, before, 3, 3)
            found |= norm(f"{encoder}.mask_downsampler.encoder.{3 * i + 1}", after)
        found |= layer(f"{encoder}.mask_downsampler.encoder.12", d, 256, 1, 1)
        found |= layer(f"{encoder}.pix_feat_proj", d, d, 1, 1) | layer(f"{encoder}.out_proj", self.memory, d, 1, 1)
        for i in range(2):
            name = f"{encoder}.fuser.layers.{i}"
            found |= layer(f"{name}.dwconv", d, 1, 7, 7) | norm(f"{name}.norm", d)
            found |= layer(f"{name}.pwconv1", 4 * d, d) | layer(f"{name}.pwconv2", d, 4 * d)
            found |= {f"{name}.gamma": ("F32", (d,))}
        return found | {
            "maskmem_tpos_enc": ("F32", (7, 1, 1, self.memory)),
            "no_mem_embed": ("F32", (1, 1, d)),
            "no_mem_pos_enc": ("F32", (1, 1, d)),
            "no_obj_embed_spatial": ("F32", (1, self.memory)),
        }

    def _prompt_encoder(self) -> Layout:
        d, name = self.d, "sam_prompt_encoder"
        found: Layout = {f"{name}.pe_layer.positional_encoding_gaussian_matrix": ("F32", (2, d // 2))}
        found |= joined(weight(f"{name}.point_embeddings.{i}", 1, d) for i in range(4))
        found |= weight(f"{name}.not_a_point_embed", 1, d) | weight(f"{name}.no_mask_embed", 1, d)
        found |= layer(f"{name}.mask_downscaling.0", 4, 1, 2, 2) | norm(f"{name}.mask_downscaling.1", 4)
        found |= layer(f"{name}.mask_downscaling.3", 16, 4, 2, 2) | norm(f"{name}.mask_downscaling.4", 16)
        return found | layer(f"{name}.mask_downscaling.6", d, 16, 1, 1)

    def _mask_decoder(self) -> Layout:
        d, name = self.d, "sam_mask_decoder"
        found: Layout = {}
        for i in range(2):
            block = f"{name}.transformer.layers.{i}"
            found |= self._attention(f"{block}.self_attn", d) | mlp(f"{block}.mlp", d, 2048, d)
            found |= self._attention(f"{block}.cross_attn_token_to_image", d // 2)
            found |= self._attention(f"{block}.cross_attn_image_to_token", d // 2)
            found |= joined(norm(f"{block}.norm{n}", d) for n in (1, 2, 3, 4))
        found |= self._attention(f"{name}.transformer.final_attn_token_to_image", d // 2)
        found |= norm(f"{name}.transformer.norm_final_attn", d)
        found |= weight(f"{name}.iou_token", 1, d) | weight(f"{name}.mask_tokens", 4, d)
        found |= weight(f"{name}.obj_score_token", 1, d)
        for at, into, out in ((0, d, d // 4), (3, d // 4, d // 8)):  # transposed: [in, out, 2, 2]
            found |= weight(f"{name}.output_upscaling.{at}", into, out, 2, 2)
            found |= {f"{name}.output_upscaling.{at}.bias": ("F32", (out,))}
        found |= norm(f"{name}.output_upscaling.1", d // 4)
        found |= layer(f"{name}.conv_s0", d // 8, d, 1, 1) | layer(f"{name}.conv_s1", d // 4, d, 1, 1)
        found |= joined(mlp(f"{name}.output_hypernetworks_mlps.{i}", d, d, d, d // 8) for i in range(4))
        return (
            found | mlp(f"{name}.iou_prediction_head", d, 256, 256, 4) | mlp(f"{name}.pred_obj_score_head", d, d, d, 1)
        )

    def _pointers(self) -> Layout:
        d = self.d
        found = layer("mask_downsample", 1, 1, 4, 4) | mlp("obj_ptr_proj", d, d, d, d)
        return found | layer("obj_ptr_tpos_proj", self.memory, d) | {"no_obj_ptr": ("F32", (1, d))}


HIERA = {
    "sam2.1_hiera_t": Hiera(96, (1, 2, 7, 2), 7),
    "sam2.1_hiera_s": Hiera(96, (1, 2, 11, 2), 7),
    "sam2.1_hiera_b+": Hiera(112, (2, 3, 16, 3), 14),
    "sam2.1_hiera_l": Hiera(144, (2, 6, 36, 4), 7),
}


def med3dvlm(qwen: Qwen, vision: Layout, projector: Layout) -> Layout:
    return qwen.layout() | under("model.vision_tower.vision_tower.", vision) | under("model.mm_projector.", projector)


MED3DVLM_7B = med3dvlm(
    QWEN_7B,
    dcformer((64, 96, 192, 384, 768), (1, 2, 3, 6, 2), (13, 11, 9, 7)),
    mixer((256, 384), (32, 768), ((192, 128), (64, 128)), 3584),
)


def of_sa2va(sam2: Layout) -> Layout:
    """SAM2's tensors as ``convert_to_hf.py`` names them."""
    return {f"grounding_encoder.sam2_model.{n.replace('.gamma', '.g_weight')}": t for n, t in sam2.items()}


def parameters(layout: Layout) -> int:
    return sum(prod(shape) for _, shape in layout.values())


def write_sparse(path: Path, layout: Layout) -> None:
    """Write a safetensors file of zeros that takes no room: header and length are real, the values are a hole."""
    described, end = {}, 0
    for name, (dtype, shape) in layout.items():
        start, end = end, end + BYTES[dtype] * prod(shape)
        described[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def write_sparse_shards(folder: Path, layout: Layout, count: int) -> None:
    """Write a transformers folder's shards, the tensors dealt in their order."""
    names = list(layout)
    per = -(-len(names) // count)
    shards = {f"model-{i + 1:05}-of-{count:05}.safetensors": names[i * per : (i + 1) * per] for i in range(count)}
    for file, held in shards.items():
        write_sparse(folder / file, {name: layout[name] for name in held})
    index = {"metadata": {}, "weight_map": {name: file for file, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def values(layout: Layout, seed: int) -> dict[str, torch.Tensor]:
    """Return random tensors of a layout."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.tensor(7) if dtype == "I64" else (torch.randn(shape, generator=generator) * 0.05).to(TORCH[dtype])
        for name, (dtype, shape) in layout.items()
    }
