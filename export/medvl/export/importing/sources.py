"""Files of weights as somebody has them on disk: what they hold, and each tensor only when it is asked for."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from medvl.contracts.errors import CheckpointError, SetupError
from medvl.export.check_tensors import INDEX, WHOLE
from medvl.export.tensor_files import DTYPE_NAMES, TensorHeader, read_headers, read_tensor

_INDICES = (INDEX, "pytorch_model.bin.index.json")
_FILES = (WHOLE, "adapter_model.safetensors", "pytorch_model.bin", "adapter_model.bin")
"""Weights of a transformers or PEFT folder, in the order in which they are preferred."""

_WRAPPERS = ("model", "state_dict", "module")
"""Keys under which training code keeps a state dict beside optimiser and epoch: SAM2 and MedSAM2 write ``model``
(facebookresearch/sam2, sam2/build_sam.py, at 2b90b9f)."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that stays in its file until it is read."""

    file: Path
    name: str
    """As the file has it."""
    header: TensorHeader
    read: Callable[[], torch.Tensor] = field(repr=False, compare=False)
    verbatim: bool = True
    """Whether :attr:`read` gives what the file holds, bit for bit."""

    def __str__(self) -> str:
        return f"{self.file.name}: {self.name}"

    def computed(self, read: Callable[[], torch.Tensor], dtype: torch.dtype | None = None) -> StoredTensor:
        """Return the tensor with other values, and in another type if one is given."""
        header = self.header if dtype is None else replace(self.header, dtype=DTYPE_NAMES[dtype])
        return replace(self, header=header, read=read, verbatim=False)

    def to(self, dtype: torch.dtype) -> StoredTensor:
        """Return the tensor in a type; itself where it has it."""
        if self.header.dtype == DTYPE_NAMES[dtype]:
            return self
        return self.computed(lambda: self.read().to(dtype), dtype)


def weight_files(path: Path) -> list[Path]:
    """Return the files that hold the weights of a path: the file itself, or those of a transformers or PEFT folder.

    Raises
    ------
    CheckpointError
        When there is nothing, or a folder holds no weights.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CheckpointError(f"{path}: expected weights, but there is no such file or folder.")
    for index in _INDICES:
        if (path / index).is_file():
            return [path / shard for shard in _shards(path / index)]
    for name in _FILES:
        if (path / name).is_file():
            return [path / name]
    raise CheckpointError(f"{path}: expected weights, found none of {', '.join(_INDICES + _FILES)}.")


def read_source(path: Path) -> list[StoredTensor]:
    """Return the tensors of a path, of safetensors files from their headers alone, of pickles as mapped files.

    Raises
    ------
    CheckpointError
        Naming the file that is missing, damaged, or holds something else than tensors.
    """
    return [tensor for file in weight_files(path) for tensor in _tensors(file)]


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise CheckpointError(f"{index.name}: expected a weight_map, found none that can be read") from None


def _tensors(file: Path) -> list[StoredTensor]:
    if file.suffix == ".safetensors":
        headers = read_headers(file)
        return [StoredTensor(file, name, header, partial(read_tensor, file, name)) for name, header in headers.items()]
    state = _state_dict(file)
    return [StoredTensor(file, name, TensorHeader.of(t), partial(_given, t)) for name, t in state.items()]


def _given(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _state_dict(file: Path) -> Mapping[str, torch.Tensor]:
    """Map a pickle, with nothing in it run but what rebuilds tensors."""
    if not file.is_file():
        raise CheckpointError(f"{file.name}: expected a file of torch.save, but missing")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        if "unable to mmap" in str(error):
            raise SetupError(
                f"{file.name} is larger than this machine's memory and cannot be mapped: import it on a larger one, or "
                "save it as safetensors, which is read tensor by tensor."
            ) from None
        raise CheckpointError(
            f"{file.name}: expected tensors in the zip format of torch.save, found a file that is not, or that runs "
            "code when it is loaded"
        ) from None
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{file.name}: expected a state dict, found {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{file.name}: {name}: expected a tensor, found {type(value).__name__}")
    return state
