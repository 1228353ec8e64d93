"""Seeded inputs for the parity gate, at every size that a graph must take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from medvl.contracts.models import ModelSpec
from medvl.contracts.tensors import TensorSpec

BATCH = "batch"
"""Name of Triton's batch axis."""

Sizes = Mapping[str, int]
"""Length of every named axis, :data:`BATCH` included where the model has one."""

Arrays = dict[str, np.ndarray]

_Draw = Callable[[np.random.Generator, tuple[int, ...], Sizes], np.ndarray]


def _hu(rng: np.random.Generator, shape: tuple[int, ...], _: Sizes) -> np.ndarray:
    """Return HU; in FP32 and in place, because a volume at full size is eight million of them."""
    values = rng.standard_normal(shape, np.float32)
    values *= 400.0
    return values.clip(-1024, 3071, out=values)


_DOMAINS: Mapping[str, _Draw] = {
    "volume_hu": _hu,
    "window_hu": lambda rng, shape, _: np.add(rng.uniform(-400.0, 0.0, shape), [0.0, 800.0]),
    "slices": lambda rng, shape, _: rng.integers(0, 256, shape),
    "points": lambda rng, shape, sizes: rng.uniform(0.0, 4 * sizes["f_4"], shape),
    "labels": lambda rng, shape, _: rng.choice([1, 0, 2, 3, -1, -2], shape),
    "bank_row": lambda rng, shape, _: rng.integers(0, 7, shape),
    "bank_distance": lambda rng, shape, _: rng.uniform(-4.0, 4.0, shape),
}
"""How the values of an input lie, by name; flags are 0 or 1, the rest is standard normal."""

_SOURCES = {"bank_memory": "memory", "bank_pointer": "object_pointer"}
"""Inputs that are another part's output under another name."""


@dataclass
class Samples:
    """Draws the inputs of one part after another; what a part put out feeds the parts that take it.

    Features of noise would leave a decoder with no object to see, so inputs that another part makes are drawn from
    what it made.
    """

    seed: int
    made: Arrays = field(default_factory=dict)
    """What :meth:`keep` was given."""

    def draw(self, model: ModelSpec, sizes: Sizes) -> Arrays:
        """Return the inputs of a model at given sizes; the same seed, model and sizes give the same values."""
        rng = np.random.default_rng([self.seed, *model.name.encode(), *sizes.values()])
        return {spec.name: self._one(rng, spec, self._shape(model, spec, sizes), sizes) for spec in model.inputs}

    def keep(self, outputs: Arrays) -> None:
        """Remember a part's outputs, rows first, for the parts that take them."""
        self.made |= outputs

    @staticmethod
    def taken(model: ModelSpec) -> frozenset[str]:
        """Return the names of outputs of other parts that a model may take."""
        return frozenset(_SOURCES.get(spec.name, spec.name) for spec in model.inputs)

    @staticmethod
    def _shape(model: ModelSpec, spec: TensorSpec, sizes: Sizes) -> tuple[int, ...]:
        axes = (BATCH, *spec.shape) if model.max_batch_size else spec.shape
        return tuple(sizes[a] if isinstance(a, str) else a for a in axes)

    def _one(self, rng: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...], sizes: Sizes) -> np.ndarray:
        made = self.made.get(_SOURCES.get(spec.name, spec.name))
        if made is not None:
            rows = rng.integers(0, len(made), shape[: len(shape) - made.ndim + 1])
            return made[rows].astype(spec.dtype.numpy)
        if spec.name.endswith("_flag"):
            return rng.integers(0, 2, shape).astype(spec.dtype.numpy)
        draw = _DOMAINS.get(spec.name)
        values = rng.standard_normal(shape) if draw is None else draw(rng, shape, sizes)
        return values.astype(spec.dtype.numpy)
