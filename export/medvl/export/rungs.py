"""The precisions that a part can be run in on one machine: each makes a runner of the part's FP32 graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from medvl.contracts.errors import SetupError
from medvl.export.autocast import require_autocast, to_fp16
from medvl.export.builders import Runner
from medvl.export.engine_options import EngineOptions
from medvl.export.gates import BF16_GATE, FP16_GATE, FP32_GATE, Gate
from medvl.export.parts import Part
from medvl.export.samples import Arrays, Samples
from medvl.serving.onnx_session import open_session

THREADS = 1
"""Of one call, in every runtime: a ratio of times is one of precisions then."""


@dataclass(frozen=True, slots=True)
class Made:
    """A part in one precision."""

    run: Runner
    bytes: int
    """Of the files that it is loaded from."""


@dataclass(frozen=True, slots=True)
class Rung:
    """A precision and what runs it."""

    name: str
    gate: Gate
    require: Callable[[], None]
    """Raises SetupError where this machine lacks what it needs."""
    make: Callable[[Part, Path, Samples, Path], Made]
    """Takes the part, its FP32 graph, its samples and an empty folder."""


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("model.*"))


def _session(part: Part, path: Path) -> Runner:
    session, names = open_session(path, THREADS), [s.name for s in part.model.outputs]

    def run(inputs: Arrays) -> Arrays:
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run


def _onnx(part: Part, graph: Path, _: Samples, __: Path) -> Made:
    return Made(_session(part, graph), _bytes(graph.parent))


def _require_openvino() -> None:
    try:
        import_module("openvino")
    except ImportError:
        raise SetupError(
            "OpenVINO is not installed on this machine: pip install '.[openvino]' in a checkout of medvl-sam2."
        ) from None


def _openvino(part: Part, graph: Path, _: Samples, __: Path) -> Made:
    openvino: Any = import_module("openvino")
    settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": THREADS}
    request = openvino.Core().compile_model(str(graph), "CPU", settings).create_infer_request()

    def run(inputs: Arrays) -> Arrays:
        request.infer(inputs)
        return {s.name: np.array(request.get_tensor(s.name).data) for s in part.model.outputs}

    return Made(run, _bytes(graph.parent))


def _autocast(part: Part, graph: Path, samples: Samples, folder: Path) -> Made:
    made = to_fp16(graph, folder / "model.onnx", [samples.draw(part.model, part.cases[0])])
    return Made(_session(part, made.path), _bytes(folder))


def _require_tensorrt() -> None:
    from medvl.export.builders import builder_for  # noqa: PLC0415 - brings torch's GPU side

    with TemporaryDirectory() as scratch:
        builder_for("tensorrt", EngineOptions(), Path(scratch, "cache"))


def _tensorrt(part: Part, _: Path, samples: Samples, folder: Path) -> Made:
    from medvl.export.builders import builder_for  # noqa: PLC0415 - as above

    builder = builder_for("tensorrt", EngineOptions(), folder / "cache")
    return Made(builder.load(part, builder.build(part, samples, folder)), _bytes(folder))


RUNGS: Sequence[Rung] = (
    Rung("onnxruntime fp32", FP32_GATE, lambda: None, _onnx),
    Rung("openvino bf16", BF16_GATE, _require_openvino, _openvino),
    Rung("autocast fp16", FP16_GATE, require_autocast, _autocast),
    Rung("tensorrt fp16", FP16_GATE, _require_tensorrt, _tensorrt),
)
"""The first is what a CPU serves, and what the others' speed is compared with."""
