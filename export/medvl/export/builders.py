"""How a part becomes the file that Triton loads: one interface, whatever the target and the precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, Self

from medvl.contracts.engines import EngineRecord, Precision
from medvl.contracts.manifest import Target
from medvl.export.engine_options import EngineOptions
from medvl.export.parts import Part
from medvl.export.samples import Arrays, Samples

Runner = Callable[[Arrays], Arrays]
"""Runs a built file: inputs by name to outputs by name."""


class Builder(Protocol):
    """Builds the file of one part."""

    @property
    def precision(self) -> Precision:
        """What its files compute in, which decides about their gate."""

    @property
    def fallback(self) -> Self | None:
        """Who builds the parts that this one cannot, or that break its gate."""

    @property
    def engines(self) -> Mapping[str, EngineRecord]:
        """What was built so far, the fallback's included, by model; empty where files are no engines."""

    def build(self, part: Part, samples: Samples, folder: Path) -> Path:
        """Write the file into a version folder and return its path."""

    def load(self, part: Part, path: Path) -> Runner:
        """Load a file as its server would, after checking its names and dtypes against the contract."""


def builder_for(target: Target, options: EngineOptions, timing_cache: Path) -> Builder:
    """Return the builder of a target.

    Parameters
    ----------
    target
        What the networks become.
    options
        How engines are built; without effect on ONNX graphs.
    timing_cache
        File in which TensorRT keeps what it measured from one build to the next; need not exist.

    Raises
    ------
    SetupError
        When this machine lacks what the target needs; the sentence says what to install.
    """
    # Each brings a library that the other's host need not have.
    if target == "cpu":
        from medvl.export.onnx_builder import OnnxBuilder  # noqa: PLC0415

        return OnnxBuilder()
    from medvl.export.tensorrt_builder import tensorrt_builder  # noqa: PLC0415

    return tensorrt_builder(options, timing_cache)
