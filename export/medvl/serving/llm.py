"""The Triton model ``llm``: vLLM's AsyncLLM behind a decoupled Python model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ValidationError

from medvl.contracts.checkpoint import LANGUAGE_FOLDER
from medvl.contracts.defects import log_without_words
from medvl.contracts.errors import CheckpointError, InvalidRequest, MedvlError
from medvl.contracts.messages import LanguageOptions
from medvl.contracts.models import MODELS
from medvl.contracts.quantisation import served_weights
from medvl.serving.engine_settings import VARIABLE_PREFIX, EngineSettings, prepare_process
from medvl.serving.metrics import Counter
from medvl.serving.replies import Reply, answering
from medvl.serving.settings import Settings
from medvl.serving.stub import PbRequest, PbSender
from medvl.serving.tensors import checked_arrays, from_bytes, to_tensor

if TYPE_CHECKING:
    from medvl.serving.generation import Delta

SPEC = MODELS["llm"]
CANCEL_POLL_S = 0.02
"""Asking the server whether a caller went away costs 0.1 ms, too much for every token of every answer."""


class TritonPythonModel:
    """The language model of one checkpoint on one device."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Start the engine; the first request finds it warm."""
        prepare_process()
        log_without_words()
        # vllm and torch read locale and environment when they are imported.
        from medvl.serving import generation, prompting  # noqa: PLC0415
        from medvl.serving.engine import Engine  # noqa: PLC0415

        read = Settings.of(args["model_config"], VARIABLE_PREFIX)
        self._checkpoint = read.checkpoint
        self._weights = served_weights(self._checkpoint, read.quantisation)
        folder = Path(args["model_repository"], args["model_version"], LANGUAGE_FOLDER)
        self._generation, self._prompts = generation, prompting.PromptBuilder(folder, self._checkpoint)
        self._cancelled = Counter("medvl_llm_cancelled_total", "Answers whose caller went away", args["model_name"])
        on_cpu = args["model_instance_kind"] == "CPU"
        dtype = read.quantisation.dtype if read.quantisation else None
        settings = EngineSettings.read(folder, self._checkpoint.language, read, on_cpu=on_cpu, dtype=dtype)
        self._engine = Engine(settings)
        try:
            self._engine.start()
            self._engine.submit(self._warm_up()).result()
        except BaseException:
            self._engine.stop()
            raise

    def execute(self, requests: Sequence[PbRequest]) -> None:
        """Hand the requests to the engine; their responses come from its loop."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                arrays = checked_arrays(request, SPEC)
            except MedvlError as error:
                Reply(sender).fail(error)
            else:
                self._engine.submit(self._answer(sender, arrays))

    def finalize(self) -> None:
        """End the engine and its processes."""
        self._engine.stop()
        self._cancelled.close()

    async def _answer(self, sender: PbSender, arrays: Mapping[str, np.ndarray]) -> None:
        async with answering(sender) as reply:
            task = asyncio.current_task()
            assert task is not None
            watch = asyncio.create_task(self._cancel_with(reply, task))
            try:
                async with aclosing(self._deltas(arrays)) as deltas:
                    async for delta in deltas:
                        _send(reply, delta, self._weights)
            finally:
                watch.cancel()

    async def _cancel_with(self, reply: Reply, answering_task: asyncio.Task[None]) -> None:
        # Triton tells nobody that a caller went away: it has to be asked.
        while not reply.cancelled:  # noqa: ASYNC110
            await asyncio.sleep(CANCEL_POLL_S)
        self._cancelled.increment()
        answering_task.cancel()

    def _deltas(self, arrays: Mapping[str, np.ndarray]) -> AsyncGenerator[Delta, None]:
        """Validate one request and begin its answer."""
        options = _options(arrays["options"])
        prompt = self._prompts.build(_text(arrays["prompt"]), arrays["vision_tokens"])
        llm, language = self._engine.llm, self._checkpoint.language
        if options.answer_template is None:
            return self._generation.free_answer(llm, language, prompt, options, self._prompts.text_stream())
        answer = self._prompts.forced_answer(options.answer_template)
        return self._generation.forced_answer(llm, language, prompt, answer)

    async def _warm_up(self) -> None:
        """Answer once, [SEG] included: what fails here would fail every request."""
        language, tokens = self._checkpoint.language, self._checkpoint.vision_tokens
        template = language.prompts.segment_answer
        arrays: dict[str, np.ndarray] = {
            "vision_tokens": np.zeros((tokens, language.hidden_size), np.float32),
            "prompt": np.frombuffer(language.prompts.report.encode(), np.uint8),
            "options": np.frombuffer(LanguageOptions(max_tokens=1, answer_template=template).to_bytes(), np.uint8),
        }
        deltas = [delta async for delta in self._deltas(arrays)]
        text, states = "".join(d.text for d in deltas), sum(len(d.seg_hidden) for d in deltas)
        if text != template or states != 1:
            raise CheckpointError(
                f"The language model answers {text!r} with {states} states where {template!r} is forced."
            )


def _send(reply: Reply, delta: Delta, weights: str) -> None:
    usage = b"" if delta.usage is None else delta.usage.model_copy(update={"weights": weights}).to_bytes()
    tensors = (
        from_bytes("text_delta", delta.text.encode()),
        to_tensor("seg_hidden", delta.seg_hidden),
        to_tensor("seg_start", np.array(delta.seg_starts, np.int32)),
        from_bytes("usage", usage),
    )
    reply.send(tensors, final=delta.usage is not None)


def _text(data: np.ndarray) -> str:
    try:
        return data.tobytes().decode()
    except UnicodeDecodeError:
        raise InvalidRequest("The prompt is not UTF-8 text.") from None


def _options(data: np.ndarray) -> LanguageOptions:
    try:
        return LanguageOptions.model_validate_json(data.tobytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "JSON"
        raise InvalidRequest(f"The options of the language model are wrong: {field}: {first['msg']}.") from None
