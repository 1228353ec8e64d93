"""The python-based onnxruntime backend stands in for the C++ one: batching, refusals, and no shared fate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from medvl.contracts import pbtxt
from medvl.contracts.errors import InvalidRequest
from medvl.contracts.models import MODELS
from medvl.orchestrator.calls import Call
from medvl.orchestrator.triton import Triton
from medvl.runtime.ports import free_ports
from medvl.runtime.triton import TritonConfig, TritonServer
from medvl.runtime.triton_home import TritonHome

from ..conftest import in_background  # noqa: TID252 - tests are no installed package

pytestmark = pytest.mark.e2e

WIDTH = 4
BATCHED, WHOLE = "projector", "sam2_memory_encoder"
"""Real names, since the server loads no others, with toy graphs."""


def joining_graph() -> onnx.ModelProto:
    """Return ``vision_tokens`` = both stages one after the other; nothing is told of regions."""
    low = helper.make_tensor_value_info("features_low", TensorProto.FLOAT, ["batch", "low", WIDTH])
    high = helper.make_tensor_value_info("features_high", TensorProto.FLOAT, ["batch", "high", WIDTH])
    regions = helper.make_tensor_value_info("regions", TensorProto.FLOAT, ["batch", "regions", WIDTH])
    tokens = helper.make_tensor_value_info("vision_tokens", TensorProto.FLOAT, ["batch", "tokens", WIDTH])
    join = helper.make_node("Concat", ["features_low", "features_high"], ["vision_tokens"], axis=1)
    return _model(helper.make_graph([join], "join", [low, high, regions], [tokens]))


def adding_graph() -> onnx.ModelProto:
    """Return ``memory`` [N, 1, 1] = object score + mean of f2, for a graph whose inputs have no common first axis."""
    f2 = helper.make_tensor_value_info("f2", TensorProto.FLOAT, [1, WIDTH, 2, 2])
    logits = helper.make_tensor_value_info("mask_logits", TensorProto.FLOAT, ["objects", 1, 8, 8])
    score = helper.make_tensor_value_info("object_score", TensorProto.FLOAT, ["objects", 1])
    memory = helper.make_tensor_value_info("memory", TensorProto.FLOAT, ["objects", 1, 1])
    nodes = [
        helper.make_node("ReduceMean", ["f2"], ["mean"], keepdims=0),
        helper.make_node("ReduceMean", ["mask_logits", "axes"], ["zeros"], keepdims=1),
        helper.make_node("Add", ["object_score", "mean"], ["sum"]),
        helper.make_node("Reshape", ["sum", "shape"], ["flat"]),
        helper.make_node("Reshape", ["zeros", "shape"], ["more"]),
        helper.make_node("Add", ["flat", "more"], ["memory"]),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    shape = helper.make_tensor("shape", TensorProto.INT64, [3], [-1, 1, 1])
    return _model(helper.make_graph(nodes, "add", [f2, logits, score], [memory], [axes, shape]))


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def server(triton_home: TritonHome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("graphs")
    for name, graph in ((BATCHED, joining_graph()), (WHOLE, adding_graph())):
        version = folder / "models" / name / "1"
        version.mkdir(parents=True)
        onnx.save(graph, version / "model.onnx")
        (version.parent / "config.pbtxt").write_text(pbtxt.render(MODELS[name], pbtxt.Profile.CPU), "utf-8")
    grpc_port, metrics_port = free_ports(2)
    log = folder / "triton.log"
    config = TritonConfig(folder / "models", grpc_port, metrics_port, log, models=(BATCHED, WHOLE))
    with in_background(TritonServer(triton_home, config)) as running:
        yield running


@pytest.fixture
async def triton(server: TritonServer) -> AsyncIterator[Triton]:
    async with Triton(server.endpoint, server.config.key) as client:
        yield client


def call() -> Call:
    return Call("test", asyncio.get_running_loop().time() + 20)


def features(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    batch, low = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    shapes = {"features_low": (batch, low, WIDTH), "features_high": (batch, 2, WIDTH), "regions": (batch, 1, WIDTH)}
    return {name: rng.random(shape, dtype=np.float32) for name, shape in shapes.items()}


async def test_every_request_gets_its_own_rows(triton: Triton):
    """Requests of mixed sizes, as many at once as the queue takes: each gets its rows, in their order."""
    for wave in range(3):
        asked = [features(24 * wave + i) for i in range(24)]
        answers = await asyncio.gather(*(triton.infer(BATCHED, inputs, call()) for inputs in asked))
        for inputs, answer in zip(asked, answers, strict=True):
            joined = np.concatenate([inputs["features_low"], inputs["features_high"]], axis=1)
            assert np.array_equal(answer["vision_tokens"], joined)


async def test_a_graph_without_a_batch_axis_is_run_whole(triton: Triton):
    """Inputs whose first axes differ arrive as they were sent."""
    rng = np.random.default_rng(0)
    inputs = {
        "f2": rng.random((1, WIDTH, 2, 2), dtype=np.float32),
        "mask_logits": np.zeros((3, 1, 8, 8), np.float32),
        "object_score": rng.random((3, 1), dtype=np.float32),
    }
    answers = await asyncio.gather(*(triton.infer(WHOLE, inputs, call()) for _ in range(8)))
    expected = inputs["object_score"][:, :, None] + inputs["f2"].mean()
    assert all(np.allclose(answer["memory"], expected) for answer in answers)


async def test_a_bad_request_fails_alone(triton: Triton):
    """A request that does not fit the graph is refused by name, and its neighbours are answered."""
    good = [asyncio.create_task(triton.infer(BATCHED, features(seed), call())) for seed in range(8)]
    bad = features(0) | {"features_low": np.zeros((1, 2, WIDTH + 1), np.float32)}
    bad |= {name: bad[name][:1] for name in ("features_high", "regions")}
    with pytest.raises(InvalidRequest, match="features_low"):
        await triton.infer(BATCHED, bad, call())
    assert len(await asyncio.gather(*good)) == 8
