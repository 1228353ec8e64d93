"""Parts as TensorRT plans, built and run on the host of the GPU that will serve them: the target ``tensorrt``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medvl.contracts.engines import EngineBuilder, EngineRecord, Precision
from medvl.contracts.errors import ParityError, SetupError
from medvl.contracts.pbtxt import MODEL_FILES
from medvl.contracts.tensors import DType
from medvl.export.bounded import Limits
from medvl.export.builders import Runner
from medvl.export.engine_job import Binding, EngineFacts, EngineJob, InputShapes, Library, build_engine
from medvl.export.engine_options import EngineOptions
from medvl.export.parts import Part
from medvl.export.program import trace
from medvl.export.samples import Arrays, Samples

_DEVICE = "cuda"
_DTYPES = {
    "FLOAT": DType.FP32,
    "HALF": DType.FP16,
    "INT32": DType.INT32,
    "INT64": DType.INT64,
    "UINT8": DType.UINT8,
}


def tensorrt_builder(options: EngineOptions, timing_cache: Path) -> TensorRtBuilder:
    """Return the builder of plans: that of the precision that is asked for, with FP32 behind FP16.

    Raises
    ------
    SetupError
        Without TensorRT, what the options need besides, or a GPU.
    """
    _trt()
    if options.builder == "torch-tensorrt" and find_spec("torch_tensorrt") is None:
        raise SetupError(
            "The builder torch-tensorrt is not installed on this machine: pip install 'torch-tensorrt>=2.14', or build "
            "with --builder onnx."
        )
    if options.precision == "fp16":
        # Brings onnx, which torch-tensorrt does not need.
        from medvl.export.autocast import require_autocast  # noqa: PLC0415

        require_autocast()
    if not torch.cuda.is_available():
        raise SetupError("This machine has no GPU that torch can use: build TensorRT plans on the host of the GPU.")
    engines: dict[str, EngineRecord] = {}
    fp32 = TensorRtBuilder(options, timing_cache, "fp32", None, engines)
    return fp32 if options.precision == "fp32" else TensorRtBuilder(options, timing_cache, "fp16", fp32, engines)


@dataclass
class TensorRtBuilder:
    """Writes ``model.plan``: without TF32, one optimisation profile over the ranges of the dynamic axes."""

    options: EngineOptions
    timing_cache: Path
    precision: Precision
    fallback: TensorRtBuilder | None
    engines: dict[str, EngineRecord] = field(default_factory=dict)
    library: Library = "tensorrt"

    def build(self, part: Part, samples: Samples, folder: Path) -> Path:
        """Build a part's engine in a process of its own and write it.

        Raises
        ------
        BuildError
            As :func:`medvl.export.engine_job.build_engine`.
        ParityError
            When the parser found other tensors in the graph than the contract's.
        """
        path = folder / MODEL_FILES["tensorrt"]
        with tempfile.TemporaryDirectory() as temporary:
            scratch = Path(temporary)
            source = write_source(part, samples, self.options.builder, scratch)
            job = engine_job(
                part,
                samples,
                source,
                path,
                scratch=scratch,
                library=self.library,
                options=self.options,
                precision=self.precision,
            ).model_copy(update={"timing_cache": self.timing_cache})
            facts = build_engine(job, Limits(self.options.time_limit_s, self.options.memory_limit_gib))
        check_facts(part, facts)
        self.engines[part.model.name] = EngineRecord(
            precision=self.precision,
            layers=facts.layers,
            profile={axis: (r.smallest, r.usual, r.largest) for axis, r in part.ranges.items()},
            graph_sha256=facts.graph_sha256,
        )
        return path

    def load(self, part: Part, path: Path) -> Runner:
        """Deserialise an engine and check its bindings and its profile."""
        trt = _trt()
        runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        # A version-compatible plan carries a runtime of its own, which is code; it was written a moment ago.
        runtime.engine_host_code_allowed = self.options.version_compatible
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise ParityError(f"TensorRT does not load the plan that it built for {part.model.name}.")
        check_engine(part, engine, trt.TensorIOMode.INPUT)
        context = engine.create_execution_context()
        return lambda inputs: _run(part, context, inputs)


def write_source(part: Part, samples: Samples, builder: EngineBuilder, folder: Path) -> Path:
    """Write what a builder takes, an ONNX graph or an exported program, in FP32; return its path."""
    if builder == "onnx":
        # Brings onnxruntime, which torch-tensorrt does not need.
        from medvl.export.onnx_builder import OnnxBuilder  # noqa: PLC0415

        return OnnxBuilder().build(part, samples, folder)
    path = folder / "program.pt2"
    torch.export.save(trace(part, samples).exported, path)
    return path


def engine_job(
    part: Part,
    samples: Samples,
    source: Path,
    engine: Path,
    *,
    scratch: Path,
    library: Library,
    options: EngineOptions,
    precision: Precision,
) -> EngineJob:
    """Return the job that builds a part's engine.

    Parameters
    ----------
    part
        Gives names, types and the profile.
    samples
        Gives the values that FP16 has to hold.
    source, engine
        What :func:`write_source` wrote, and the file to write.
    scratch
        Folder for those values, which has to last as long as the job.
    library
        The module that builds.
    options
        The builder, and whether the engine is to be version-compatible.
    precision
        Of this engine.
    """
    calibration = None
    if precision == "fp16":
        calibration = scratch / "calibration.npz"
        arrays: dict[str, Any] = samples.draw(part.model, part.cases[0])
        np.savez(calibration, **arrays)
    return EngineJob(
        model=part.model.name,
        library=library,
        builder=options.builder,
        source=source,
        engine=engine,
        inputs=tuple(_input_shapes(part)),
        outputs=tuple(s.name for s in part.model.outputs),
        precision=precision,
        calibration=calibration,
        version_compatible=options.version_compatible,
    )


def _input_shapes(part: Part) -> Iterator[InputShapes]:
    """Yield the shapes of every input at the smallest, the usual and the largest lengths."""
    ranges = part.ranges
    smallest, usual, largest = (
        {**part.static, **{axis: getattr(r, size) for axis, r in ranges.items()}}
        for size in ("smallest", "usual", "largest")
    )
    for spec in part.model.inputs:
        yield InputShapes(
            name=spec.name,
            dtype=spec.dtype.numpy.name,
            smallest=part.shape(spec, smallest),
            usual=part.shape(spec, usual),
            largest=part.shape(spec, largest),
        )


def check_facts(part: Part, facts: EngineFacts) -> None:
    """Compare the tensors that a parser found with the contract.

    Raises
    ------
    ParityError
        Naming both.
    """
    if facts.bindings is not None:
        _compare(part, facts.bindings)


def check_engine(part: Part, engine: Any, input_mode: Any) -> None:  # noqa: ANN401 - tensorrt.ICudaEngine
    """Compare the bindings and the profile of an engine with the contract.

    Parameters
    ----------
    part
        Gives names, types and shapes.
    engine
        Deserialised.
    input_mode
        ``tensorrt.TensorIOMode.INPUT``.

    Raises
    ------
    ParityError
        Naming what was expected and what was found.
    """
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    bindings = [
        Binding(
            name=name,
            input=engine.get_tensor_mode(name) == input_mode,
            dtype=engine.get_tensor_dtype(name).name,
            shape=tuple(engine.get_tensor_shape(name)),
        )
        for name in names
    ]
    _compare(part, bindings)
    for tensor in _input_shapes(part):
        found = [tuple(shape) for shape in engine.get_tensor_profile_shape(tensor.name, 0)]
        if found != [tensor.smallest, tensor.usual, tensor.largest]:
            raise ParityError(
                f"The plan of {part.model.name} should take {tensor.name} from {list(tensor.smallest)} to "
                f"{list(tensor.largest)}, but its profile goes from {list(found[0])} to {list(found[-1])}."
            )


def _compare(part: Part, bindings: tuple[Binding, ...] | list[Binding]) -> None:
    for is_input, specs in ((True, part.model.inputs), (False, part.model.outputs)):
        found = {b.name: _described(_DTYPES.get(b.dtype), b.shape) for b in bindings if b.input == is_input}
        expected = {}
        for spec in specs:
            dynamic = part.dynamic(spec)
            lengths = [-1 if i in dynamic else part.static.get(str(a), a) for i, a in enumerate(part.axes(spec))]
            expected[spec.name] = _described(spec.dtype, lengths)
        if found != expected:
            raise ParityError(
                f"The plan of {part.model.name} should have the bindings {_listed(expected)}, "
                f"but it has {_listed(found)}."
            )


def _described(dtype: DType | None, shape: Any) -> str:  # noqa: ANN401 - lengths
    return f"{dtype or 'of another type'} {list(shape)}"


def _listed(bindings: dict[str, str]) -> str:
    return ", ".join(f"{name} {what}" for name, what in sorted(bindings.items()))


def _trt() -> Any:  # noqa: ANN401 - a module that this machine need not have
    try:
        return import_module("tensorrt")
    except ImportError:
        raise SetupError(
            "The package tensorrt is not installed on this machine: "
            "pip install '.[tensorrt]' in a checkout of medvl-sam2."
        ) from None


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
