"""How TensorRT engines are to be built, told without importing what builds them."""

from __future__ import annotations

from dataclasses import dataclass

from medvl.contracts.engines import EngineBuilder, Precision
from medvl.contracts.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How TensorRT engines are built.

    Raises
    ------
    InvalidRequest
        When limits are not positive, or FP16 is asked of the builder that has none.
    """

    builder: EngineBuilder = "onnx"
    precision: Precision = "fp16"
    version_compatible: bool = False
    """Whether a newer TensorRT of the same major version is to load them, at some cost in speed."""
    time_limit_s: float = 3600.0
    """Of one engine."""
    memory_limit_gib: float = 32.0
    """Of the process that builds one engine: memory of the host, resident, libraries included."""

    def __post_init__(self) -> None:
        if not (self.time_limit_s > 0 and self.memory_limit_gib > 0):
            raise InvalidRequest("The limits of a build are positive: give other --time-limit-s or --memory-limit-gib.")
        if (self.builder, self.precision) == ("torch-tensorrt", "fp16"):
            raise InvalidRequest(
                "torch-tensorrt's serialized-engine call cannot convert a graph to FP16: give --precision fp32, or "
                "--builder onnx."
            )
