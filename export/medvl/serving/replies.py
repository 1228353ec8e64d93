"""Responses of a decoupled model, and FINAL after the last one, whatever happens.

An exception that leaves a decoupled ``execute`` hangs the client and holds the server's shutdown, so a request is
answered inside :func:`answering`, which turns every exception into an error response and FINAL. Callers get the
sentence of an error of :mod:`medvl.contracts.errors`; what else went wrong stays in the server's log.

FINAL goes alone. A sender is closed as soon as it is given FINAL, also when it fails then, as it does where shared
memory is full (2.51): had it been given tensors together with FINAL, no error could follow, and the caller would wait
for its deadline.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import triton_python_backend_utils as pb_utils

from medvl.contracts.errors import (
    BackendUnavailable,
    InternalError,
    InvalidRequest,
    MedvlError,
    Overloaded,
    RequestCancelled,
    SeriesNotResident,
)
from medvl.contracts.faults import to_triton_text
from medvl.serving.stub import PbResponse, PbSender, PbTensor

log = logging.getLogger(__name__)

_CODES: tuple[tuple[type[MedvlError], str], ...] = (
    (InvalidRequest, "INVALID_ARG"),
    (SeriesNotResident, "NOT_FOUND"),
    (Overloaded, "UNAVAILABLE"),
    (BackendUnavailable, "UNAVAILABLE"),
    (RequestCancelled, "CANCELLED"),
)


def as_medvl_error(error: BaseException) -> MedvlError:
    """Return the error that a caller may see; one that is not ours is logged and becomes :class:`InternalError`."""
    if isinstance(error, MedvlError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return RequestCancelled("The request was cancelled.")
    log.error("a request failed", exc_info=error)
    return InternalError("A model failed in a way that is a defect of the server.")


def error_response(error: BaseException) -> PbResponse:
    """Return the ``pb_utils.InferenceResponse`` that carries an error."""
    known = as_medvl_error(error)
    code = next((name for cls, name in _CODES if isinstance(known, cls)), "INTERNAL")
    triton_code = getattr(pb_utils.TritonError, code)
    response: PbResponse = pb_utils.InferenceResponse(error=pb_utils.TritonError(to_triton_text(known), triton_code))
    return response


class Reply:
    """The responses to one request of a decoupled model."""

    def __init__(self, sender: PbSender) -> None:
        self._sender = sender
        self._closed = False

    @property
    def cancelled(self) -> bool:
        """Whether the caller went away; asks the server, so it costs a message.

        An answered request has no caller: asking after its FINAL ends the server (2.51) with a segmentation fault.
        """
        return not self._closed and bool(self._sender.is_cancelled())

    @property
    def closed(self) -> bool:
        """Whether the answer has ended."""
        return self._closed

    def send(self, tensors: Sequence[PbTensor], *, final: bool = False) -> None:
        """Send one response; ``final`` ends the answer with it.

        Raises
        ------
        Exception
            Triton's own, when the response cannot be sent; the answer has not ended then.
        """
        self._sender.send(pb_utils.InferenceResponse(output_tensors=list(tensors)), flags=0)
        if final:
            self._end()

    def fail(self, error: BaseException) -> None:
        """Send an error as the last response; where not even that can be sent, the answer just ends."""
        try:
            self._sender.send(error_response(error), flags=0)
        except Exception:
            log.exception("an error could not be sent: its caller sees the answer end early")
        self._end()

    def _end(self) -> None:
        self._closed = True
        try:
            self._sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception:
            log.exception("the end of an answer could not be sent: its caller waits for its deadline")


@asynccontextmanager
async def answering(sender: PbSender) -> AsyncIterator[Reply]:
    """Answer one request: an exception inside becomes the last response, and so does forgetting one."""
    reply = Reply(sender)
    try:
        yield reply
        if not reply.closed:
            reply.fail(InternalError("A model gave no answer, which is a defect of the server."))
    except (Exception, asyncio.CancelledError) as error:
        if not reply.closed:
            reply.fail(error)
