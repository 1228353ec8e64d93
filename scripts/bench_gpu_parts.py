"""The networks that ``bench_gpu.py`` times: real architectures at real size, seeded weights, inputs of one entry.

Sizes are public ones: DCFormer-small as ``decomp_small`` of github.com/mirthAI/Med3DVLM has it, its mixer projector,
SAM2.1's own configurations, and two layers with the head of Qwen2.5-7B.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm, Qwen2RotaryEmbedding

from medvl.contracts.checkpoint import Checkpoint, ProjectorSpec, SegmentationSpec, VisionSpec, load_checkpoint
from medvl.contracts.models import MODELS
from medvl.embedded.preset import enliven
from medvl.export.presets import PHANTOM, resolve_checkpoint
from medvl.export.samples import BATCH, Samples
from medvl.network.modules import Modules
from medvl.network.sam2_build import build_sam
from medvl.network.sam2_parts import IMAGENET_MEAN, IMAGENET_STD, ImageEncoder

SEED = 2601
MEMORIES, POINTERS, POINTS = 7, 16, 4
"""A full bank, and the points of a prompt."""

Sizes = dict[str, int]


@dataclass(frozen=True)
class Scale:
    """Sizes of everything."""

    vision: VisionSpec
    projector: ProjectorSpec
    sides: tuple[int, int]
    """Slices of SAM2, in pixels: the usual and the large."""
    overrides: Mapping[str, Any]
    """Of SAM2's configurations."""
    language: Mapping[str, int]
    """Of Qwen2's configuration."""
    context: int
    """Tokens of a prompt, and of the cache that a token is decoded with."""


REAL = Scale(
    vision=VisionSpec(
        architecture="dcformer",
        grid=(128, 256, 256),
        window="wide",
        dims=(64, 96, 192, 384, 768),
        depths=(1, 2, 3, 6, 2),
        kernel_sizes=(13, 11, 9, 7),
        feature_stages=(3, 4),
    ),
    projector=ProjectorSpec(architecture="mixer", low_tokens=(192, 128), high_tokens=(64, 128), mlp_depth=2),
    sides=(512, 1024),
    overrides={},
    language={
        "hidden_size": 3584,
        "num_hidden_layers": 2,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "vocab_size": 152064,
    },
    context=512,
)

TINY = Scale(
    vision=REAL.vision.model_copy(update={"grid": (32, 32, 64), "dims": (8, 8, 16, 16, 32), "depths": (1, 1, 1, 1, 1)}),
    projector=REAL.projector.model_copy(update={"low_tokens": (6, 4), "high_tokens": (3, 4)}),
    sides=(64, 128),
    overrides={"image_encoder.trunk.stages": [1, 1, 2, 1], "image_encoder.trunk.global_att_blocks": [3]},
    language=dict(REAL.language)
    | {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 100,
    },
    context=12,
)
"""The same structure, to try the script without a GPU; its figures mean nothing."""


@dataclass(frozen=True, eq=False)
class Piece:
    """One network with the inputs of one entry."""

    name: str
    module: nn.Module
    """FP32, in eval mode, on the device; takes ``inputs`` and returns a tensor or tensors whose first axis is the
    batch."""
    inputs: tuple[Tensor, ...]
    axes: tuple[int | None, ...]
    """The axis of each input along which a batch repeats it; None where all entries share it."""
    batches: tuple[int, ...]
    half: torch.dtype
    typed: bool
    """Whether half precision is that of the whole module, or of its matrices under autocast."""
    model: str | None
    """Its name in the contract, where it is one of the contract's networks."""
    static: Sizes
    """Lengths of the named axes, as :class:`medvl.export.parts.Part` takes them."""

    def batched(self, count: int) -> tuple[Tensor, ...]:
        """Return the inputs of a batch of equal entries, each written out, in C order as a server hands them over."""
        return tuple(
            (tensor if axis is None else torch.cat([tensor] * count, dim=axis)).contiguous()
            for tensor, axis in zip(self.inputs, self.axes, strict=True)
        )


class Slices(ImageEncoder):
    """:class:`ImageEncoder` whose constants live on the device: making them on each call would stop the GPU."""

    mean: Tensor
    std: Tensor

    def __init__(self, sam: SAM2Base) -> None:
        super().__init__(sam)
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).reshape(1, 3, 1, 1))

    def forward(self, slices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode slices UINT8 [B, S, S]."""
        scaled = (slices.unsqueeze(1).float() / 255.0 - self.mean) / self.std
        f0, f1, f2 = self.sam.forward_image(scaled)["backbone_fpn"]
        return f0, f1, f2


class FixedCache:
    """Keys and values in place, as a paged cache has them: a token's are written, none are copied.

    Parameters
    ----------
    buffers
        Keys and values [B, heads, L, D] of one layer after another; position L - 1 is written.
    """

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        self._buffers = buffers

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, heads, 1, D]; return all."""
        all_keys, all_values = self._buffers[2 * layer : 2 * layer + 2]
        all_keys[:, :, -1:] = keys
        all_values[:, :, -1:] = values
        return all_keys, all_values


class Decoder(nn.Module):
    """Layers, norm and head of a Qwen2, from embeddings to the logits of the last token."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList(Qwen2DecoderLayer(config, number) for number in layers)
        self.norm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary = Qwen2RotaryEmbedding(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, embeddings: Tensor, positions: Tensor, *cached: Tensor) -> Tensor:
        """Return logits [B, V].

        Parameters
        ----------
        embeddings
            [B, L, H].
        positions
            INT64 [1, L].
        cached
            Keys and values of every layer, for one token behind them; none for a prompt, which is causal.
        """
        cache = FixedCache(cached) if cached else None
        places, x = self.rotary(embeddings, positions), embeddings
        for layer in self.layers:
            x = layer(x, attention_mask=None, position_embeddings=places, past_key_values=cache)
            x = x[0] if isinstance(x, tuple) else x
        logits: Tensor = self.head(self.norm(x[:, -1]))
        return logits


UP_TO_32 = (1, 2, 4, 8, 16, 32)
PARTS = (
    "vision_encoder",
    "projector",
    "image_encoder_tiny",
    "image_encoder_large",
    "mask_decoder",
    "memory_encoder",
    "track_step",
    "image_encoder_tiny_1024",
    "prefill",
    "decode",
)
"""What can be asked for, the most important first."""


@torch.no_grad()
def build(parts: Sequence[str], scale: Scale, device: torch.device) -> list[Piece]:
    """Return the pieces that were asked for, in the order of :data:`PARTS`."""
    makers: Sequence[Callable[[], Iterator[Piece]]] = (
        lambda: _contract(scale, device),
        lambda: _encoder("image_encoder_large", "sam2.1_hiera_l", scale, device),
        lambda: _encoder("image_encoder_tiny_1024", "sam2.1_hiera_t", scale, device),
        lambda: _language(scale, device),
    )
    names = (
        {"vision_encoder", "projector", "image_encoder_tiny", "mask_decoder", "memory_encoder", "track_step"},
        {"image_encoder_large"},
        {"image_encoder_tiny_1024"},
        {"prefill", "decode"},
    )
    made: list[Piece] = []
    for maker, own in zip(makers, names, strict=True):
        if own & set(parts):
            torch.manual_seed(SEED)
            made += maker()
    return sorted((p for p in made if p.name in parts), key=lambda p: PARTS.index(p.name))


def checkpoint_of(scale: Scale) -> Checkpoint:
    """Return a checkpoint of these sizes; what it says of language and labels is the phantom's."""
    phantom = load_checkpoint(resolve_checkpoint(PHANTOM))
    language = phantom.language.model_copy(update={"hidden_size": scale.language["hidden_size"]})
    update = {"vision": scale.vision, "projector": scale.projector, "language": language}
    return phantom.model_copy(update=update | {"segmentation": _segmentation("sam2.1_hiera_t", scale, 0)})


def _segmentation(architecture: str, scale: Scale, side: int) -> SegmentationSpec:
    spec = load_checkpoint(resolve_checkpoint(PHANTOM)).segmentation
    update = {"architecture": architecture, "side": scale.sides[side], "overrides": dict(scale.overrides)}
    return spec.model_copy(update=update)


def _contract(scale: Scale, device: torch.device) -> Iterator[Piece]:
    """Yield the contract's networks around SAM2.1 tiny; each is run, because the next takes what it makes."""
    with device:
        modules = Modules.build(checkpoint_of(scale))
        enliven(modules)
        networks = dict(modules.networks) | {"sam2_image_encoder": Slices(modules.sam2).eval()}
    samples = Samples(SEED)
    sizes = dict(modules.axes) | {BATCH: 1, "N": 1, "P": POINTS, "R": MEMORIES, "Q": POINTERS}
    wanted = {
        "vision_encoder": ("vision_encoder", (1, 2, 4, 8)),
        "projector": ("projector", UP_TO_32),
        "sam2_image_encoder": ("image_encoder_tiny", UP_TO_32),
        "sam2_mask_decoder": ("mask_decoder", UP_TO_32),
        "sam2_memory_encoder": ("memory_encoder", (1, 8)),
        "sam2_track_step": ("track_step", (1, 8)),
    }
    for name, (short, batches) in wanted.items():
        model, module = MODELS[name], networks[name]
        drawn = samples.draw(model, sizes)
        inputs = tuple(torch.from_numpy(drawn[s.name]).to(device) for s in model.inputs)
        outputs = module(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        samples.keep({s.name: o.float().cpu().numpy() for s, o in zip(model.outputs, outputs, strict=True)})
        axes = tuple(0 if model.max_batch_size else _object_axis(s.shape) for s in model.inputs)
        yield Piece(short, module, inputs, axes, batches, torch.float16, False, name, dict(modules.axes))


def _object_axis(shape: tuple[int | str, ...]) -> int | None:
    return shape.index("N") if "N" in shape else None


def _encoder(name: str, architecture: str, scale: Scale, device: torch.device) -> Iterator[Piece]:
    spec = _segmentation(architecture, scale, 1 if name.endswith("1024") else 0)
    with device:
        module = Slices(build_sam(spec)).eval()
    pixels = np.random.default_rng(SEED).integers(0, 256, (1, spec.side, spec.side), np.uint8)
    slices = torch.from_numpy(pixels).to(device)
    static = {"S": spec.side, "f": spec.side // 16, "f_2": spec.side // 8, "f_4": spec.side // 4}
    static |= {"C": 256, "C_4": 64, "C_8": 32}
    yield Piece(name, module, (slices,), (0,), UP_TO_32, torch.float16, False, "sam2_image_encoder", static)


def _language(scale: Scale, device: torch.device) -> Iterator[Piece]:
    config = Qwen2Config(**scale.language)
    config._attn_implementation = "sdpa"
    with device:
        module = Decoder(config).eval()
        length, width = scale.context, config.hidden_size
        head = width // config.num_attention_heads
        prompt = torch.randn(1, length, width)
        positions = torch.arange(length)[None]
        cached = [torch.randn(1, config.num_key_value_heads, length, head) for _ in range(2 * config.num_hidden_layers)]
    prefill = Piece("prefill", module, (prompt, positions), (0, None), UP_TO_32, torch.bfloat16, True, None, {})
    last = (prompt[:, -1:].clone(), positions[:, -1:].clone(), *cached)
    yield prefill
    yield replace(prefill, name="decode", inputs=last, axes=(0, None, *(0 for _ in cached)))
