"""Tensor specifications: the name, dtype and symbolic shape of everything that crosses a hop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from medvl.contracts.errors import InternalError


class DType(StrEnum):
    """Element type, under its Triton name. Text is UINT8: UTF-8 bytes."""

    FP32 = "FP32"
    FP16 = "FP16"
    INT32 = "INT32"
    INT64 = "INT64"
    UINT8 = "UINT8"

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype that carries it."""
        return np.dtype(_NUMPY[self])


_NUMPY = {DType.FP32: "<f4", DType.FP16: "<f2", DType.INT32: "<i4", DType.INT64: "<i8", DType.UINT8: "u1"}

Axis = int | str


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a model's signature, Triton's batch axis excluded.

    Parameters
    ----------
    name
        Name on the wire, in the ONNX graph, in the TensorRT binding and in ``config.pbtxt``.
    dtype
        Element type.
    shape
        One entry per axis: an ``int`` is a fixed length, a ``str`` names an axis whose length is free but equal
        wherever the same name occurs in one call. The axes are listed in :data:`medvl.contracts.models.AXES`.
    doc
        What the values are: unit, frame, range, before or after the non-linearity.
    optional
        Whether a request may leave it out.
    """

    name: str
    dtype: DType
    shape: tuple[Axis, ...]
    doc: str
    optional: bool = False

    @property
    def dims(self) -> tuple[int, ...]:
        """Triton ``dims``: named axes become -1."""
        return tuple(n if isinstance(n, int) else -1 for n in self.shape)


def check(specs: Iterable[TensorSpec], arrays: Mapping[str, np.ndarray], *, batched: bool) -> dict[str, int]:
    """Check arrays against specifications.

    Parameters
    ----------
    specs
        The inputs or outputs of a model.
    arrays
        Arrays by tensor name.
    batched
        Whether the arrays carry a leading batch axis that the specifications leave out.

    Returns
    -------
    dict[str, int]
        The length bound to every named axis.

    Raises
    ------
    InternalError
        On a missing tensor, a wrong dtype, rank or length, or an axis name bound to two lengths.
    """
    bound: dict[str, int] = {}
    for spec in specs:
        array = arrays.get(spec.name)
        if array is None:
            if spec.optional:
                continue
            raise InternalError(f"Tensor {spec.name} is missing.")
        shape: tuple[Axis, ...] = ("batch", *spec.shape) if batched else spec.shape
        if array.dtype != spec.dtype.numpy or array.ndim != len(shape):
            expected = f"{spec.dtype} [{', '.join(map(str, shape))}]"
            raise InternalError(f"Tensor {spec.name} should be {expected} but is {array.dtype} {list(array.shape)}.")
        for axis, length in zip(shape, array.shape, strict=True):
            want = bound.setdefault(axis, length) if isinstance(axis, str) else axis
            if want != length:
                raise InternalError(f"Axis {axis} of tensor {spec.name} should be {want} but is {length}.")
    return bound
