"""What tensors a file holds, from its header alone, and how they compare with what a part needs."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from medvl.contracts.errors import CheckpointError

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types by the names that safetensors gives them."""
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Types that a part may be stored in where it is floating point; none of eight bits is one."""


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a file says of a tensor."""

    dtype: str
    """As safetensors names it; torch's own name where safetensors has none."""
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorHeader:
        """Return what a file would say of a tensor."""
        return cls(DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def read_headers(path: Path) -> dict[str, TensorHeader]:
    """Return the headers of a safetensors file, by name.

    Raises
    ------
    CheckpointError
        Naming the file, when it is missing or not safetensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.name}: expected safetensors, but missing")
    try:
        # Not as torch's tensors: torch maps the whole file for writing, which fails where it is larger than memory.
        with safe_open(path, "np") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            return {key: TensorHeader(s.get_dtype(), tuple(s.get_shape())) for key, s in slices.items()}
    except (SafetensorError, OSError):
        raise CheckpointError(f"{path.name}: expected safetensors, found a file that is not") from None


def read_tensor(path: Path, name: str) -> torch.Tensor:
    """Read one tensor of a safetensors file that :func:`read_headers` has accepted, and nothing else of it.

    The format is described in :func:`medvl.export.importing.writing.write_tensors`.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        described = json.loads(file.read(length))[name]
        start, end = described["data_offsets"]
        file.seek(8 + length + start)
        values = bytearray(end - start)
        file.readinto(values)
    dtype = DTYPES[described["dtype"]]
    flat = torch.frombuffer(values, dtype=dtype) if values else torch.empty(0, dtype=dtype)
    return flat.reshape(described["shape"])


def tensor_lines(
    expected: Mapping[str, torch.Tensor], found: Mapping[str, TensorHeader], optional: Collection[str] = ()
) -> Iterator[tuple[str, str]]:
    """Yield the name of every tensor that is missing, not expected, or of a wrong type or shape, and what is wrong.

    Parameters
    ----------
    expected
        State dict of a part, on any device. Where it is floating point every floating type fits.
    optional
        Expected tensors that need not be there.
    """
    for key in sorted(expected.keys() - found.keys() - set(optional)):
        yield key, "expected, but missing"
    for key in sorted(found.keys() - expected.keys()):
        yield key, "found, but not expected"
    for key in sorted(expected.keys() & found.keys()):
        wanted, header = TensorHeader.of(expected[key]), found[key]
        fits = header.dtype in FLOATS if expected[key].is_floating_point() else header.dtype == wanted.dtype
        if not fits or header.shape != wanted.shape:
            yield key, f"expected {wanted}, found {header}"
