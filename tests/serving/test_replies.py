"""A caller hears the end of its answer, also when Triton cannot take what was to be sent."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest

FINAL = 1


@dataclass
class TritonError:
    """``pb_utils.TritonError``."""

    message: str
    code: str
    INTERNAL: ClassVar[str] = "INTERNAL"


@dataclass
class Response:
    """``pb_utils.InferenceResponse``."""

    output_tensors: list[Any] = field(default_factory=list)
    error: TritonError | None = None


@dataclass
class Sender:
    """Refuses what ``takes`` does not take; it is closed once it was given FINAL, in vain or not, as in Triton 2.51."""

    takes: Callable[[Response | None], bool] = lambda response: True
    sent: list[Response | None] = field(default_factory=list)
    closed: bool = False

    def send(self, response: Response | None = None, flags: int = 0) -> None:
        if self.closed:
            raise RuntimeError("Unable to send response. Response sender has been closed.")
        self.closed = flags == FINAL
        if not self.takes(response):
            raise RuntimeError("Failed to increase the shared memory pool size.")
        self.sent.append(response)

    def is_cancelled(self) -> bool:
        assert not self.closed, "that ends the server"
        return False


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module, whose Triton exists inside a stub only."""
    utils = SimpleNamespace(
        InferenceResponse=Response, TritonError=TritonError, TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    monkeypatch.delitem(sys.modules, "medvl.serving.replies", raising=False)
    yield importlib.import_module("medvl.serving.replies")
    sys.modules.pop("medvl.serving.replies", None)


async def test_an_answer_ends_after_its_last_response(replies: ModuleType):
    """Nobody asks about it from then on."""
    sender = Sender()
    async with replies.answering(sender) as reply:
        reply.send(["a"])
        assert not reply.cancelled
        reply.send(["b"], final=True)
        assert not reply.cancelled
    assert sender.sent == [Response(["a"]), Response(["b"]), None]
    assert sender.closed


async def test_a_last_response_that_cannot_be_sent_becomes_an_error(replies: ModuleType):
    """Its caller hears of a defect, instead of nothing until its deadline."""
    sender = Sender(takes=lambda response: response is None or not response.output_tensors)
    async with replies.answering(sender) as reply:
        reply.send(["too large"], final=True)
    error, end = sender.sent
    assert error.error.message.startswith("INTERNAL: ")
    assert end is None


async def test_an_error_that_cannot_be_sent_ends_the_answer(replies: ModuleType, caplog: pytest.LogCaptureFixture):
    """Its caller sees the answer end early."""
    sender = Sender(takes=lambda response: response is None)
    async with replies.answering(sender):
        raise ValueError("x")
    assert sender.sent == [None]
    assert "could not be sent" in caplog.text


async def test_an_end_that_cannot_be_sent_is_logged(replies: ModuleType, caplog: pytest.LogCaptureFixture):
    """Nothing is left to send then; the model goes on."""
    async with replies.answering(Sender(takes=lambda response: response is not None)) as reply:
        reply.send(["a"], final=True)
        assert reply.closed
    assert "waits for its deadline" in caplog.text
