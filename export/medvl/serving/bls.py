"""Calls from one model to another inside Triton (business logic scripting), by the contract's names."""

from __future__ import annotations

import triton_python_backend_utils as pb_utils

from medvl.contracts.faults import from_triton_text
from medvl.contracts.models import MODELS
from medvl.serving.stub import PbResponse
from medvl.serving.tensors import response_arrays, to_tensor
from medvl.serving.triton_steps import Arrays


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
