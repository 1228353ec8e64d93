"""FP32 ONNX graphs to typed FP16 graphs by AutoCast, NVIDIA's converter (the extra ``autocast``); needs no GPU.

TensorRT 11 has no FP16 flag: an engine computes in the types that its graph names.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx

from medvl.contracts.errors import SetupError
from medvl.export.samples import Arrays

EXTRA = "autocast"
"""Extra that brings it."""


_MODULES = ("modelopt", "lief", "onnx_graphsurgeon", "onnxslim", "polygraphy", "pynvml")
"""What AutoCast imports besides this project's own libraries."""


def require_autocast() -> None:
    """Check that AutoCast is installed, without importing it.

    Raises
    ------
    SetupError
        Naming what is missing, and what to install.
    """
    if missing := [name for name in _MODULES if find_spec(name) is None]:
        raise SetupError(
            f"FP16 graphs need AutoCast, but {', '.join(missing)} is not installed on this machine: "
            f"pip install '.[{EXTRA}]' in a checkout of medvl-sam2."
        )


@dataclass(frozen=True, slots=True)
class Fp16Graph:
    """A graph that AutoCast wrote."""

    path: Path
    nodes: int
    casts: int
    """Conversions between FP32 and FP16 among them."""


def to_fp16(source: Path, target: Path, calibration: Sequence[Arrays]) -> Fp16Graph:
    """Convert an FP32 graph to FP16 where its values allow; inputs and outputs keep their types.

    Nodes whose weights or values leave the range of FP16 on the calibration inputs stay in FP32.

    Parameters
    ----------
    source
        An ONNX graph without external data.
    target
        File to write; its folder exists.
    calibration
        Inputs by name, one mapping for every set of sizes; shapes and dtypes are those of the graph.

    Raises
    ------
    SetupError
        Without AutoCast; the sentence says what to install.
    """
    require_autocast()
    from modelopt.onnx.autocast import convert_to_mixed_precision  # noqa: PLC0415 - takes seconds

    with tempfile.TemporaryDirectory() as scratch, _quiet():
        untyped, inputs = Path(scratch, source.name), Path(scratch, "calibration")
        onnx.save(_without_shapes(onnx.load(source)), untyped)
        # A folder of files is taken as it is, a single file cut along axes that are taken for the batch.
        inputs.mkdir()
        for i, arrays in enumerate(calibration):
            np.savez(inputs / f"{i}.npz", **arrays)  # type: ignore[arg-type]
        model = convert_to_mixed_precision(
            str(untyped), low_precision_type="fp16", keep_io_types=True, calibration_data=str(inputs)
        )
    target.write_bytes(_without_shapes(model).SerializeToString(deterministic=True))
    return Fp16Graph(target, len(model.graph.node), sum(node.op_type == "Cast" for node in model.graph.node))


def _without_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop the shapes of intermediate values: AutoCast makes constants of lengths that are free."""
    del model.graph.value_info[:]
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what AutoCast says of every node; what it gets wrong, the parity gate finds."""
    loggers = [logging.getLogger(), *(logging.getLogger(n) for n in list(logging.root.manager.loggerDict))]
    noisy = [logger for logger in loggers if logger.name == "root" or logger.name.startswith("modelopt")]
    levels = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)
