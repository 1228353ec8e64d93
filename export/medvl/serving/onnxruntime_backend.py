"""A python-based Triton backend named ``onnxruntime``: the C++ backend's stand-in in the embedded runtime.

It serves ``<version>/model.onnx`` from the same ``config.pbtxt`` as the C++ backend of the NGC image, and takes the
same parameter ``intra_op_thread_count``. The runtime installs it as ``backends/onnxruntime/model.py``. Torch is not
imported: an instance costs a process, and every process would pay for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from medvl.contracts.defects import log_without_words
from medvl.contracts.errors import InvalidRequest, MedvlError
from medvl.serving.graph_inputs import GraphInput, Inputs, check_inputs, shared_calls
from medvl.serving.onnx_session import open_session
from medvl.serving.replies import error_response
from medvl.serving.stub import PbRequest, PbResponse
from medvl.serving.tensors import to_array, to_tensor

THREADS_PARAMETER = "intra_op_thread_count"
THREADS_VARIABLE = "OMP_NUM_THREADS"


def intra_op_threads(config: Mapping[str, Any]) -> int:
    """Return the threads of one graph: the configuration's, else ``OMP_NUM_THREADS``, else one per core (0)."""
    parameter = config.get("parameters", {}).get(THREADS_PARAMETER, {}).get("string_value")
    return int(parameter or os.environ.get(THREADS_VARIABLE) or 0)


@dataclass(frozen=True)
class _Call:
    """One request: its inputs by name and the outputs that it wants."""

    inputs: Inputs
    wanted: tuple[str, ...]


class TritonPythonModel:
    """One instance of one graph."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load ``model.onnx`` of the version that Triton names."""
        log_without_words()
        config = json.loads(args["model_config"])
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        self._session = open_session(path, intra_op_threads(config))
        self._inputs = tuple(GraphInput(i.name, i.type, tuple(i.shape)) for i in self._session.get_inputs())
        self._outputs = tuple(o.name for o in self._session.get_outputs())
        self._batched = config["max_batch_size"] > 0

    def execute(self, requests: Sequence[PbRequest]) -> list[PbResponse]:
        """Answer requests in as few runs of the graph as their shapes allow."""
        responses: dict[int, PbResponse] = {}
        calls: dict[int, _Call] = {}
        for i, request in enumerate(requests):
            try:
                calls[i] = self._read(request)
            except MedvlError as error:
                responses[i] = error_response(error)
        for group in shared_calls({i: call.inputs for i, call in calls.items()}, batched=self._batched):
            responses.update(zip(group, self._answer([calls[i] for i in group]), strict=True))
        return [responses[i] for i in range(len(requests))]

    def _read(self, request: PbRequest) -> _Call:
        tensors = {t.name(): t for t in request.inputs()}
        inputs = {name: to_array(tensor) for name, tensor in tensors.items()}
        check_inputs(self._inputs, inputs)
        wanted = tuple(request.requested_output_names()) or self._outputs
        if unknown := set(wanted) - set(self._outputs):
            raise InvalidRequest(f"The model has no outputs {sorted(unknown)}; it has {list(self._outputs)}.")
        return _Call(inputs, wanted)

    def _answer(self, calls: Sequence[_Call]) -> list[PbResponse]:
        """Run the graph once for calls of equal shapes and give each its share."""
        try:
            outputs = self._run(calls)
        except Exception as error:
            return [error_response(error) for _ in calls]
        shares = _shares(outputs, calls)
        return [
            pb_utils.InferenceResponse([to_tensor(name, share[name]) for name in call.wanted])
            for call, share in zip(calls, shares, strict=True)
        ]

    def _run(self, calls: Sequence[_Call]) -> dict[str, np.ndarray]:
        names = [n for n in self._outputs if any(n in c.wanted for c in calls)]
        feeds = {n: _joined([c.inputs[n] for c in calls]) for n in calls[0].inputs}
        return dict(zip(names, self._session.run(names, feeds), strict=True))


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _shares(outputs: Inputs, calls: Sequence[_Call]) -> list[Inputs]:
    """Return every call's rows of the outputs."""
    if len(calls) == 1:
        return [outputs]
    ends = np.cumsum([len(next(iter(c.inputs.values()))) for c in calls])[:-1]
    split = {name: np.split(array, ends) for name, array in outputs.items()}
    return [{name: rows[i] for name, rows in split.items()} for i in range(len(calls))]
