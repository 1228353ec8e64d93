"""Calls from one model to another inside Triton (business logic scripting), by the contract's names."""

from __future__ import annotations

import numpy as np
import triton_python_backend_utils as pb_utils

from medvl.contracts.faults import from_triton_text
from medvl.contracts.models import MODELS
from medvl.serving.stub import PbResponse
from medvl.serving.tensors import response_arrays, to_tensor

Arrays = dict[str, np.ndarray]
"""Tensors by name."""


async def infer(model: str, inputs: Arrays) -> Arrays:
    """Call a model and return its outputs as read-only views of Triton's memory, which they keep alive.

    Raises
    ------
    MedvlError
        What the model said.
    """
    names = [spec.name for spec in MODELS[model].outputs]
    request = pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=names,
        inputs=[to_tensor(name, array) for name, array in inputs.items()],
        # The caller computes on the host, also where the model runs on a GPU.
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
    )
    response: PbResponse = await request.async_exec()
    if response.has_error():
        raise from_triton_text(response.error().message())
    return response_arrays(response, names)


async def infer_batch(model: str, inputs: Arrays) -> Arrays:
    """Call a model with a batch axis, in as many calls as its largest batch asks for."""
    limit = MODELS[model].max_batch_size
    count = len(next(iter(inputs.values())))
    parts = [
        await infer(model, {name: array[i : i + limit] for name, array in inputs.items()})
        for i in range(0, count, limit)
    ]
    return parts[0] if len(parts) == 1 else {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
