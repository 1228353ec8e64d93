"""Triton behind its contract: calls of the models in :data:`medvl.contracts.models.MODELS`, errors of our own tree.

Every call carries the time that is left, and ends on Triton's side when it is cancelled here.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from numpy.typing import NDArray
from tritonclient.grpc import InferResult, service_pb2, service_pb2_grpc

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
from medvl.orchestrator.encoding import PIECE_BYTES, Late, Tensors, encode

_SERVICE = "/inference.GRPCInferenceService"
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
        self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        # These two take a request that is bytes already.
        self._infer = self._channel.unary_unary(
            f"{_SERVICE}/ModelInfer",
            request_serializer=None,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        self._stream = self._channel.stream_stream(
            f"{_SERVICE}/ModelStreamInfer",
            request_serializer=None,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )
        self._headers = ((f"triton-grpc-protocol-{key.name}", key.secret.get_secret_value()),) if key else ()
        self._writing_large = asyncio.Lock()
        self._last_answer_s: dict[str, float] = {}
        self._known: Served | None = None
        self._replaced = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._channel.close(None)

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
            metadata = await self._stub.ServerMetadata(
                service_pb2.ServerMetadataRequest(), metadata=self._headers, timeout=timeout_s
            )
            answers = await asyncio.gather(*(self._config(name, timeout_s) for name in MODELS))
        except grpc.aio.AioRpcError as error:
            raise _from_rpc(error) from None
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
        except grpc.aio.AioRpcError as error:
            raise _from_rpc(error) from None
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
            response = await self._infer(
                await _encoded(spec, inputs, call), metadata=self._headers, timeout=call.remaining_s()
            )
        except grpc.aio.AioRpcError as error:
            raise _from_rpc(error) from None
        self._note_answer(spec)
        outputs = _from_wire(spec, response)
        check(spec.outputs, outputs, batched=spec.max_batch_size > 0)
        return outputs

    async def stream(
        self, model: str, inputs: Tensors, call: Call, late: Late | None = None
    ) -> AsyncGenerator[dict[str, NDArray[Any]], None]:
        """Call a decoupled model; close the iterator (``contextlib.aclosing``) to cancel it on the server.

        After the last response hear it out: Triton 2.51 dies of one in some hundred that are cancelled while they end
        (https://github.com/triton-inference-server/server/issues/8034).

        Parameters
        ----------
        model
            Name in ``MODELS``.
        inputs
            Arrays by tensor name.
        late
            Makes further inputs that are large, which counts as the stage ``preprocess``. One call at a time does so
            and writes them, and keeps nothing of them then.

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
        async with AsyncExitStack() as until_written:
            if late is not None:
                await until_written.enter_async_context(self._writing_large)
            request = [await _encoded(spec, inputs, call, late)]
            responses = self._stream(_once(request, until_written), metadata=self._headers, timeout=call.remaining_s())
            refusal: MedvlError | None = None
            try:
                async for response in responses:
                    if response.error_message:
                        refusal = from_triton_text(response.error_message)
                        continue
                    self._note_answer(spec)
                    outputs = _from_wire(spec, response.infer_response)
                    check((s for s in spec.outputs if s.name in outputs), outputs, batched=False)
                    yield outputs
            except grpc.aio.AioRpcError as error:
                if refusal is None:
                    # gRPC calls it an internal error when a deadline passes while a request is being written.
                    call.remaining_s()
                    raise _from_rpc(error) from None
            finally:
                responses.cancel()
        if refusal is not None:
            raise refusal

    def _note_answer(self, spec: ModelSpec) -> None:
        """Note that a model has answered and, if it is an ensemble, that its steps have."""
        now_s = asyncio.get_running_loop().time()
        self._last_answer_s.update(dict.fromkeys((spec.name, *(step.model for step in spec.steps)), now_s))

    async def _config(self, model: str, timeout_s: float) -> Any:  # noqa: ANN401  (generated message without types)
        request = service_pb2.ModelConfigRequest(name=model)
        response = await self._stub.ModelConfig(request, metadata=self._headers, timeout=timeout_s)
        return response.config

    def _callable(self, model: str) -> ModelSpec:
        if self._replaced:
            raise _others()
        return MODELS[model]


async def _once(request: list[bytes], until_written: AsyncExitStack) -> AsyncIterator[bytes]:
    """Give a request away; gRPC asks for another when it has written this one."""
    yield request.pop()
    await until_written.aclose()


async def _encoded(spec: ModelSpec, inputs: Tensors, call: Call, late: Late | None = None) -> bytes:
    """Return a request, made in a thread where that takes long."""
    if late is not None:
        with call.stages.measure("preprocess"):
            return await asyncio.to_thread(encode, spec, call.request_id, inputs, late)
    if sum(array.nbytes for array in inputs.values()) > PIECE_BYTES:
        return await asyncio.to_thread(encode, spec, call.request_id, inputs)
    return encode(spec, call.request_id, inputs)


def _from_wire(spec: ModelSpec, response: Any) -> dict[str, NDArray[Any]]:  # noqa: ANN401  (as above)
    result = InferResult(response)
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


def _from_rpc(failure: grpc.aio.AioRpcError) -> MedvlError:
    """Return the error that a text of Triton means or, where nobody knows the text, its code."""
    error = from_triton_text(failure.details() or "")
    if type(error) is not InternalError:
        return error
    match failure.code():
        case grpc.StatusCode.UNAVAILABLE:
            return BackendUnavailable("The inference server cannot be reached: try again later.")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded("The deadline passed before a model had answered: allow more time.")
        case grpc.StatusCode.CANCELLED:
            return RequestCancelled("The request was cancelled.")
        case _:
            return error
