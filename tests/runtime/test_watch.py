"""Telling dead models from hung ones, and hung ones from busy ones."""

from __future__ import annotations

import pytest

from medvl.contracts.errors import BackendUnavailable, DeadlineExceeded, MedvlError
from medvl.runtime.watch import Ailment, ModelWatch

DEAD = BackendUnavailable("gone")
SILENT = DeadlineExceeded("no answer")


class Server:
    """A server whose models answer as they are told."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.answers: dict[str, list[MedvlError | None]] = {}
        self.runs: dict[str, int] = {}
        self.watch = ModelWatch(("llm", "projector"), self, self, stall_s=60.0, clock=lambda: self.now_s)

    async def ask(self, model: str) -> None:
        answers = self.answers.get(model, [None])
        error = answers.pop(0) if len(answers) > 1 else answers[0]
        if error:
            raise error

    async def executions(self, model: str) -> int:
        return self.runs.get(model, 0)


@pytest.fixture
def server() -> Server:
    return Server()


async def test_models_that_answer_are_well(server: Server) -> None:
    """Nothing is repaired that works."""
    assert await server.watch.round() == {}


async def test_a_model_that_refuses_twice_is_dead(server: Server) -> None:
    """A dead stub fails every request, and only that model is named."""
    server.answers["llm"] = [DEAD]
    assert await server.watch.round() == {"llm": Ailment.DEAD}


async def test_one_broken_connection_is_no_death(server: Server) -> None:
    """A single failure is asked about again before anything is taken down."""
    server.answers["llm"] = [DEAD, None]
    assert await server.watch.round() == {}


async def test_a_busy_model_is_well(server: Server) -> None:
    """A canary that waits behind real work raises no alarm while the work goes on."""
    server.answers["llm"] = [SILENT]
    for step in range(20):
        server.now_s, server.runs["llm"] = 10.0 * step, step
        assert await server.watch.round() == {}


async def test_a_model_without_progress_is_stalled(server: Server) -> None:
    """A hung engine neither answers nor runs anything, and after a while that is told."""
    server.answers["llm"] = [SILENT]
    server.runs["llm"] = 7
    assert await server.watch.round() == {}
    server.now_s = 61.0
    assert await server.watch.round() == {"llm": Ailment.STALLED}


async def test_a_model_that_was_loaded_again_starts_afresh(server: Server) -> None:
    """What was held against the old process is not held against the new one."""
    server.answers["llm"] = [SILENT]
    await server.watch.round()
    server.now_s = 61.0
    server.watch.forget("llm")
    assert await server.watch.round() == {}
