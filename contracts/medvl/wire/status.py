"""The one mapping between the error tree and gRPC: a code, ``google.rpc.ErrorInfo`` and ``google.rpc.RetryInfo``.

The status travels as ``google.rpc.Status`` in the trailing metadata ``grpc-status-details-bin``, as
https://google.aip.dev/193 describes it. Both sides use this module, so an error that a server raises is raised again,
as the same class with the same sentence, by its client.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NoReturn, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from medvl.contracts import errors
from medvl.contracts.errors import MedvlError

DOMAIN = "medvl"
"""``ErrorInfo.domain`` of every error of this service."""
DETAILS_KEY = "grpc-status-details-bin"
INTERNAL_SENTENCE = "The server met a defect of its own: repeat the request, and report it if it fails again."
"""What callers read of an error that is not theirs; the cause stays in the server's log."""
DEFAULT_RETRY_S = 1.0
"""Delay told with a passing error that does not know its own, in seconds."""

_CODES: Mapping[type[MedvlError], grpc.StatusCode] = MappingProxyType(
    {
        errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
        errors.SeriesError: grpc.StatusCode.INVALID_ARGUMENT,
        errors.SeriesNotResident: grpc.StatusCode.NOT_FOUND,
        errors.GeometryRefused: grpc.StatusCode.FAILED_PRECONDITION,
        errors.CheckpointError: grpc.StatusCode.FAILED_PRECONDITION,
        errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
        errors.BackendUnavailable: grpc.StatusCode.UNAVAILABLE,
        errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
        errors.RequestCancelled: grpc.StatusCode.CANCELLED,
        MedvlError: grpc.StatusCode.INTERNAL,
    }
)
_PASSING = frozenset({grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE})

_WITHOUT_DETAILS: Mapping[grpc.StatusCode, MedvlError] = MappingProxyType(
    {
        grpc.StatusCode.UNAVAILABLE: errors.BackendUnavailable(
            "No server answers at this endpoint: check the address and that the server runs.",
            retry_after_s=DEFAULT_RETRY_S,
        ),
        grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded(
            "The deadline passed before the answer was complete: allow more time."
        ),
        grpc.StatusCode.CANCELLED: errors.RequestCancelled("The request was cancelled."),
        grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded(
            "The server took no more work or found a message too large: send less, or later."
        ),
        grpc.StatusCode.UNIMPLEMENTED: errors.InvalidRequest(
            "The server at this endpoint does not speak medvl.wire.v1: check the address and its version."
        ),
    }
)


def _subclasses(root: type[MedvlError]) -> Iterator[type[MedvlError]]:
    yield root
    for child in root.__subclasses__():
        yield from _subclasses(child)


_BY_REASON: Mapping[str, type[MedvlError]] = MappingProxyType({c.reason: c for c in _subclasses(MedvlError)})


def code_of(error: Exception) -> grpc.StatusCode:
    """Return the gRPC code of an error: that of its nearest class in the tree, INTERNAL for any other exception."""
    return next((_CODES[c] for c in type(error).__mro__ if c in _CODES), grpc.StatusCode.INTERNAL)


def to_status(error: Exception, request_id: str = "") -> status_pb2.Status:
    """Return the ``google.rpc.Status`` of an error, with a ``google.rpc.RequestInfo`` where a request id is known.

    The sentence of an error that maps to INTERNAL, and of any exception from outside the tree, is replaced by
    :data:`INTERNAL_SENTENCE`: it may hold a backend's words.
    """
    code = code_of(error)
    reason = error.reason if isinstance(error, MedvlError) else errors.InternalError.reason
    status = status_pb2.Status(
        code=code.value[0], message=INTERNAL_SENTENCE if code is grpc.StatusCode.INTERNAL else str(error)
    )
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN))
    if request_id:
        status.details.add().Pack(error_details_pb2.RequestInfo(request_id=request_id))
    delay_s = _retry_after_s(error, code)
    if delay_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(delay_s * 1e9))
        status.details.add().Pack(retry)
    return status


def _retry_after_s(error: Exception, code: grpc.StatusCode) -> float | None:
    told_s = error.retry_after_s if isinstance(error, MedvlError) else None
    return DEFAULT_RETRY_S if told_s is None and code in _PASSING else told_s


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception, request_id: str = "") -> NoReturn:
    """End a call with an error; call it once, from the servicer's outermost frame.

    Parameters
    ----------
    context
        Context of the call.
    error
        What went wrong: an error of the tree, or any other exception, which becomes INTERNAL.
    request_id
        The id under which the server has logged the call.

    Raises
    ------
    grpc.aio.AbortError
        Always; grpc needs it to end the handler.
    """
    status = to_status(error, request_id)
    await context.abort(code_of(error), status.message, ((DETAILS_KEY, status.SerializeToString()),))


def from_rpc_error(error: grpc.aio.AioRpcError) -> MedvlError:
    """Return the error of the tree that a failed call stands for.

    Parameters
    ----------
    error
        What ``grpc.aio`` raised. Without our details (the server was never reached, or a proxy answered) its code
        alone decides.
    """
    status = _details(error)
    found = None if status is None else _with_reason(status)
    if found is not None:
        return found
    plain = _WITHOUT_DETAILS.get(error.code(), errors.InternalError(INTERNAL_SENTENCE))
    return type(plain)(str(plain), retry_after_s=plain.retry_after_s)


def _details(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    # grpc-stubs gives this class the metadata type of the synchronous API.
    metadata = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    packed = dict(metadata).get(DETAILS_KEY)
    if not isinstance(packed, bytes):
        return None
    try:
        return status_pb2.Status.FromString(packed)
    except DecodeError:
        return None


def _with_reason(status: status_pb2.Status) -> MedvlError | None:
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    delay_s: float | None = None
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(retry.DESCRIPTOR):
            detail.Unpack(retry)
            delay_s = retry.retry_delay.ToNanoseconds() / 1e9
    found = _BY_REASON.get(info.reason) if info.domain == DOMAIN else None
    return None if found is None else found(status.message, retry_after_s=delay_s)
