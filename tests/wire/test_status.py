"""Errors keep their class, sentence and retry delay from a server to its client."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2

from medvl.contracts import errors
from medvl.contracts.errors import MedvlError
from medvl.wire import status
from medvl.wire.v1 import medvl_pb2, medvl_pb2_grpc

INVALID, INTERNAL = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL
CODES = {
    "MedvlError": INTERNAL,
    "InvalidRequest": INVALID,
    "UnknownLabel": INVALID,
    "PromptOutsideVolume": INVALID,
    "SeriesError": INVALID,
    "EmptySeries": INVALID,
    "MixedSeries": INVALID,
    "NotCt": INVALID,
    "CorruptFile": INVALID,
    "TooFewSlices": INVALID,
    "SeriesTooLarge": INVALID,
    "GeometryRefused": grpc.StatusCode.FAILED_PRECONDITION,
    "SeriesNotResident": grpc.StatusCode.NOT_FOUND,
    "Overloaded": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "BackendUnavailable": grpc.StatusCode.UNAVAILABLE,
    "DeadlineExceeded": grpc.StatusCode.DEADLINE_EXCEEDED,
    "RequestCancelled": grpc.StatusCode.CANCELLED,
    "CheckpointError": grpc.StatusCode.FAILED_PRECONDITION,
    "ParityError": INTERNAL,
    "BuildError": INTERNAL,
    "SetupError": INTERNAL,
    "InternalError": INTERNAL,
}


def tree(root: type[MedvlError] = MedvlError) -> Iterator[type[MedvlError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


class Failing(medvl_pb2_grpc.MedVLServicer):
    """Fails every call with the error that the test put there."""

    error: Exception

    async def Describe(self, request, context):  # noqa: N802
        await status.abort(context, self.error)


@pytest_asyncio.fixture
async def failing() -> AsyncIterator[tuple[Failing, medvl_pb2_grpc.MedVLStub]]:
    server, servicer = grpc.aio.server(), Failing()
    medvl_pb2_grpc.add_MedVLServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield servicer, medvl_pb2_grpc.MedVLStub(channel)
    await server.stop(None)


async def failure(stub: medvl_pb2_grpc.MedVLStub) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Describe(medvl_pb2.DescribeRequest())
    return caught.value


def test_every_class_of_the_tree_is_listed_with_its_code():
    """A class that is added to the tree must be given a code here, on purpose."""
    assert {c.__name__: status.code_of(c("x")) for c in tree()} == CODES


def test_reasons_are_unique():
    """A reason on the wire names one class."""
    reasons = [c.reason for c in tree()]
    assert len(set(reasons)) == len(reasons)


@pytest.mark.parametrize("kind", list(tree()), ids=lambda c: c.__name__)
async def test_an_error_comes_back_as_itself(failing, kind):
    """Class, sentence and delay are those that the server raised; internal sentences are replaced."""
    servicer, stub = failing
    servicer.error = kind("A sentence with an umlaut: Größe.", retry_after_s=0.25)
    raised = await failure(stub)
    back = status.from_rpc_error(raised)
    assert raised.code() is CODES[kind.__name__]
    assert type(back) is kind
    assert back.retry_after_s == 0.25
    assert str(back) == (status.INTERNAL_SENTENCE if raised.code() is INTERNAL else "A sentence with an umlaut: Größe.")


@pytest.mark.parametrize("kind", [errors.Overloaded, errors.BackendUnavailable])
async def test_passing_errors_always_tell_a_delay(failing, kind):
    """A caller that may repeat the call is told when, even where the server did not say."""
    servicer, stub = failing
    servicer.error = kind("Later.")
    assert status.from_rpc_error(await failure(stub)).retry_after_s == status.DEFAULT_RETRY_S


async def test_other_errors_tell_no_delay(failing):
    """Nobody repeats a request that cannot succeed."""
    servicer, stub = failing
    servicer.error = errors.UnknownLabel("No such class.")
    assert status.from_rpc_error(await failure(stub)).retry_after_s is None


async def test_an_error_names_the_logged_call():
    """A caller who reports a failure can say which line of the log it is."""
    packed = status.to_status(errors.SeriesNotResident("Send it."), "2f1c")
    info = error_details_pb2.RequestInfo()
    assert [d.Unpack(info) for d in packed.details] == [False, True]
    assert info.request_id == "2f1c"


async def test_words_of_a_backend_never_leave(failing):
    """An exception from outside the tree becomes INTERNAL with a fixed sentence."""
    servicer, stub = failing
    servicer.error = RuntimeError("CUDA error in /models/llm: patient Doe")
    raised = await failure(stub)
    assert raised.code() is INTERNAL
    assert raised.details() == status.INTERNAL_SENTENCE
    assert b"Doe" not in repr(raised).encode()
    assert type(status.from_rpc_error(raised)) is errors.InternalError


async def test_an_endpoint_where_nothing_listens_is_unavailable():
    """A refused connection carries no details of ours and still becomes an error of the tree."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        raised = await failure(medvl_pb2_grpc.MedVLStub(channel))
    back = status.from_rpc_error(raised)
    assert type(back) is errors.BackendUnavailable
    assert back.retry_after_s == status.DEFAULT_RETRY_S


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.CANCELLED, errors.RequestCancelled),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Overloaded),
        (grpc.StatusCode.UNIMPLEMENTED, errors.InvalidRequest),
        (grpc.StatusCode.UNKNOWN, errors.InternalError),
    ],
)
@pytest.mark.parametrize("details", [(), ((status.DETAILS_KEY, b"\xff\xff not a status"),)])
def test_a_code_alone_names_a_class(code, kind, details):
    """A status that a proxy or grpc itself made, or whose details cannot be read, is told apart by its code."""
    raised = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*details), "words of a proxy", None)
    back = status.from_rpc_error(raised)
    assert type(back) is kind
    assert "proxy" not in str(back)
