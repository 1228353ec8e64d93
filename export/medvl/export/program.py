"""A part as a ``torch.export`` program, from which every target is built."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.export import Dim, ExportedProgram, export

from medvl.export.parts import Part
from medvl.export.samples import Samples


@dataclass(frozen=True, slots=True)
class Program:
    """An exported program and the inputs it was traced with, in the order of the contract."""

    exported: ExportedProgram
    inputs: tuple[torch.Tensor, ...]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch's exporters say about themselves; what they get wrong, the parity gate finds."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def trace(part: Part, samples: Samples) -> Program:
    """Trace a part with its dynamic axes; every other length becomes a constant of the graph."""
    sizes = part.cases[1]
    arrays = samples.draw(part.model, sizes)
    inputs = tuple(torch.from_numpy(arrays[s.name]) for s in part.model.inputs)
    dims = {axis: Dim(axis, min=r.smallest, max=r.largest) for axis, r in part.ranges.items()}
    dynamic = tuple({i: dims[axis] for i, axis in part.dynamic(s).items()} for s in part.model.inputs)
    with quiet(), torch.no_grad():
        exported = export(part.module, inputs, dynamic_shapes=dynamic, strict=False)
    return Program(exported, inputs)
