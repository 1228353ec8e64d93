"""What an ONNX graph accepts, checked before it runs, and which requests can share a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medvl.contracts.errors import InvalidRequest

Inputs = Mapping[str, np.ndarray]
"""The inputs of one request by tensor name."""

_DTYPES = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(uint8)": np.dtype(np.uint8),
}


@dataclass(frozen=True, slots=True)
class GraphInput:
    """One input as onnxruntime describes it; a named axis has the same length wherever the name occurs."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


def check_inputs(expected: Sequence[GraphInput], inputs: Inputs) -> None:
    """Check one request against a graph.

    Raises
    ------
    InvalidRequest
        Naming the first input that is missing, unknown, of a wrong dtype or of a wrong shape.
    """
    if unknown := sorted(inputs.keys() - {e.name for e in expected}):
        raise InvalidRequest(f"The model has no inputs {unknown}.")
    bound: dict[str, int] = {}
    for graph_input in expected:
        array = inputs.get(graph_input.name)
        if array is None:
            raise InvalidRequest(f"Input {graph_input.name} is missing.")
        _check_one(graph_input, array, bound)


def _check_one(expected: GraphInput, array: np.ndarray, bound: dict[str, int]) -> None:
    if array.dtype != _DTYPES[expected.type] or array.ndim != len(expected.shape):
        wanted = f"{_DTYPES[expected.type]} {list(expected.shape)}"
        raise InvalidRequest(f"Input {expected.name} should be {wanted} but is {array.dtype} {list(array.shape)}.")
    for axis, length in zip(expected.shape, array.shape, strict=True):
        want = bound.setdefault(axis, length) if isinstance(axis, str) else axis
        if length == 0 or (want is not None and want != length):
            raise InvalidRequest(f"Axis {axis} of input {expected.name} is {length}, which does not fit.")


def shared_calls(calls: Mapping[int, Inputs], *, batched: bool) -> Iterator[list[int]]:
    """Yield groups of calls that can share one run: those whose inputs differ in the batch axis only.

    Parameters
    ----------
    calls
        Inputs by the number of the call.
    batched
        Whether the first axis of every input is Triton's batch axis; without one, every call runs alone.
    """
    groups: dict[object, list[int]] = {}
    for i, inputs in calls.items():
        key = tuple(sorted((name, a.shape[1:]) for name, a in inputs.items())) if batched else i
        groups.setdefault(key, []).append(i)
    yield from groups.values()
