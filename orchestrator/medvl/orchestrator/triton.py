"""Triton behind its contract: calls of the models in :data:`medvl.contracts.models.MODELS`, errors of our own tree.

Every call carries the time that is left, and ends on Triton's side when it is cancelled here.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput, InferResult
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from medvl.contracts.checkpoint import Checkpoint, parse_checkpoint
from medvl.contracts.errors import (
    BackendUnavailable,
    CheckpointError,
    DeadlineExceeded,
    InternalError,
    MedvlError,
    RequestCancelled,
)
from medvl.contracts.faults import from_triton_text
from medvl.contracts.models import CHECKPOINT_PARAMETER, MODELS, QUANTISATION_PARAMETER, ModelSpec
from medvl.contracts.quantisation import Quantisation, parse_quantisation, served_weights
from medvl.contracts.tensors import check
from medvl.orchestrator.calls import Call
from medvl.orchestrator.config import TritonKey

Tensors = Mapping[str, NDArray[Any]]

_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


@dataclass(frozen=True, slots=True)
class Served:
    """What a Triton server serves, as it says itself."""

    checkpoint: Checkpoint
    triton_version: str
    backends: Mapping[str, str]
    """Backend or platform that carries out each model of the repository."""
    quantisation: Quantisation | None = None
    """Of the language model; None where that is the checkpoint's own."""

    def weights(self, model: str) -> str:
        """Return how a model that answers with them names its weights."""
        return served_weights(self.checkpoint, self.quantisation if model == "llm" else None)


class Triton:
    """Client of one Triton server; close it, or use it with ``async with``.

    Another server may take over its address without a call that fails. Once :meth:`confirm` has noticed, no model is
    called until :meth:`served` has been asked again.

    Parameters
    ----------
    address
        ``host:port`` of its gRPC.
    key
        Key of its restricted protocols, when it has one.
    """

    def __init__(self, address: str, key: TritonKey | None = None) -> None:
        self._client = InferenceServerClient(address, channel_args=list(_CHANNEL_OPTIONS))
        self._headers = {f"triton-grpc-protocol-{key.name}": key.secret.get_secret_value()} if key else None
        self._last_answer_s: dict[str, float] = {}
        self._known: Served | None = None
        self._replaced = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.close()

    def last_answer_s(self, model: str) -> float:
        """Return when a model last answered anybody here, in the event loop's time; minus infinity if never."""
        return self._last_answer_s.get(model, -math.inf)

    async def served(self, timeout_s: float) -> Served:
        """Ask the server what it serves.

        Raises
        ------
        BackendUnavailable
            When it does not answer, or has not loaded a model yet.
        CheckpointError
            When its models carry no checkpoint, or two different ones, or say what nobody understands.
        """
        try:
            metadata = await self._client.get_server_metadata(headers=self._headers, client_timeout=timeout_s)
            answers = await asyncio.gather(*(self._config(name, timeout_s) for name in MODELS))
        except InferenceServerException as error:
            raise _from_client(error) from None
        configs = dict(zip(MODELS, answers, strict=True))
        texts = {_parameter(configs[m.name], CHECKPOINT_PARAMETER) for m in MODELS.values() if m.checkpoint}
        if len(texts) != 1:
            raise CheckpointError("The models of this server carry different checkpoints: build the repository again.")
        backends = {name: config.backend or config.platform for name, config in configs.items()}
        quantisation = _quantisation(configs["llm"])
        self._known = Served(parse_checkpoint(texts.pop()), metadata.version, backends, quantisation)
        self._replaced = False
        return self._known

    def confirm(self, served: Served, model: str, weights: str) -> None:
        """Check that an answer is of what is served, by the weights that the model names at its end.

        Raises
        ------
        BackendUnavailable
            When it is of something else.
        """
        if self._known is not None and weights != self._known.weights(model):
            self._replaced = True
        if weights != served.weights(model):
            raise _others()

    async def ask_again(self, served: Served, call: Call) -> None:
        """Ask the server whether it is still what is served, after an answer of a network, which names no weights.

        It costs a call for one model's configuration, which carries the checkpoint.

        Raises
        ------
        BackendUnavailable
            When it tells something else, or what nobody understands: the answer may be of the one or the other.
        MedvlError
            As :meth:`infer`.
        """
        try:
            config = await self._config("llm", call.remaining_s())
            told = served_weights(parse_checkpoint(_parameter(config, CHECKPOINT_PARAMETER)), _quantisation(config))
        except InferenceServerException as error:
            raise _from_client(error) from None
        except CheckpointError:
            self._replaced = True
            raise _others() from None
        self.confirm(served, "llm", told)

    async def infer(self, model: str, inputs: Tensors, call: Call) -> dict[str, NDArray[Any]]:
        """Call a model that answers once.

        Parameters
        ----------
        model
            Name in ``MODELS``.
        inputs
            Arrays by tensor name, Triton's batch axis included where the model has one.

        Returns
        -------
        dict[str, NDArray]
            Every output of the model, read-only, batch axis included.

        Raises
        ------
        MedvlError
            What the model says went wrong; BackendUnavailable when it does not answer; InternalError when a tensor
            breaks its specification.
        """
        spec = self._callable(model)
        try:
            result = await self._client.infer(
                model,
                _to_wire(spec, inputs),
                request_id=call.request_id,
                client_timeout=call.remaining_s(),
                headers=self._headers,
            )
        except InferenceServerException as error:
            raise _from_client(error) from None
        self._note_answer(spec)
        outputs = _from_wire(spec, result)
        check(spec.outputs, outputs, batched=spec.max_batch_size > 0)
        return outputs

    async def stream(self, model: str, inputs: Tensors, call: Call) -> AsyncGenerator[dict[str, NDArray[Any]], None]:
        """Call a decoupled model; close the iterator (``contextlib.aclosing``) to cancel it on the server.

        After the last response hear it out: Triton 2.51 dies of one in some hundred that are cancelled while they end
        (https://github.com/triton-inference-server/server/issues/8034).

        Yields
        ------
        dict[str, NDArray]
            The outputs that each response holds; a response may leave outputs out.

        Raises
        ------
        MedvlError
            As :meth:`infer`.
        """
        spec = self._callable(model)
        request = {"model_name": model, "inputs": _to_wire(spec, inputs), "request_id": call.request_id}
        responses = self._client.stream_infer(_once(request), stream_timeout=call.remaining_s(), headers=self._headers)
        refusal: MedvlError | None = None
        try:
            async for result, error in responses:
                if error is not None:
                    refusal = from_triton_text(str(error))
                    continue
                self._note_answer(spec)
                outputs = _from_wire(spec, result)
                check((s for s in spec.outputs if s.name in outputs), outputs, batched=False)
                yield outputs
        except grpc.RpcError as error:
            if refusal is None:
                # gRPC calls it an internal error when a deadline passes while a request is being written.
                call.remaining_s()
                raise _from_code(str(error.code()), error.details() or "") from None
        finally:
            responses.cancel()
        if refusal is not None:
            raise refusal

    def _note_answer(self, spec: ModelSpec) -> None:
        """Note that a model has answered and, if it is an ensemble, that its steps have."""
        now_s = asyncio.get_running_loop().time()
        self._last_answer_s.update(dict.fromkeys((spec.name, *(step.model for step in spec.steps)), now_s))

    async def _config(self, model: str, timeout_s: float) -> Any:  # noqa: ANN401  (generated message without types)
        response = await self._client.get_model_config(model, headers=self._headers, client_timeout=timeout_s)
        return response.config

    def _callable(self, model: str) -> ModelSpec:
        if self._replaced:
            raise _others()
        return MODELS[model]


async def _once(request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    yield request


def _to_wire(spec: ModelSpec, inputs: Tensors) -> list[InferInput]:
    check(spec.inputs, inputs, batched=spec.max_batch_size > 0)
    wire = []
    for tensor in spec.inputs:
        if tensor.name in inputs:
            array = np.ascontiguousarray(inputs[tensor.name])
            wire.append(InferInput(tensor.name, list(array.shape), tensor.dtype.value).set_data_from_numpy(array))
    return wire


def _from_wire(spec: ModelSpec, result: InferResult) -> dict[str, NDArray[Any]]:
    arrays = {s.name: result.as_numpy(s.name) for s in spec.outputs}
    return {name: array for name, array in arrays.items() if array is not None}


def _parameter(config: Any, name: str) -> str:  # noqa: ANN401  (generated message without types)
    value: str = config.parameters[name].string_value
    return value


def _quantisation(config: Any) -> Quantisation | None:  # noqa: ANN401  (generated message without types)
    told = _parameter(config, QUANTISATION_PARAMETER)
    return parse_quantisation(told) if told else None


def _others() -> BackendUnavailable:
    return BackendUnavailable("The models are others by now: try again.")


def _from_client(error: InferenceServerException) -> MedvlError:
    return _from_code(error.status() or "", error.message() or "")


def _from_code(code: str, text: str) -> MedvlError:
    """Return the error that a text of Triton means or, where nobody knows the text, its code ``StatusCode.NAME``."""
    error = from_triton_text(text)
    if type(error) is not InternalError:
        return error
    match code.removeprefix("StatusCode."):
        case "UNAVAILABLE":
            return BackendUnavailable("The inference server cannot be reached: try again later.")
        case "DEADLINE_EXCEEDED":
            return DeadlineExceeded("The deadline passed before a model had answered: allow more time.")
        case "CANCELLED":
            return RequestCancelled("The request was cancelled.")
        case _:
            return error
