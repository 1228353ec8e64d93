"""The language model behind Triton: vision tokens and a prompt to text and [SEG] states."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from medvl.contracts.errors import BackendUnavailable, InternalError
from medvl.contracts.messages import LanguageOptions, LanguageUsage
from medvl.orchestrator.encoding import Tensors
from medvl.orchestrator.work import Work

MODEL = "llm"


@dataclass(frozen=True, slots=True)
class SegState:
    """The hidden state of one [SEG] token.

    Attributes
    ----------
    start
        Code points of the whole text before the token.
    hidden
        float32 [H], after the final norm.
    """

    start: int
    hidden: NDArray[Any]


@dataclass(frozen=True, slots=True)
class LanguageDelta:
    """One response of the language model.

    Attributes
    ----------
    text
        What it adds to the text; may be empty.
    segs
        The [SEG] tokens that it resolves, of this or earlier text.
    usage
        In the last response only.
    """

    text: str
    segs: tuple[SegState, ...]
    usage: LanguageUsage | None


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """The whole text, how many [SEG] tokens of it were resolved, and what it cost."""

    text: str
    segs: int
    usage: LanguageUsage


async def generate(
    work: Work, vision_tokens: NDArray[Any], prompt: str, options: LanguageOptions
) -> AsyncGenerator[LanguageDelta, None]:
    """Generate text; close the iterator to stop it on the server.

    Parameters
    ----------
    vision_tokens
        float32 [T, H].
    prompt
        Text without image tokens.

    Raises
    ------
    MedvlError
        As :meth:`medvl.orchestrator.triton.Triton.stream`; BackendUnavailable when the answer ends before its end, or
        is of other weights than those that are served.
    """
    inputs = {
        "vision_tokens": vision_tokens,
        "prompt": np.frombuffer(prompt.encode(), np.uint8),
        "options": np.frombuffer(options.to_bytes(), np.uint8),
    }
    usage: LanguageUsage | None = None
    async with aclosing(work.triton.stream(MODEL, inputs, work.call)) as responses:
        async for response in responses:
            usage = _usage(response.get("usage"))
            text = response["text_delta"].tobytes().decode() if "text_delta" in response else ""
            yield LanguageDelta(text, _segs(response), usage)
    if usage is None or usage.finish_reason == "abort":
        raise BackendUnavailable("The language model ended its answer early: try again.")
    work.confirm(MODEL, usage.weights)


def _segs(response: Tensors) -> tuple[SegState, ...]:
    starts, hidden = response.get("seg_start", ()), response.get("seg_hidden", ())
    if len(starts) != len(hidden):
        raise InternalError("The language model's [SEG] states break its contract.")
    return tuple(SegState(int(start), state) for start, state in zip(starts, hidden, strict=True))


def _usage(data: NDArray[Any] | None) -> LanguageUsage | None:
    if data is None or not data.size:
        return None
    try:
        return LanguageUsage.model_validate_json(data.tobytes())
    except ValidationError:
        raise InternalError("The language model's usage breaks its contract.") from None
