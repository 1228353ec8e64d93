"""How a part becomes the file that Triton loads: one interface, one builder for each target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from medvl.contracts.manifest import Target
from medvl.export.parts import Part
from medvl.export.samples import Arrays, Samples

Runner = Callable[[Arrays], Arrays]
"""Runs a built file: inputs by name to outputs by name."""


class Builder(Protocol):
    """Builds the file of one part."""

    def build(self, part: Part, samples: Samples, folder: Path) -> Path:
        """Write the file into a version folder and return its path."""

    def load(self, part: Part, path: Path) -> Runner:
        """Load a file as its server would, after checking its names and dtypes against the contract."""


def builder_for(target: Target) -> Builder:
    """Return the builder of a target.

    Raises
    ------
    SetupError
        When this machine lacks what the target needs; the sentence says what to install.
    """
    # Each brings a library that the other's host need not have.
    if target == "cpu":
        from medvl.export.onnx_builder import OnnxBuilder  # noqa: PLC0415

        return OnnxBuilder()
    from medvl.export.tensorrt_builder import TensorRtBuilder  # noqa: PLC0415

    return TensorRtBuilder()
