"""Safetensors files written tensor by tensor, so that one tensor at a time is in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from math import prod
from pathlib import Path

import torch

from medvl.export.check_tensors import INDEX, WHOLE
from medvl.export.folders import link
from medvl.export.importing.sources import StoredTensor
from medvl.export.tensor_files import DTYPES, TensorHeader, read_headers

MAX_SHARD_BYTES = 5_000_000_000
"""Weights of a language model go to shards of at most so many bytes, or one tensor."""


def write_tensors(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Write a safetensors file.

    The format is an unsigned 64-bit length, a JSON object of so many bytes that gives each tensor's type, shape and
    offsets, and the values without gaps (huggingface/safetensors, README.md). The widest types come first, which
    aligns every tensor, as the library itself does.
    """
    order = sorted(tensors, key=lambda name: (-DTYPES[tensors[name].header.dtype].itemsize, name))
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        header = tensors[name].header
        start, end = end, end + bytes_of(header)
        described[name] = {"dtype": header.dtype, "shape": list(header.shape), "data_offsets": [start, end]}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(_raw(tensors[name].read()))


def bytes_of(header: TensorHeader) -> int:
    """Return how many bytes the values of a tensor take."""
    return DTYPES[header.dtype].itemsize * prod(header.shape)


def write_language_weights(folder: Path, tensors: Mapping[str, StoredTensor], progress: Callable[[str], None]) -> None:
    """Write the weights of a transformers folder, in the shards in which they come; one line tells of each.

    A safetensors file that goes there whole and unchanged is linked, or copied where the file system cannot link.
    """
    shards = list(_shards(tensors))
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip([WHOLE] if len(shards) == 1 else names, shards, strict=True):
        if (file := _unchanged(shard)) is None:
            write_tensors(folder / name, shard)
        else:
            link(file, folder / name)
        progress(f"{folder.name}/{name}: {'written' if file is None else 'as it was'}, {len(shard)} tensors")
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(bytes_of(t.header) for t in tensors.values())},
            "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in sorted(shard)},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _raw(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _shards(tensors: Mapping[str, StoredTensor]) -> Iterator[dict[str, StoredTensor]]:
    """Yield the tensors of one file after another; of a larger file in several."""
    for _, items in groupby(sorted(tensors.items(), key=lambda item: item[1].file), lambda item: item[1].file):
        whole = dict(items)
        if _unchanged(whole) is not None:
            yield whole
            continue
        shard: dict[str, StoredTensor] = {}
        size = 0
        for name, tensor in whole.items():
            if shard and size + bytes_of(tensor.header) > MAX_SHARD_BYTES:
                yield shard
                shard, size = {}, 0
            shard[name] = tensor
            size += bytes_of(tensor.header)
        yield shard


def _unchanged(shard: Mapping[str, StoredTensor]) -> Path | None:
    """Return the file that holds exactly these tensors under these names, if there is one."""
    file = next(iter(shard.values())).file
    same = file.suffix == ".safetensors" and all(t.verbatim and t.name == name for name, t in shard.items())
    return file if same and read_headers(file).keys() == shard.keys() else None
