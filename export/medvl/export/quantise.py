"""The language model with linear layers in INT8: a folder that vLLM reads, half of bfloat16."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from medvl.contracts.checkpoint import LANGUAGE_FOLDER
from medvl.contracts.manifest import files_of
from medvl.export import check

_LARGEST = 127.0
_QUANTIZATION = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
    "ignore": ["lm_head"],
}
"""As compressed-tensors writes it: one scale for each row of a weight, one for each token of an activation."""


def write_int8(checkpoint: Path, out: Path) -> None:
    """Write a checkpoint's language model with its linear layers in INT8; embeddings, norms and the head stay.

    Each row of a weight is divided by a hundred and twenty-seventh of its largest magnitude and rounded. Nothing is
    calibrated: activations are scaled token by token while they run.

    Parameters
    ----------
    checkpoint
        A checkpoint folder.
    out
        An empty folder.

    Raises
    ------
    CheckpointError
        With one line for everything by which the folder breaks the contract.
    """
    dtype = getattr(torch, check.require(checkpoint).language.dtype)
    source = checkpoint / LANGUAGE_FOLDER
    for name, path in files_of(source).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            _write_shard(path, out / name, dtype)
        elif not name.endswith(".index.json"):
            shutil.copyfile(path, out / name)
    config = json.loads((out / "config.json").read_text("utf-8"))
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": _QUANTIZATION}, indent=2), "utf-8")


def _write_shard(path: Path, out: Path, dtype: torch.dtype) -> None:
    """Write a shard; vLLM finds tensors by the files that are there, so that an index is not needed."""
    tensors: dict[str, torch.Tensor] = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            tensor = file.get_tensor(name)
            if not name.endswith("_proj.weight"):
                tensors[name] = tensor
                continue
            scale = tensor.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / _LARGEST
            tensors[name] = (tensor.float() / scale).round().to(torch.int8)
            tensors[name.replace(".weight", ".weight_scale")] = scale.to(dtype)
    save_file(tensors, out)
    shutil.copymode(path, out)  # the library lets nobody but its writer read
