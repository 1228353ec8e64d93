"""Requests are what protobuf would have written, though it has no part in the large ones."""

from __future__ import annotations

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from medvl.contracts.errors import InternalError
from medvl.contracts.models import MODELS
from medvl.orchestrator.encoding import PIECE_BYTES, encode

from .fake_triton import tensors

SEGMENTER = MODELS["volume_segmenter"]
REQUEST = {"request": np.frombuffer(b"{}", np.uint8)}


@pytest.mark.parametrize("slices", [0, 1, 2 * PIECE_BYTES // 64, 2 * PIECE_BYTES // 64 + 1])
def test_a_server_reads_what_was_given(slices):
    """In one piece or many, and none of it; of an array that lies otherwise in memory, too."""
    volume = np.random.default_rng(0).integers(0, 256, (8, 8, slices), np.uint8).T
    hidden = np.arange(6, dtype=np.float32).reshape(2, 3)
    message = encode(SEGMENTER, "a1", REQUEST | {"seg_hidden": hidden}, lambda: {"slices": volume})
    request = service_pb2.ModelInferRequest.FromString(message)
    assert (request.model_name, request.id) == ("volume_segmenter", "a1")
    assert [i.datatype for i in request.inputs] == ["UINT8", "UINT8", "FP32"]
    read = tensors(request)
    assert read.keys() == {"request", "slices", "seg_hidden"}
    assert np.array_equal(read["slices"], volume)
    assert np.array_equal(read["seg_hidden"], hidden)


def test_what_is_made_late_keeps_its_specification():
    """As what is given at once."""
    with pytest.raises(InternalError, match="Tensor slices should be"):
        encode(SEGMENTER, "", REQUEST, lambda: {"slices": np.zeros((1, 2, 2), np.float32)})
