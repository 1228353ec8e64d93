"""Inference engines that a GPU host may have, as calls that ``bench_gpu.py`` can time."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from bench_gpu_measure import Call, Outputs
from bench_gpu_parts import SEED, Piece
from torch import Tensor

from medvl.contracts.errors import BuildError, SetupError
from medvl.contracts.models import MODELS
from medvl.export.engine_options import EngineOptions
from medvl.export.parts import Part
from medvl.export.samples import Samples

ONNXRUNTIME, TENSORRT = "onnxruntime", "tensorrt"
ENGINES = (ONNXRUNTIME, TENSORRT)
_PROVIDERS = {"cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}), "cpu": ("CPUExecutionProvider", {})}


class EngineMissing(Exception):
    """An engine that this machine lacks."""


@dataclass
class Engines:
    """Builds the engine of a network once, by the builders of ``medvl-export``, and gives calls of it."""

    _built: dict[tuple[str, str], Any] = field(default_factory=dict)

    def call(self, engine: str, piece: Piece, inputs: Sequence[Tensor], device: torch.device) -> Call:
        """Return a call on given inputs, in C order, FP32 without TF32; the caller keeps the inputs."""
        key = (engine, piece.name)
        if key not in self._built:
            self._built[key] = _build(engine, _part(piece), device)
        run = _onnxruntime if engine == ONNXRUNTIME else _tensorrt
        return run(_part(piece), self._built[key], tuple(inputs), device)


def check(engine: str, device: torch.device) -> None:
    """Check that an engine can run on a device.

    Raises
    ------
    EngineMissing
        With what is missing.
    """
    needed = ("onnx", "onnxscript", "onnxruntime", *(("tensorrt",) if engine == TENSORRT else ()))
    if missing := [name for name in needed if find_spec(name) is None]:
        raise EngineMissing(f"not installed: {', '.join(missing)}")
    if engine == TENSORRT and device.type != "cuda":
        raise EngineMissing("TensorRT needs a GPU")
    provider = _PROVIDERS[device.type][0]
    if engine == ONNXRUNTIME and provider not in import_module("onnxruntime").get_available_providers():
        raise EngineMissing(f"this onnxruntime has no {provider}")


def _part(piece: Piece) -> Part:
    assert piece.model is not None
    return Part(MODELS[piece.model], piece.module, piece.static)


def _build(engine: str, part: Part, device: torch.device) -> Any:  # noqa: ANN401 - a session or an engine
    # Programs are traced where their samples are made.
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(mode=False):
        traced = Part(part.model, copy.deepcopy(part.module).cpu(), part.static)
        if engine == ONNXRUNTIME:
            return _session(traced, Path(folder), device)
        return _engine(traced, Path(folder))


def _session(part: Part, folder: Path, device: torch.device) -> Any:  # noqa: ANN401
    from medvl.export.onnx_builder import OnnxBuilder  # noqa: PLC0415 - brings a library that a GPU host need not have

    path = OnnxBuilder().build(part, Samples(SEED), folder)
    return import_module("onnxruntime").InferenceSession(str(path), providers=[_PROVIDERS[device.type]])


def _engine(part: Part, folder: Path) -> Any:  # noqa: ANN401
    from medvl.export.tensorrt_builder import tensorrt_builder  # noqa: PLC0415 - as above

    trt = import_module("tensorrt")
    try:
        builder = tensorrt_builder(EngineOptions(precision="fp32"), folder / "timing-cache")
        plan = builder.build(part, Samples(SEED), folder).read_bytes()
    except (SetupError, BuildError) as error:
        raise EngineMissing(str(error)) from None
    return trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(plan)


def _onnxruntime(part: Part, session: Any, inputs: Outputs, device: torch.device) -> Call:  # noqa: ANN401
    binding, outputs = session.io_binding(), _outputs(part, inputs, device)
    for specs, tensors, bind in (
        (part.model.inputs, inputs, binding.bind_input),
        (part.model.outputs, outputs, binding.bind_output),
    ):
        for spec, tensor in zip(specs, tensors, strict=True):
            bind(spec.name, device.type, 0, spec.dtype.numpy, tuple(tensor.shape), tensor.data_ptr())

    def call() -> Outputs:
        # It runs on a stream of its own and waits for it, so that torch's events around it see all of it.
        session.run_with_iobinding(binding)
        return outputs

    return call


def _tensorrt(part: Part, engine: Any, inputs: Outputs, device: torch.device) -> Call:  # noqa: ANN401
    context, outputs = engine.create_execution_context(), _outputs(part, inputs, device)
    for spec, tensor in zip(part.model.inputs, inputs, strict=True):
        if not context.set_input_shape(spec.name, tuple(tensor.shape)):
            raise ValueError("the plan's profile ends at a smaller batch")
    for spec, tensor in zip((*part.model.inputs, *part.model.outputs), (*inputs, *outputs), strict=True):
        context.set_tensor_address(spec.name, tensor.data_ptr())

    def call() -> Outputs:
        context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
        return outputs

    return call


def _outputs(part: Part, inputs: Outputs, device: torch.device) -> Outputs:
    """Return tensors for what the reference puts out at these inputs."""
    with torch.inference_mode():
        made = part.module(*inputs)
    return tuple(
        torch.empty_like(o, device=device).contiguous() for o in (made if isinstance(made, tuple) else (made,))
    )
