"""Engines by TensorRT's own ONNX parser: one code for TensorRT and for TensorRT-RTX, which runs without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

from medvl.contracts.errors import BuildError
from medvl.export.engine_job import Binding, EngineFacts, EngineJob, graph_sha256

Trt = Any
"""The module ``tensorrt`` or ``tensorrt_rtx``, which this machine need not have."""


def parse_and_build(job: EngineJob, graph: Path) -> EngineFacts:
    """Parse a graph, build its engine and write that.

    Every type is the graph's (TensorRT 11 knows no other way), without TF32, with one optimisation profile.

    Parameters
    ----------
    job
        What to build and how.
    graph
        Typed ONNX graph, in the place of ``job.source``.

    Raises
    ------
    BuildError
        When the parser refuses a node, which is named, or the builder finds no engine.
    """
    trt: Trt = import_module(job.library)
    said: list[str] = []
    logger = _logger(trt, said)
    builder = trt.Builder(logger)
    network = builder.create_network(_typed(trt))
    parser = trt.OnnxParser(network, logger)
    started_s = perf_counter()
    if not parser.parse_from_file(str(graph)):
        raise BuildError("; ".join(_refusals(parser)) or "the ONNX parser refuses it without a reason.")
    parsed_s = perf_counter()
    config = _config(trt, builder, job)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BuildError(said[-1] if said else "the builder finds no engine and does not say why.")
    built_s = perf_counter()
    job.engine.write_bytes(memoryview(engine))
    if job.timing_cache:
        job.timing_cache.write_bytes(memoryview(config.get_timing_cache().serialize()))
    return EngineFacts(
        graph_sha256=graph_sha256(graph),
        layers=network.num_layers,
        bindings=tuple(_bindings(network)),
        parse_s=parsed_s - started_s,
        build_s=built_s - parsed_s,
        engine_bytes=engine.nbytes,
    )


def _logger(trt: Trt, said: list[str]) -> Any:  # noqa: ANN401 - tensorrt.ILogger
    """Return a logger that keeps errors, the parser's among them, and drops the rest."""

    def log(_: object, severity: Any, message: str) -> None:  # noqa: ANN401 - tensorrt.ILogger.Severity
        if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
            said.append(message.strip())

    def create(self: Any) -> None:  # noqa: ANN401 - of a class that is not known before
        trt.ILogger.__init__(self)

    return type("Log", (trt.ILogger,), {"__init__": create, "log": log})()


def _typed(trt: Trt) -> int:
    """Return the flags of a network whose types are the graph's; of later versions that is the only kind."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _refusals(parser: Any) -> Iterator[str]:  # noqa: ANN401 - tensorrt.OnnxParser
    """Yield one clause for every node that the parser refuses."""
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        first, *_ = error.desc().splitlines() or [""]
        yield f"operator {error.node_operator() or 'unknown'} (node {error.node_name() or 'unnamed'}): {first}"


def _config(trt: Trt, builder: Any, job: EngineJob) -> Any:  # noqa: ANN401 - tensorrt.IBuilderConfig
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if job.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if job.timing_cache:
        known = job.timing_cache.read_bytes() if job.timing_cache.is_file() else b""
        # What another GPU or version measured is not taken, and overwritten.
        if not config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False):
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    profile = builder.create_optimization_profile()
    for tensor in job.inputs:
        if tensor.dynamic:
            profile.set_shape(tensor.name, tensor.smallest, tensor.usual, tensor.largest)
    config.add_optimization_profile(profile)
    return config


def _bindings(network: Any) -> Iterator[Binding]:  # noqa: ANN401 - tensorrt.INetworkDefinition
    tensors = [(True, network.get_input(i)) for i in range(network.num_inputs)]
    tensors += [(False, network.get_output(i)) for i in range(network.num_outputs)]
    for is_input, tensor in tensors:
        yield Binding(name=tensor.name, input=is_input, dtype=tensor.dtype.name, shape=tuple(tensor.shape))
