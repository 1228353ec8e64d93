"""Engines by torch-tensorrt's serialized-engine call, on the host of a GPU."""

from __future__ import annotations

import inspect
from importlib import import_module
from time import perf_counter
from typing import Any

import torch
from torch.export.passes import move_to_device_pass

from medvl.contracts.errors import BuildError
from medvl.export.engine_job import EngineFacts, EngineJob, InputShapes, graph_sha256
from medvl.export.program import quiet

NAMING_VERSION = "2.14"
"""First torch-tensorrt whose serialized-engine call names bindings; read in the call's signature of 2.13 and 2.14."""


def convert(job: EngineJob) -> EngineFacts:
    """Convert an exported program to an FP32 engine without TF32 and write that.

    Raises
    ------
    BuildError
        When this torch-tensorrt cannot name bindings, or cannot convert an operator.
    """
    torch_tensorrt: Any = import_module("torch_tensorrt")
    call = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine
    if "output_binding_names" not in inspect.signature(call).parameters:
        raise BuildError(
            f"torch-tensorrt {torch_tensorrt.__version__} cannot name the bindings of an engine: install "
            f"{NAMING_VERSION} or newer, or build with --builder onnx."
        )
    program = move_to_device_pass(torch.export.load(job.source), "cuda")
    caching = {"timing_cache_path": str(job.timing_cache)} if job.timing_cache else {}
    started_s = perf_counter()
    with quiet():
        engine: bytes = call(
            program,
            arg_inputs=[_input(torch_tensorrt, tensor) for tensor in job.inputs],
            arg_input_binding_names=tuple(tensor.name for tensor in job.inputs),
            output_binding_names=job.outputs if len(job.outputs) > 1 else job.outputs[0],
            require_full_compilation=True,
            disable_tf32=True,
            version_compatible=job.version_compatible,
            **caching,
        )
    build_s = perf_counter() - started_s
    job.engine.write_bytes(engine)
    return EngineFacts(graph_sha256=graph_sha256(job.source), build_s=build_s, engine_bytes=len(engine))


def _input(torch_tensorrt: Any, tensor: InputShapes) -> Any:  # noqa: ANN401 - torch_tensorrt.Input
    dtype = getattr(torch, tensor.dtype)
    if not tensor.dynamic:
        return torch_tensorrt.Input(shape=tensor.usual, dtype=dtype)
    return torch_tensorrt.Input(
        min_shape=tensor.smallest, opt_shape=tensor.usual, max_shape=tensor.largest, dtype=dtype
    )
