"""What every call to the service goes through: an id, a deadline, metrics, one log line, one mapping of errors."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import grpc
import grpc.aio

from medvl.contracts.errors import DeadlineExceeded, MedvlError
from medvl.orchestrator.audit import defect, log
from medvl.orchestrator.calls import Call
from medvl.orchestrator.metrics import Metrics
from medvl.wire.status import abort, code_of

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")


class CallRunner:
    """Runs the calls of the service.

    Parameters
    ----------
    metrics
        Where calls are counted.
    default_deadline_s
        For calls that come without a deadline.
    """

    def __init__(self, metrics: Metrics, default_deadline_s: float) -> None:
        self._metrics = metrics
        self._default_deadline_s = default_deadline_s

    async def run(self, method: str, context: Context, work: Callable[[Call], Awaitable[T]]) -> T:
        """Answer one call.

        Parameters
        ----------
        method
            Name of the method of the service.
        context
            Context of the call.
        work
            What answers it.

        Raises
        ------
        grpc.aio.AbortError
            When the work raises: the caller gets the error by :mod:`medvl.wire.status`.
        asyncio.CancelledError
            When the caller goes away.
        """
        call = Call(uuid.uuid4().hex, asyncio.get_running_loop().time() + self._time_s(context))
        self._metrics.begin(method)
        code = grpc.StatusCode.CANCELLED
        failure: Exception | None = None
        try:
            result = await _within_deadline(call, work)
            code = grpc.StatusCode.OK
            return result
        except Exception as error:
            failure = _first(error)
            code = code_of(failure)
            await abort(context, failure, call.request_id)
        finally:
            self._account(method, code, call, failure)

    def _time_s(self, context: Context) -> float:
        # grpc-stubs leaves out that a call may have no deadline.
        remaining_s = cast("float | None", context.time_remaining())
        return self._default_deadline_s if remaining_s is None else remaining_s

    def _account(self, method: str, code: grpc.StatusCode, call: Call, failure: Exception | None) -> None:
        stages_ms = call.stages.as_dict()
        self._metrics.end(method, code.name, stages_ms)
        for usage in call.usages:
            self._metrics.tokens(usage.prompt_tokens, usage.completion_tokens)
        fields: dict[str, Any] = {
            "request_id": call.request_id,
            "method": method,
            "code": code.name,
            "stages_ms": {stage: round(ms, 2) for stage, ms in stages_ms.items()},
        }
        if isinstance(failure, MedvlError):
            self._metrics.refused(failure.reason)
            log().info("call", **fields, reason=failure.reason)
        elif failure is not None:
            log().error("call", **fields, **defect(failure))
        else:
            log().info("call", **fields)


async def _within_deadline(call: Call, work: Callable[[Call], Awaitable[T]]) -> T:
    try:
        async with asyncio.timeout_at(call.deadline_s) as limit:
            with call.stages.measure("total"):
                return await work(call)
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceeded("The deadline passed before the answer was complete: allow more time.") from None


def _first(error: Exception) -> Exception:
    """Return the error that ended a group of tasks: one of ours before a defect, the earliest first."""
    if not isinstance(error, ExceptionGroup):
        return error
    leaves = [_first(e) for e in error.exceptions]
    return next((e for e in leaves if isinstance(e, MedvlError)), leaves[0])
