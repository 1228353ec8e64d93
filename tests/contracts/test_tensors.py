"""Tensor specifications bind axes and refuse what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvl.contracts.errors import InternalError
from medvl.contracts.models import AXES, MODELS
from medvl.contracts.tensors import DType, TensorSpec, check

SPECS = (
    TensorSpec("image", DType.FP32, ("N", 2, "S"), "two channels"),
    TensorSpec("mask", DType.UINT8, ("N", "S"), "mask", optional=True),
)


@given(n=st.integers(1, 5), side=st.integers(1, 5), batch=st.integers(1, 3))
def test_named_axes_are_bound(n, side, batch):
    """A call's named axes come back with their lengths, the batch axis included where there is one."""
    image = np.zeros((n, 2, side), np.float32)
    assert check(SPECS, {"image": image}, batched=False) == {"N": n, "S": side}
    batched = np.broadcast_to(image, (batch, *image.shape))
    assert check(SPECS, {"image": batched}, batched=True) == {"batch": batch, "N": n, "S": side}


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({}, "Tensor image is missing."),
        ({"image": np.zeros((3, 2, 4))}, r"Tensor image should be FP32 \[N, 2, S\] but is float64 \[3, 2, 4\]."),
        ({"image": np.zeros((2, 4), np.float32)}, r"Tensor image should be FP32 \[N, 2, S\] but is float32 \[2, 4\]."),
        ({"image": np.zeros((3, 1, 4), np.float32)}, "Axis 2 of tensor image should be 2 but is 1."),
        (
            {"image": np.zeros((3, 2, 4), np.float32), "mask": np.zeros((3, 5), np.uint8)},
            "Axis S of tensor mask should be 4 but is 5.",
        ),
    ],
)
def test_what_does_not_fit_is_named(arrays, sentence):
    """The sentence says which tensor, what was expected and what was found."""
    with pytest.raises(InternalError, match=f"^{sentence}$"):
        check(SPECS, arrays, batched=False)


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda m: m.name)
def test_every_axis_of_every_model_is_explained(model):
    """No tensor of a model uses an axis that the table of axes leaves out."""
    named = {axis for spec in (*model.inputs, *model.outputs) for axis in spec.shape if isinstance(axis, str)}
    assert named <= AXES.keys()


@pytest.mark.parametrize("dtype", DType)
def test_every_element_type_has_a_numpy_type(dtype):
    """Every dtype can be carried by numpy, in little-endian order."""
    assert dtype.numpy.byteorder in "<=|"
    assert dtype.numpy.itemsize * 8 == int("".join(c for c in dtype.value if c.isdigit()))
