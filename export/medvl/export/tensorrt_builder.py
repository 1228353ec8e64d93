"""Parts as TensorRT plans, built by torch-tensorrt on the GPU host: the target ``tensorrt``."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export.passes import move_to_device_pass

from medvl.contracts.errors import ParityError, SetupError
from medvl.contracts.pbtxt import MODEL_FILES
from medvl.contracts.tensors import DType, TensorSpec
from medvl.export.builders import Runner
from medvl.export.parts import Part
from medvl.export.program import Program, quiet, trace
from medvl.export.samples import Arrays, Samples, Sizes

_DEVICE = "cuda"
_DTYPES = {"FLOAT": DType.FP32, "HALF": DType.FP16, "INT32": DType.INT32, "INT64": DType.INT64, "UINT8": DType.UINT8}


class TensorRtBuilder:
    """Writes ``model.plan``: FP32 without TF32, one optimisation profile over the ranges of the dynamic axes.

    Raises
    ------
    SetupError
        Without torch-tensorrt, TensorRT or a GPU.
    """

    def __init__(self) -> None:
        self._trt, self._torch_tensorrt = _module("tensorrt"), _module("torch_tensorrt")
        if not torch.cuda.is_available():
            raise SetupError("This machine has no GPU that torch can use: build TensorRT plans on the host of the GPU.")
        self._logger = self._trt.Logger(self._trt.Logger.WARNING)

    def build(self, part: Part, samples: Samples, folder: Path) -> Path:
        """Build a part's engine and write it."""
        engine = self._convert(part, trace(part, samples))
        path = folder / MODEL_FILES["tensorrt"]
        path.write_bytes(engine)
        return path

    def load(self, part: Part, path: Path) -> Runner:
        """Deserialise an engine and check its bindings."""
        engine = self._trt.Runtime(self._logger).deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise ParityError(f"TensorRT does not load the plan that it built for {part.model.name}.")
        self._check_bindings(part, engine)
        context = engine.create_execution_context()
        return lambda inputs: _run(part, context, inputs)

    def _convert(self, part: Part, program: Program) -> bytes:
        convert = self._torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine
        if "output_binding_names" not in inspect.signature(convert).parameters:
            raise SetupError(
                f"torch-tensorrt {self._torch_tensorrt.__version__} cannot name the bindings of an engine: install a "
                "version whose serialized-engine call takes output_binding_names."
            )
        outputs = tuple(s.name for s in part.model.outputs)
        with quiet():
            engine: bytes = convert(
                move_to_device_pass(program.exported, _DEVICE),
                arg_inputs=[self._input(part, s) for s in part.model.inputs],
                arg_input_binding_names=tuple(s.name for s in part.model.inputs),
                output_binding_names=outputs if len(outputs) > 1 else outputs[0],
                require_full_compilation=True,
                disable_tf32=True,
            )
        return engine

    def _input(self, part: Part, spec: TensorSpec) -> Any:  # noqa: ANN401 - torch_tensorrt.Input
        dtype = getattr(torch, spec.dtype.numpy.name)
        if not part.dynamic(spec):
            return self._torch_tensorrt.Input(shape=part.shape(spec, part.static), dtype=dtype)
        smallest, usual, largest = (part.shape(spec, sizes) for sizes in _profile(part))
        return self._torch_tensorrt.Input(min_shape=smallest, opt_shape=usual, max_shape=largest, dtype=dtype)

    def _check_bindings(self, part: Part, engine: Any) -> None:  # noqa: ANN401 - tensorrt.ICudaEngine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        for mode, specs in (
            (self._trt.TensorIOMode.INPUT, part.model.inputs),
            (self._trt.TensorIOMode.OUTPUT, part.model.outputs),
        ):
            found = {n: _DTYPES.get(engine.get_tensor_dtype(n).name) for n in names if modes[n] == mode}
            expected = {s.name: s.dtype for s in specs}
            if found != expected:
                raise ParityError(
                    f"The plan of {part.model.name} should have the bindings {_described(expected)}, "
                    f"but it has {_described(found)}."
                )


def _module(name: str) -> Any:  # noqa: ANN401 - a module that this machine need not have
    try:
        return import_module(name)
    except ImportError:
        raise SetupError(
            f"The package {name} is not installed on this machine: pip install 'medvl-sam2[tensorrt]'."
        ) from None


def _profile(part: Part) -> Sequence[Sizes]:
    """Return the smallest, the usual and the largest sizes."""
    ranges = part.ranges
    return (
        {**part.static, **{axis: r.smallest for axis, r in ranges.items()}},
        {**part.static, **{axis: r.usual for axis, r in ranges.items()}},
        {**part.static, **{axis: r.largest for axis, r in ranges.items()}},
    )


def _run(part: Part, context: Any, inputs: Arrays) -> Arrays:  # noqa: ANN401 - tensorrt.IExecutionContext
    feeds = {name: torch.from_numpy(np.ascontiguousarray(a)).to(_DEVICE) for name, a in inputs.items()}
    for name, tensor in feeds.items():
        context.set_input_shape(name, tuple(tensor.shape))
        context.set_tensor_address(name, tensor.data_ptr())
    outputs = {
        s.name: torch.empty(
            tuple(context.get_tensor_shape(s.name)), dtype=getattr(torch, s.dtype.numpy.name), device=_DEVICE
        )
        for s in part.model.outputs
    }
    for name, tensor in outputs.items():
        context.set_tensor_address(name, tensor.data_ptr())
    stream = torch.cuda.current_stream()
    if not context.execute_async_v3(stream.cuda_stream):
        raise ParityError(f"TensorRT does not run the plan that it built for {part.model.name}.")
    stream.synchronize()
    return {name: tensor.cpu().numpy() for name, tensor in outputs.items()}


def _described(bindings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {dtype or 'of another type'}" for name, dtype in sorted(bindings.items()))
