"""Tensors between numpy and Triton's Python backend, by DLPack only.

The stub of the embedded Triton (2.51) was built for numpy 1: ``pb_utils.Tensor(name, ndarray)`` yields empty tensors
beside numpy 2 and a string tensor kills it. DLPack works in both directions and needs no torch, and text crosses as
UTF-8 bytes in a UINT8 tensor.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Sequence

import numpy as np
import triton_python_backend_utils as pb_utils

from medvl.contracts.errors import InternalError, InvalidRequest
from medvl.contracts.models import ModelSpec
from medvl.contracts.tensors import check
from medvl.serving.stub import PbRequest, PbResponse, PbTensor

_USED_NAME = b"used_dltensor"
_set_capsule_name = ctypes.pythonapi.PyCapsule_SetName
_set_capsule_name.argtypes = [ctypes.py_object, ctypes.c_char_p]


class _Lent:
    """An array handed to the stub, which marks a consumed capsule by a name of its own ("used_dlpack").

    The DLPack protocol says "used_dltensor"; numpy, whose capsule knows that name only, would print a traceback for
    every tensor that it frees.
    """

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self._capsule: object = None

    def __dlpack__(self, **_: object) -> object:
        self._capsule = self._array.__dlpack__()
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()

    def mark_used(self) -> None:
        """Say in the protocol's words that the memory now belongs to the tensor."""
        _set_capsule_name(self._capsule, _USED_NAME)


def to_array(tensor: PbTensor) -> np.ndarray:
    """Return a tensor in host memory as a read-only view that keeps it alive."""
    return np.from_dlpack(tensor)


def to_tensor(name: str, array: np.ndarray) -> PbTensor:
    """Return an array as a tensor; DLPack hands over writable, C-contiguous memory only, so others are copied."""
    lent = _Lent(np.require(array, requirements=("C_CONTIGUOUS", "WRITEABLE")))
    tensor: PbTensor = pb_utils.Tensor.from_dlpack(name, lent)
    lent.mark_used()
    return tensor


def from_bytes(name: str, data: bytes) -> PbTensor:
    """Return bytes as a UINT8 tensor [n]."""
    return to_tensor(name, np.frombuffer(bytearray(data), dtype=np.uint8))


def request_arrays(request: PbRequest, spec: ModelSpec, lent: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Return a request's tensors as arrays that outlive it, optional ones that are absent left out.

    Those that are ``lent`` are views of the server's memory, to be let go of soon.
    """
    found = ((s.name, pb_utils.get_input_tensor_by_name(request, s.name)) for s in spec.inputs)
    arrays = {name: to_array(tensor) for name, tensor in found if tensor is not None}
    return {name: array if name in lent else array.copy() for name, array in arrays.items()}


def response_arrays(response: PbResponse, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the named tensors of a BLS response as read-only views that keep them alive."""
    return {name: to_array(pb_utils.get_output_tensor_by_name(response, name)) for name in names}


def checked_arrays(request: PbRequest, spec: ModelSpec, lent: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Return a request's tensors as :func:`request_arrays` does, once they fit the model's signature.

    Raises
    ------
    InvalidRequest
        Naming the tensor that is missing, of a wrong dtype or of a wrong shape.
    """
    arrays = request_arrays(request, spec, lent)
    try:
        check(spec.inputs, arrays, batched=False)
    except InternalError as error:
        raise InvalidRequest(str(error)) from None
    return arrays
