"""Does vLLM say what transformers says? The language model of a checkpoint, served and by the torch reference.

Vision tokens are random numbers of the size of word embeddings: what is compared is arithmetic, not knowledge.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from medvl.contracts.checkpoint import LANGUAGE_FOLDER, Checkpoint, LanguageSpec
from medvl.contracts.messages import LanguageOptions
from medvl.contracts.quantisation import half_precision
from medvl.network.language import LanguageModel
from medvl.serving.engine_settings import VARIABLE_PREFIX, EngineSettings
from medvl.serving.prompting import PromptBuilder
from medvl.serving.settings import Settings

if TYPE_CHECKING:
    from medvl.serving.engine import Engine

# vllm is imported where an engine runs: answers can be judged without.
# ruff: noqa: PLC0415

MAX_TOKENS = 24
"""Of a free answer: long enough for a wrong cache or position to show, short enough for seven billion weights."""

_EXTENT_MM = (300.0, 350.0, 350.0)


@dataclass(frozen=True, eq=False)
class Spoken:
    """One answer."""

    text: str
    states: NDArray[np.float32]
    """FP32 [n, H], one for each [SEG]."""


@dataclass(frozen=True, eq=False)
class LanguageCase:
    """What vLLM and the reference made of one prompt."""

    prompt: str
    free: bool
    """Whether the model chose the words, greedily, or read the answer that segmentation forces."""
    served: Spoken
    reference: Spoken


def compare_language(folder: Path, checkpoint: Checkpoint, quantised: Path | None = None) -> list[LanguageCase]:
    """Put every kind of prompt of a checkpoint to transformers, and to vLLM as Triton's model ``llm`` sets it up.

    Parameters
    ----------
    folder
        A checkpoint folder that holds the contract. ``MEDVL_LLM_`` variables set the engine up as they do in Triton.
    quantised
        Language model folder for vLLM to read in the place of the checkpoint's, whose answers it is to give.

    Raises
    ------
    SetupError
        When such a variable is wrong.
    """
    asked = _prompts(checkpoint.language)
    reference = LanguageModel(folder, checkpoint.language)
    vision = _vision_tokens(reference, checkpoint, len(asked))
    known = [_known(reference, checkpoint.language, *case) for case in zip(asked, vision, strict=True)]
    del reference  # seven billion weights need not be there twice
    builder = PromptBuilder(folder / LANGUAGE_FOLDER, checkpoint)
    with _engine(folder, checkpoint.language, quantised) as engine:
        work = [_ask(engine, builder, checkpoint.language, *case) for case in zip(asked, vision, strict=True)]
        served = [future.result() for future in [engine.submit(w) for w in work]]
    return [
        LanguageCase(prompt, free, heard, said)
        for (prompt, free), heard, said in zip(asked, served, known, strict=True)
    ]


def _prompts(language: LanguageSpec) -> list[tuple[str, bool]]:
    prompts = language.prompts
    report, question = prompts.for_report(_EXTENT_MM), prompts.for_question("Is the liver enlarged?", _EXTENT_MM)
    words = prompts.for_text("the largest lesion", _EXTENT_MM)
    return [(report, True), (question, True), (words, True), (words, False), (question, False)]


def _vision_tokens(reference: LanguageModel, checkpoint: Checkpoint, count: int) -> torch.Tensor:
    """Return FP32 [count, T, H]."""
    shape = (count, checkpoint.vision_tokens, checkpoint.language.hidden_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * reference.embedding_size


def _known(reference: LanguageModel, language: LanguageSpec, asked: tuple[str, bool], vision: torch.Tensor) -> Spoken:
    prompt, free = asked
    if free:
        answer = reference.answer(vision, prompt, MAX_TOKENS)
        return Spoken(answer.text, answer.seg_hidden)
    template = language.prompts.segment_answer
    return Spoken(template, reference.seg_state(vision, prompt, template)[None])


async def _ask(
    engine: Engine, builder: PromptBuilder, language: LanguageSpec, asked: tuple[str, bool], vision: torch.Tensor
) -> Spoken:
    from medvl.serving.generation import forced_answer, free_answer

    text, free = asked
    prompt = builder.build(text, vision.numpy())
    if free:
        options = LanguageOptions(max_tokens=MAX_TOKENS)
        deltas = free_answer(engine.llm, language, prompt, options, builder.text_stream())
    else:
        deltas = forced_answer(engine.llm, language, prompt, builder.forced_answer(language.prompts.segment_answer))
    async with aclosing(deltas):
        heard = [delta async for delta in deltas]
    return Spoken("".join(d.text for d in heard), np.concatenate([d.seg_hidden for d in heard]))


@contextmanager
def _engine(folder: Path, language: LanguageSpec, quantised: Path | None) -> Iterator[Engine]:
    from medvl.serving.engine import Engine

    settings = Settings(VARIABLE_PREFIX, {})
    on_cpu = not torch.cuda.is_available()
    served = quantised or folder / LANGUAGE_FOLDER
    dtype = half_precision(language) if quantised else None
    engine = Engine(EngineSettings.read(served, language, settings, on_cpu=on_cpu, dtype=dtype))
    try:
        engine.start()
        yield engine
    finally:
        engine.stop()
