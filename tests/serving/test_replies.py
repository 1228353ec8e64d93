"""A caller hears the end of its answer, also when Triton cannot take what was to be sent."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import Mock

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
    left: bool = False
    """Whether the caller has gone away."""

    def send(self, response: Response | None = None, flags: int = 0) -> None:
        if self.closed:
            raise RuntimeError("Unable to send response. Response sender has been closed.")
        self.closed = flags == FINAL
        if not self.takes(response):
            raise RuntimeError("Failed to increase the shared memory pool size.")
        self.sent.append(response)

    def is_cancelled(self) -> bool:
        assert not self.closed, "that ends the server"
        return self.left


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Import a module of ``medvl.serving``, whose Triton exists inside a stub only; what was imported is forgotten."""
    utils = SimpleNamespace(
        InferenceResponse=Response, TritonError=TritonError, TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL
    )
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("medvl.serving.")}
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    yield lambda name: importlib.import_module(f"medvl.serving.{name}")
    for name in [name for name in sys.modules if name.startswith("medvl.serving.")]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture
def replies(serving: Callable[[str], ModuleType]) -> ModuleType:
    return serving("replies")


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


@pytest.mark.parametrize(("name", "work"), [("llm", "_deltas"), ("volume_segmenter", "_segment")])
async def test_a_caller_who_leaves_ends_the_work(serving: Callable[[str], ModuleType], name: str, work: str):
    """What would go on for ever is cancelled, not only counted, and the answer ends."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def endless(*_: object) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def deltas(*_: object) -> AsyncGenerator[None, None]:
        await endless()
        yield

    model_class = serving(name).TritonPythonModel
    model, sender = object.__new__(model_class), Sender()
    model._cancelled, model._weights = Mock(), ""
    setattr(model, work, deltas if work == "_deltas" else endless)
    answer = asyncio.create_task(model._answer(sender, {}))
    await began.wait()
    assert not answer.done()
    sender.left = True
    async with asyncio.timeout(5):
        await ended.wait()
    await answer
    assert sender.closed
    model._cancelled.increment.assert_called_once()
