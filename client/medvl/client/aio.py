"""The client, asynchronous; :mod:`medvl.client.sync` is a face of it.

What it does unasked: it sends a series (again) when the service says that it does not hold it, and it repeats a call
that was refused for load or met a server that was away, after the delay that the server told, as long as no part of the
answer has been handed on. Deadlines cover everything a call does, repetitions included.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from medvl.client.endpoint import check_endpoint
from medvl.client.events import Event, Progress, event_from_wire
from medvl.client.policies import DEFAULT_RETRY, DEFAULT_TIMEOUTS, RetryPolicy, Timeouts
from medvl.client.prompts import ObjectPrompt
from medvl.client.results import SeriesRef, ServiceDescription, Upload, description_from_wire
from medvl.client.retry import Attempts, Deadline, RetryBudget
from medvl.client.stream import EventStream
from medvl.client.upload import OnUpload, SeriesSender
from medvl.contracts.errors import (
    BackendUnavailable,
    InternalError,
    InvalidRequest,
    MedvlError,
    Overloaded,
    RequestCancelled,
    SeriesNotResident,
)
from medvl.imaging.cleanup import NO_CLEANUP, Cleanup
from medvl.imaging.volume import Volume
from medvl.wire import keepalive
from medvl.wire.metadata import UPLOAD_KEY, UPLOAD_SEND
from medvl.wire.status import from_rpc_error
from medvl.wire.v1 import medvl_pb2 as pb
from medvl.wire.v1 import medvl_pb2_grpc as pb_grpc

SERVICE = "medvl.wire.v1.MedVL"
"""Name under which the standard health service knows this one."""
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Holds a packed mask of 1,500 slices of 512 x 512 even when it does not compress."""

_LOST_ANSWER = BackendUnavailable("The connection broke while the series was sent: send it again.", retry_after_s=0.0)
"""A write that fails because the server has already answered ends the call as INTERNAL in grpc.aio when it is noticed
before the answer (1 upload in 400, measured); what the server raises always carries metadata."""
_ENDED_CALL = BackendUnavailable(
    "The connection ended the call before its answer: repeat the request.", retry_after_s=0.0
)
"""A call that ended as cancelled though nobody here cancelled it: the server gave it up, or its channel went away."""

Series = Volume | SeriesRef
"""A series to ask about: with its voxels, which are sent when the service lacks them, or by reference only."""
T = TypeVar("T")


_EventCall = grpc.aio.UnaryStreamCall[Any, pb.Event]
_Open = Callable[[float], _EventCall]
"""Starts a call that may last the given seconds."""


class AsyncClient:
    """A connection to one service; make it inside a running event loop and close it.

    Every call raises the errors of :mod:`medvl.contracts.errors`. ``deadline_s`` of a call replaces the client's
    timeout for that kind of call.

    Parameters
    ----------
    endpoint
        ``host:port``.
    timeouts, retry
        See :mod:`medvl.client.policies`.
    compress
        Compress uploads with zstd: worth it below about 300 MB/s.

    Raises
    ------
    InvalidRequest
        When ``endpoint`` is not ``host:port``.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        retry: RetryPolicy = DEFAULT_RETRY,
        compress: bool = False,
    ) -> None:
        options = [("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES), *keepalive.CLIENT_OPTIONS]
        self._channel = grpc.aio.insecure_channel(check_endpoint(endpoint), options=options)
        self._stub = cast("Any", pb_grpc.MedVLStub)(self._channel)
        self._timeouts = timeouts
        self._retry = retry
        self._budget = RetryBudget(retry)
        self._compress = compress

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls in progress are cancelled."""
        await self._channel.close(None)

    async def put_series(
        self, volume: Volume, *, on_progress: OnUpload | None = None, deadline_s: float | None = None
    ) -> Upload:
        """Send a series; the server may answer that it holds it before it has been sent. Idempotent.

        Parameters
        ----------
        volume
            The canonical volume.
        on_progress
            Called in the event loop's thread as chunks leave.
        deadline_s
            Seconds from now.
        """
        deadline = Deadline.after(_duration_s(deadline_s, self._timeouts.upload_s))
        return await self._repeating(partial(self._send, volume, on_progress, deadline), deadline)

    def report(self, series: Series, *, max_tokens: int = 0, deadline_s: float | None = None) -> EventStream:
        """Write the report of a series.

        Parameters
        ----------
        series
            What to report on.
        max_tokens
            Longest text in tokens; 0 leaves it to the checkpoint.
        deadline_s
            Seconds from the first event that is asked for.
        """
        request = pb.ReportRequest(series=series.digest, max_tokens=max_tokens)
        timeout_s = _duration_s(deadline_s, self._timeouts.text_s)
        return self._stream(lambda left_s: self._stub.Report(request, timeout=left_s), series, timeout_s)

    def ask(
        self, series: Series, question: str, *, max_tokens: int = 0, deadline_s: float | None = None
    ) -> EventStream:
        """Answer a question about a series; parameters as in :meth:`report`."""
        request = pb.AskRequest(series=series.digest, question=question, max_tokens=max_tokens)
        timeout_s = _duration_s(deadline_s, self._timeouts.text_s)
        return self._stream(lambda left_s: self._stub.Ask(request, timeout=left_s), series, timeout_s)

    def segment(
        self,
        series: Series,
        objects: Sequence[ObjectPrompt],
        *,
        previews: bool = False,
        local: bool = False,
        cleanup: Cleanup = NO_CLEANUP,
        deadline_s: float | None = None,
    ) -> EventStream:
        """Segment objects in 3D.

        Parameters
        ----------
        series
            Where to look.
        objects
            One mask comes back for each; its ``object_index`` is the place in this sequence.
        previews
            Also send the 2D mask of each prompted slice as soon as it is there.
        local
            Track the last correction only until its masks agree with those before it, where the service still knows
            these: faster, and not what tracking the whole object gives. ``Mask.local`` says whether it was done.
        cleanup
            What to clean the masks of.
        deadline_s
            Seconds from the first event that is asked for.
        """
        request = pb.SegmentRequest(
            series=series.digest, objects=[o.to_wire() for o in objects], previews=previews, local=local
        )
        if cleanup:
            asked = pb.Cleanup(largest_component=cleanup.largest_component, fill_holes=cleanup.fill_holes)
            request.cleanup.CopyFrom(asked)
        timeout_s = _duration_s(deadline_s, self._timeouts.segment_s)
        return self._stream(lambda left_s: self._stub.Segment(request, timeout=left_s), series, timeout_s)

    async def describe(self, *, deadline_s: float | None = None) -> ServiceDescription:
        """Return what the service serves."""
        deadline = Deadline.after(_duration_s(deadline_s, self._timeouts.describe_s))

        async def once() -> pb.DescribeResponse:
            with _own_errors():
                return cast(
                    "pb.DescribeResponse",
                    await self._stub.Describe(pb.DescribeRequest(), timeout=deadline.remaining_s()),
                )

        return description_from_wire(await self._repeating(once, deadline))

    async def health(self, *, deadline_s: float | None = None) -> bool:
        """Return whether the service says that it serves; False as well when nothing answers."""
        stub = health_pb2_grpc.HealthStub(self._channel)
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        timeout_s = _duration_s(deadline_s, self._timeouts.describe_s)
        try:
            with _own_errors():
                answer = await stub.Check(request, timeout=timeout_s)
        except MedvlError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def _send(self, volume: Volume, on_progress: OnUpload | None, deadline: Deadline) -> Upload:
        sender = SeriesSender(volume, compress=self._compress, on_progress=on_progress)
        with _own_errors(lost=_LOST_ANSWER):
            response = await _upload(self._stub.PutSeries(timeout=deadline.remaining_s()), sender)
        if response.digest != volume.digest:
            raise InternalError("The server acknowledged another series than the one that was sent: send it again.")
        return Upload(
            series=SeriesRef(volume.digest, volume.geometry.shape),
            already_resident=response.already_resident,
            sent_bytes=sender.sent_bytes,
            total_bytes=sender.total_bytes,
        )

    async def _repeating(self, attempt: Callable[[], Awaitable[T]], deadline: Deadline) -> T:
        attempts = Attempts(self._retry, self._budget, deadline)
        while True:
            try:
                result = await attempt()
            except (Overloaded, BackendUnavailable) as error:
                await attempts.pause(error)
            else:
                self._budget.succeeded()
                return result

    def _stream(self, open_call: _Open, series: Series, timeout_s: float) -> EventStream:
        return EventStream(self._events(open_call, series, timeout_s))

    async def _events(self, open_call: _Open, series: Series, timeout_s: float) -> AsyncGenerator[Event, None]:
        deadline = Deadline.after(timeout_s)
        attempts = Attempts(self._retry, self._budget, deadline)
        unsent = series if isinstance(series, Volume) else None
        answered = False
        while True:
            try:
                async with aclosing(_attempt(open_call, deadline.remaining_s(), _shape(series))) as events:
                    async for event in events:
                        answered = answered or not isinstance(event, Progress)
                        yield event
            except (Overloaded, BackendUnavailable, SeriesNotResident) as error:
                if answered:
                    raise
                if isinstance(error, SeriesNotResident) and unsent is not None:
                    volume, unsent = unsent, None
                    await self._repeating(partial(self._send, volume, None, deadline), deadline)
                else:
                    await attempts.pause(error)
            else:
                self._budget.succeeded()
                return


async def _upload(call: Any, sender: SeriesSender) -> pb.PutSeriesResponse:  # noqa: ANN401 - grpc.aio has no types here
    """Send the header, and the voxels when the server asks for them; one that has them answers without."""
    try:
        # A call that is over refuses to be written to; what ended it is said by the answer.
        with suppress(grpc.aio.UsageError, grpc.aio.InternalError, asyncio.InvalidStateError):
            await call.write(sender.header)
            if (UPLOAD_KEY, UPLOAD_SEND) in tuple(await call.initial_metadata()):
                for message in sender.voxels():
                    await call.write(message)
            await call.done_writing()
        response: pb.PutSeriesResponse = await call
        return response
    finally:
        call.cancel()


def _duration_s(deadline_s: float | None, default_s: float) -> float:
    if deadline_s is None:
        return default_s
    if not deadline_s > 0:
        raise InvalidRequest(f"A deadline is a positive number of seconds, not {deadline_s}.")
    return deadline_s


def _shape(series: Series) -> tuple[int, int, int]:
    return series.geometry.shape if isinstance(series, Volume) else series.shape


async def _attempt(open_call: _Open, left_s: float, shape: tuple[int, int, int]) -> AsyncGenerator[Event, None]:
    with _own_errors():
        call = open_call(left_s)
        try:
            async for message in call:
                event = event_from_wire(message, shape)
                if event is not None:
                    yield event
        finally:
            call.cancel()


@contextmanager
def _own_errors(lost: MedvlError | None = None) -> Iterator[None]:
    """Raise the error of the tree for a failed call; ``lost`` for one whose answer the channel lost.

    grpc.aio raises CancelledError from a call that was cancelled by whomever, its own clean-up included. It passes only
    if this task was told to end, since nothing else may look like that to the code around.
    """
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise _again(_ENDED_CALL) from None
    except grpc.aio.UsageError:
        raise RequestCancelled("The client was closed: make another one.") from None
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.CANCELLED:
            raise _again(_ENDED_CALL) from None
        if lost is not None and error.code() is grpc.StatusCode.INTERNAL and not error.trailing_metadata():
            raise _again(lost) from None
        raise from_rpc_error(error) from None


def _again(error: MedvlError) -> MedvlError:
    """Return a new error that says the same; one that has been raised carries a traceback."""
    return type(error)(str(error), retry_after_s=error.retry_after_s)
