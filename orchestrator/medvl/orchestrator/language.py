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
from medvl.orchestrator.calls import Call
from medvl.orchestrator.triton import Triton


@dataclass(frozen=True, slots=True)
class LanguageDelta:
    """One response of the language model.

    Attributes
    ----------
    text
        What it adds to the text; may be empty.
    seg_hidden
        float32 [n_seg, H] of the [SEG] tokens that it resolves, or None.
    usage
        In the last response only.
    """

    text: str
    seg_hidden: NDArray[Any] | None
    usage: LanguageUsage | None


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """The whole text and what it cost."""

    text: str
    usage: LanguageUsage


async def generate(
    triton: Triton, vision_tokens: NDArray[Any], prompt: str, options: LanguageOptions, call: Call
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
        As :meth:`medvl.orchestrator.triton.Triton.stream`; BackendUnavailable when the answer ends before its end.
    """
    inputs = {
        "vision_tokens": vision_tokens,
        "prompt": np.frombuffer(prompt.encode(), np.uint8),
        "options": np.frombuffer(options.to_bytes(), np.uint8),
    }
    usage: LanguageUsage | None = None
    async with aclosing(triton.stream("llm", inputs, call)) as responses:
        async for response in responses:
            usage = _usage(response.get("usage"))
            text = response["text_delta"].tobytes().decode() if "text_delta" in response else ""
            hidden = response.get("seg_hidden")
            yield LanguageDelta(text, hidden if hidden is not None and len(hidden) else None, usage)
    if usage is None or usage.finish_reason == "abort":
        raise BackendUnavailable("The language model ended its answer early: try again.")


def _usage(data: NDArray[Any] | None) -> LanguageUsage | None:
    if data is None or not data.size:
        return None
    try:
        return LanguageUsage.model_validate_json(data.tobytes())
    except ValidationError:
        raise InternalError("The language model's usage breaks its contract.") from None
