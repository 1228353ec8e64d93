"""Parts as ONNX graphs, run by onnxruntime: the target ``cpu``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from types import MappingProxyType

import onnx
import onnx_ir
import onnxruntime as ort
import torch
from onnxscript import optimizer
from onnxscript.rewriter import onnx_fusions

from medvl.contracts.engines import EngineRecord, Precision
from medvl.contracts.errors import ParityError
from medvl.contracts.pbtxt import MODEL_FILES
from medvl.contracts.tensors import DType, TensorSpec
from medvl.export.builders import Runner
from medvl.export.onnx_canonical import canonicalise
from medvl.export.parts import Part
from medvl.export.program import quiet, trace
from medvl.export.samples import Arrays, Samples

OPSET = 20
"""Newest opset that the onnxruntime and the TensorRT parser of the serving images both read."""

WEIGHTS_FILE = f"{MODEL_FILES['cpu']}.data"
"""File beside the graph that holds its weights; onnxruntime maps it."""

LARGEST_FOLDED = 512 * 512
"""Elements of a constant that the exporter computes and keeps: what onnxscript does by itself."""

_ELEMENTS = {
    onnx.TensorProto.FLOAT: DType.FP32,
    onnx.TensorProto.FLOAT16: DType.FP16,
    onnx.TensorProto.INT32: DType.INT32,
    onnx.TensorProto.INT64: DType.INT64,
    onnx.TensorProto.UINT8: DType.UINT8,
}


class OnnxBuilder:
    """Writes ``model.onnx``: FP32, static image size, axes named as in the contract."""

    precision: Precision = "fp32"
    fallback = None
    engines: Mapping[str, EngineRecord] = MappingProxyType({})

    def build(self, part: Part, samples: Samples, folder: Path) -> Path:
        """Export a part and write it; equal inputs give equal bytes."""
        program = trace(part, samples)
        with quiet():
            exported = torch.onnx.export(
                program.exported,
                program.inputs,
                dynamo=True,
                opset_version=OPSET,
                input_names=[s.name for s in part.model.inputs],
                output_names=[s.name for s in part.model.outputs],
                verbose=False,
                optimize=False,
            )
            assert exported is not None
            _optimise(exported.model)
        path = folder / MODEL_FILES["cpu"]
        # Weights go from the checkpoint's mapped file to the graph's, one tensor after another. In the graph itself
        # they would be in memory three times, and 2 GB at most.
        onnx_ir.save(exported.model, path, external_data=WEIGHTS_FILE)
        model = onnx.load(path, load_external_data=False)
        _name_axes(model.graph, part)
        canonicalise(model)
        path.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(path)
        return path

    def load(self, part: Part, path: Path) -> Runner:
        """Load a graph into onnxruntime."""
        _check_signature(onnx.load(path, load_external_data=False).graph, part)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [s.name for s in part.model.outputs]

        def run(inputs: Arrays) -> Arrays:
            return dict(zip(names, session.run(names, inputs), strict=True))

        return run


def _optimise(model: onnx_ir.Model) -> None:
    """Do what the exporter does with ``optimize``, and leave out what it tries in vain.

    It folds a constant to see how large it becomes, and keeps the node where that is too large. SAM2's positions are
    enlarged from 7 x 7 to a quarter of the slice: onnx's reference took 466 MB for it at 1024 pixels, twice.
    """
    optimizer.optimize_ir(model, output_size_limit=LARGEST_FOLDED, should_fold=_worth_folding)
    onnx_fusions.fuse(model)


def _worth_folding(node: onnx_ir.Node) -> bool | None:
    """Return False for what would be too large, None where the optimiser is to decide."""
    shape = node.outputs[0].shape if node.op_type == "Resize" else None
    lengths = [length for length in shape or () if isinstance(length, int)]
    return False if shape and len(lengths) == len(shape) and prod(lengths) > LARGEST_FOLDED else None


def _name_axes(graph: onnx.GraphProto, part: Part) -> None:
    """Give the symbols of dynamic axes the contract's names."""
    names = {
        value.type.tensor_type.shape.dim[i].dim_param: axis
        for value, spec in zip(graph.input, part.model.inputs, strict=True)
        for i, axis in part.dynamic(spec).items()
    }
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


def _check_signature(graph: onnx.GraphProto, part: Part) -> None:
    for values, specs in ((graph.input, part.model.inputs), (graph.output, part.model.outputs)):
        found, expected = list(_described(values)), list(_expected(part, specs))
        if found != expected:
            raise ParityError(
                f"The graph of {part.model.name} should have the tensors {'; '.join(expected)}, "
                f"but it has {'; '.join(found)}."
            )


def _described(values: Sequence[onnx.ValueInfoProto]) -> Iterator[str]:
    for value in values:
        tensor = value.type.tensor_type
        dims = ", ".join(d.dim_param or str(d.dim_value) for d in tensor.shape.dim)
        yield f"{value.name} {_ELEMENTS.get(tensor.elem_type, 'other')} [{dims}]"


def _expected(part: Part, specs: Sequence[TensorSpec]) -> Iterator[str]:
    for spec in specs:
        dynamic = part.dynamic(spec)
        dims = (dynamic.get(i) or str(part.static.get(str(a), a)) for i, a in enumerate(part.axes(spec)))
        yield f"{spec.name} {spec.dtype} [{', '.join(dims)}]"
