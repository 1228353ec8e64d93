"""Requests to Triton as bytes, made so that the event loop goes on meanwhile.

tritonclient and protobuf copy a tensor four times over, and hold Python's global lock for each copy, in whichever
thread: no other task runs then. Here a tensor is copied in short pieces, which ``bytes.join`` puts together without the
lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from medvl.contracts.models import ModelSpec
from medvl.contracts.tensors import TensorSpec, check

Tensors = Mapping[str, NDArray[Any]]
Late = Callable[[], Tensors]
"""Makes inputs that are large, when it is time to send them."""

MAX_REQUEST_BYTES = 2**31 - 1
"""protobuf reads no longer message."""
PIECE_BYTES = 2**20
"""What is copied at once."""

_RAW_KEY = bytes([service_pb2.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2])


def encode(spec: ModelSpec, request_id: str, inputs: Tensors, late: Late = dict) -> bytes:
    """Return a ``ModelInferRequest`` as it crosses the wire.

    Parameters
    ----------
    spec
        The model.
    request_id
        Names the request in Triton.
    inputs, late
        Arrays by tensor name, Triton's batch axis included where the model has one. Of what ``late`` makes nothing but
        the request is kept.

    Raises
    ------
    InternalError
        When a tensor breaks its specification.
    """
    tensors = {**inputs, **late()}
    check(spec.inputs, tensors, batched=spec.max_batch_size > 0)
    pieces = [service_pb2.ModelInferRequest(model_name=spec.name, id=request_id).SerializeToString()]
    for tensor in spec.inputs:
        if tensor.name in tensors:
            pieces += _pieces(tensor, tensors.pop(tensor.name))
    return b"".join(pieces)


def _pieces(tensor: TensorSpec, array: NDArray[Any]) -> Iterator[bytes]:
    """Give the fields of an input; those of a message may follow each other in any number of messages."""
    described = {"name": tensor.name, "datatype": tensor.dtype.value, "shape": array.shape}
    yield service_pb2.ModelInferRequest(inputs=[described]).SerializeToString()
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    yield _RAW_KEY + _varint(raw.size)
    for start in range(0, raw.size, PIECE_BYTES):
        yield raw[start : start + PIECE_BYTES].tobytes()


def _varint(number: int) -> bytes:
    """Return a length as protobuf writes it: seven bits a byte, the lowest first."""
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])
