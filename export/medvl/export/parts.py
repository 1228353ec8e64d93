"""The networks of a checkpoint as parts to build: the torch reference, its contract and its dynamic axes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from medvl.contracts.checkpoint import load_checkpoint
from medvl.contracts.models import MODELS, ModelSpec
from medvl.contracts.tensors import TensorSpec
from medvl.export.samples import BATCH, Arrays, Sizes
from medvl.network.modules import Modules


@dataclass(frozen=True, slots=True)
class AxisRange:
    """Lengths that a dynamic axis takes."""

    smallest: int
    usual: int
    largest: int


_RANGES = {
    "N": AxisRange(1, 2, 16),
    "P": AxisRange(1, 4, 32),
    "R": AxisRange(1, 7, 16),
    "Q": AxisRange(1, 16, 32),
}
"""Objects, points, memories (6 tracked, the rest conditioning) and object pointers of one call.

What exceeds them is batched or padded by the caller. The exporter was measured to keep parity within them.
"""

_UNEVEN = {BATCH: 3, "N": 3, "P": 5, "R": 2, "Q": 7}
"""Lengths that differ from one another, so that two axes mixed up show."""


@dataclass(frozen=True, slots=True)
class Part:
    """One network model of the contract with the module that defines it."""

    model: ModelSpec
    module: nn.Module
    """Eager FP32 reference in eval mode; positional arguments and results in the order of the contract."""
    static: Sizes
    """Lengths of the named axes that the checkpoint fixes."""
    trained: bool = True
    """Whether masks can be expected: random weights may see no object."""

    @property
    def ranges(self) -> dict[str, AxisRange]:
        """Lengths of the dynamic axes."""
        named = {a for spec in self.model.inputs for a in spec.shape if isinstance(a, str)}
        ranges = {axis: _RANGES[axis] for axis in _RANGES if axis in named}
        if largest := self.model.max_batch_size:
            ranges[BATCH] = AxisRange(1, max(2, largest // 2), largest)
        return ranges

    @property
    def cases(self) -> list[dict[str, int]]:
        """Sizes to compare at: the smallest, the usual ones, and lengths that all differ."""
        ranges = self.ranges
        smallest = {axis: r.smallest for axis, r in ranges.items()}
        # Two rows prove the batch axis as well as eight, whose activations would be the largest of all.
        usual = {axis: 2 if axis == BATCH else r.usual for axis, r in ranges.items()}
        uneven = {axis: _UNEVEN[axis] for axis in ranges}
        return [dict(self.static) | sizes for sizes in (smallest, usual, uneven)]

    def axes(self, spec: TensorSpec) -> tuple[int | str, ...]:
        """Return the axes of a tensor as the graph has it, the batch axis included."""
        return (BATCH, *spec.shape) if self.model.max_batch_size else spec.shape

    def shape(self, spec: TensorSpec, sizes: Sizes) -> tuple[int, ...]:
        """Return the shape of a tensor at given sizes."""
        return tuple(sizes[a] if isinstance(a, str) else a for a in self.axes(spec))

    def dynamic(self, spec: TensorSpec) -> dict[int, str]:
        """Return the names of a tensor's dynamic axes by position."""
        ranges = self.ranges
        return {i: a for i, a in enumerate(self.axes(spec)) if isinstance(a, str) and a in ranges}

    def without_weights(self) -> Part:
        """Return the part without its module: names and lengths."""
        return replace(self, module=nn.Identity())

    @torch.inference_mode()
    def reference(self, inputs: Arrays) -> Arrays:
        """Run the torch reference."""
        outputs = self.module(*(torch.from_numpy(inputs[s.name]) for s in self.model.inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {s.name: o.numpy() for s, o in zip(self.model.outputs, outputs, strict=True)}


def load_parts(folder: Path) -> list[Part]:
    """Return the networks of a checkpoint folder, what one makes before what takes it.

    Raises
    ------
    CheckpointError
        When the folder breaks the contract.
    """
    checkpoint = load_checkpoint(folder)
    modules = Modules.load(folder, checkpoint)
    return [Part(MODELS[name], module, modules.axes, checkpoint.trained) for name, module in modules.networks.items()]
