"""A Triton that serves a tiny language model, shared by the tests of this folder."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from medvl.contracts.checkpoint import LANGUAGE_FOLDER
from medvl.contracts.messages import LanguageOptions, LanguageUsage
from medvl.orchestrator.calls import Call
from medvl.orchestrator.triton import Triton
from medvl.runtime.ports import free_ports
from medvl.runtime.triton import TritonConfig, TritonServer
from medvl.runtime.triton_home import TritonHome

from ..conftest import in_background  # noqa: TID252 - tests are no installed package
from . import tiny_language

ROOT = Path(__file__).parents[2]


@dataclass
class Answer:
    """What came over the wire, joined."""

    text: str = ""
    states: list[np.ndarray] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)
    """The text so far whenever states came."""
    starts: list[int] = field(default_factory=list)
    """Where the language model says that its [SEG] tokens stand."""
    usage: LanguageUsage | None = None

    @property
    def seg_hidden(self) -> np.ndarray:
        """FP32 [n, H]."""
        return np.concatenate([np.zeros((0, tiny_language.WIDTH), np.float32), *self.states])


class LanguageServer:
    """The model ``llm`` behind Triton, and the oracle beside it."""

    def __init__(self, triton: TritonServer, oracle: tiny_language.Oracle) -> None:
        self.triton = triton
        self.oracle = oracle

    async def ask(
        self,
        prompt: str | bytes,
        vision: np.ndarray,
        options: LanguageOptions | bytes,
        on_delta: Callable[[Answer], Awaitable[bool]] | None = None,
    ) -> Answer:
        """Ask and join the answer; leave as soon as ``on_delta`` says so."""
        inputs = {
            "vision_tokens": vision,
            "prompt": np.frombuffer(prompt.encode() if isinstance(prompt, str) else prompt, np.uint8),
            "options": np.frombuffer(options if isinstance(options, bytes) else options.to_bytes(), np.uint8),
        }
        answer = Answer()
        async with Triton(self.triton.endpoint, self.triton.config.key) as client:
            call = Call("test", asyncio.get_running_loop().time() + 60)
            async with aclosing(client.stream("llm", inputs, call)) as responses:
                async for response in responses:
                    answer.text += response["text_delta"].tobytes().decode()
                    if len(response["seg_hidden"]):
                        answer.states.append(response["seg_hidden"])
                        answer.heard.append(answer.text)
                        answer.starts += response["seg_start"].tolist()
                    if usage := response["usage"].tobytes():
                        answer.usage = LanguageUsage.model_validate_json(usage)
                    if on_delta is not None and await on_delta(answer):
                        break
        return answer


@pytest.fixture(scope="session")
def language_server(triton_home: TritonHome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageServer]:
    """A tiny language model that takes the states that PREDICT [SEG] and keeps the text's first token in front.

    The phantom checkpoint covers the other two rules.
    """
    folder = tmp_path_factory.mktemp("language")
    spec = tiny_language.checkpoint("predicting", "after_first")
    tiny_language.write_model(folder / "models", ROOT / "model_repository" / "llm" / "1" / "model.py", spec)
    grpc_port, metrics_port = free_ports(2)
    config = TritonConfig(folder / "models", grpc_port, metrics_port, folder / "triton.log", models=("llm",))
    oracle = tiny_language.Oracle(folder / "models" / "llm" / "1" / LANGUAGE_FOLDER, spec)
    with in_background(TritonServer(triton_home, config)) as server:
        yield LanguageServer(server, oracle)
