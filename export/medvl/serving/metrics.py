"""Custom metrics of Python models, on Triton's own Prometheus endpoint."""

from __future__ import annotations

import triton_python_backend_utils as pb_utils


class Counter:
    """A counter labelled with the model's name."""

    def __init__(self, name: str, description: str, model: str) -> None:
        # The family must live as long as its metric.
        self._family = pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.COUNTER)
        self._metric = self._family.Metric(labels={"model": model})

    def increment(self) -> None:
        """Count one."""
        self._metric.increment(1)

    def close(self) -> None:
        """Free the metric; freeing one after the stub has begun to end kills the stub."""
        del self._metric, self._family
