"""One answer of the language model: vision tokens and a prompt in; text, [SEG] states and their cost out."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from vllm import SamplingParams
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineDeadError

from medvl.contracts.checkpoint import LanguageSpec
from medvl.contracts.errors import BackendUnavailable, InternalError, InvalidRequest
from medvl.contracts.messages import LanguageOptions, LanguageUsage
from medvl.serving.prompting import ForcedAnswer, Prompt
from medvl.serving.seg_capture import REQUEST_FIELD, SegLedger, SegRequest, states_from_bytes
from medvl.serving.text_stream import TextStream

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

ALIVE_POLL_S = 1.0
"""vLLM leaves a call open whose engine dies meanwhile: only asking tells that no answer will come."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step adds to an answer."""

    text: str
    seg_hidden: np.ndarray
    """FP32 [n, H]: states of the [SEG] tokens, of this or earlier text, that have become known."""
    seg_starts: Sequence[int]
    """Code points of the whole text before each of these tokens."""
    usage: LanguageUsage | None
    """The cost, with the last delta only."""


async def free_answer(
    llm: AsyncLLM, language: LanguageSpec, prompt: Prompt, options: LanguageOptions, text: TextStream
) -> AsyncGenerator[Delta, None]:
    """Let the model answer; closing the iterator ends the answer in the engine.

    Raises
    ------
    InvalidRequest
        When prompt and answer do not fit into the model's context.
    BackendUnavailable
        When the engine has stopped.
    """
    _check_length(len(prompt.token_ids), options.max_tokens, language.max_context)
    seg = SegRequest(uuid.uuid4().hex, prompt.seg_token_id, language.seg_state)
    ledger, count = SegLedger(prompt.seg_token_id, language.hidden_size), 0
    async with aclosing(_generate(llm, prompt, _sampling(options, seg), seg.key)) as outputs:
        async for output in outputs:
            completion = output.outputs[0]
            count += len(completion.token_ids)
            if ledger.see(completion.token_ids):
                ledger.add(await _take_states(llm, seg.key, language.hidden_size))
            usage = _usage([output], len(prompt.token_ids), count, completion.finish_reason)
            added, states = text.add(_spoken(completion), last=usage is not None), ledger.release()
            yield Delta(added, states, text.take_seg_starts(len(states)), usage)


def _spoken(completion: CompletionOutput) -> Sequence[int]:
    """Return the tokens that are text: all but the one that ended the answer."""
    token_ids: Sequence[int] = completion.token_ids
    return token_ids[:-1] if completion.finish_reason == "stop" else token_ids


async def forced_answer(
    llm: AsyncLLM, language: LanguageSpec, prompt: Prompt, answer: ForcedAnswer
) -> AsyncGenerator[Delta, None]:
    """Read a given answer and yield it, piece by piece, with the states of its [SEG] tokens.

    The tokens are known, so nothing is decoded: every [SEG] costs one prefill, of which the engine's prefix cache
    holds all but the end. A grammar would cost a decoding step per token, and let the model choose other tokens.

    Raises
    ------
    InvalidRequest
        When prompt and answer do not fit into the model's context.
    BackendUnavailable
        When the engine has stopped.
    """
    _check_length(len(prompt.token_ids), len(answer.tokens) + 1, language.max_context)
    outputs: list[RequestOutput] = []
    spoken = 0
    for piece, end in zip(answer.pieces, answer.seg_ends, strict=False):
        seg = SegRequest(uuid.uuid4().hex, prompt.seg_token_id, "prompt_end")
        known = prompt.followed_by(answer.tokens[: end if language.seg_state == "at" else end - 1])
        async with aclosing(_generate(llm, known, _sampling(LanguageOptions(max_tokens=1), seg), seg.key)) as steps:
            outputs += [output async for output in steps]
        states = await _take_states(llm, seg.key, language.hidden_size)
        yield Delta(piece + language.seg_token, states, [spoken + len(piece)], None)
        spoken += len(piece) + len(language.seg_token)
    usage = _usage(outputs, len(prompt.token_ids), len(answer.tokens), "stop")
    yield Delta(answer.pieces[-1], np.empty((0, language.hidden_size), np.float32), [], usage)


async def _generate(
    llm: AsyncLLM, prompt: Prompt, sampling: SamplingParams, request_id: str
) -> AsyncGenerator[RequestOutput, None]:
    try:
        async with aclosing(llm.generate(prompt.to_vllm(), sampling, request_id)) as outputs:
            async for output in outputs:
                if output.outputs[0].finish_reason == "error":
                    raise InternalError("The language model could not continue its answer.")
                yield output
    except EngineDeadError:
        raise _stopped() from None


async def _take_states(llm: AsyncLLM, request_id: str, width: int) -> np.ndarray:
    """Fetch the states from the workers; under tensor parallelism each of them has all.

    An engine answers between two of its steps, which may take long: the wait ends with its life, not after a time.
    """
    fetching = asyncio.ensure_future(llm.collective_rpc("seg_take", args=(request_id,)))
    try:
        while not (await asyncio.wait({fetching}, timeout=ALIVE_POLL_S))[0]:
            if llm.errored:
                raise _stopped()
        return states_from_bytes(fetching.result()[0], width)
    except EngineDeadError:
        raise _stopped() from None
    finally:
        fetching.cancel()


def _stopped() -> BackendUnavailable:
    return BackendUnavailable("The language model has stopped: try again later.")


def _check_length(prompt_tokens: int, answer_tokens: int, context: int) -> None:
    if prompt_tokens + answer_tokens > context:
        raise InvalidRequest(
            f"A prompt of {prompt_tokens} tokens and an answer of up to {answer_tokens} do not fit into the model's "
            f"{context}: shorten the prompt or ask for a shorter answer."
        )


def _sampling(options: LanguageOptions, seg: SegRequest) -> SamplingParams:
    return SamplingParams(
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        seed=options.seed,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args={REQUEST_FIELD: seg.to_extra()},
    )


def _usage(
    outputs: Sequence[RequestOutput], prompt_tokens: int, completion_tokens: int, finish_reason: str | None
) -> LanguageUsage | None:
    """Return what an answer cost by the engine's own clock, None while it goes on."""
    if finish_reason is None:
        return None
    stats = [output.metrics for output in outputs]
    times_ms = {
        "queue_ms": 1e3 * sum(s.scheduled_ts - s.queued_ts for s in stats),
        "prefill_ms": 1e3 * sum(s.first_token_ts - s.scheduled_ts for s in stats),
        "decode_ms": 1e3 * sum(s.last_token_ts - s.first_token_ts for s in stats),
    }
    tokens = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return LanguageUsage.model_validate({"finish_reason": finish_reason, **tokens, **times_ms})
