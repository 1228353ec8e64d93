"""The served language model says what transformers says, and nothing that a caller does takes it down."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from itertools import pairwise

import numpy as np
import pytest

from medvl.contracts.errors import InvalidRequest
from medvl.contracts.messages import LanguageOptions

from . import tiny_language
from .conftest import Answer, LanguageServer

pytestmark = pytest.mark.e2e

PROMPTS = ("What is seen?", "Größe der Läsion in 肝臓?", "x")
GREEDY = LanguageOptions(max_tokens=40)


def vision(seed: int) -> np.ndarray:
    shape = (tiny_language.TOKENS, tiny_language.WIDTH)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


async def test_answers_are_those_of_transformers(language_server: LanguageServer):
    """Twelve requests at once: text token for token, [SEG] states to 1e-4, reasons and counts, each after its [SEG]."""
    asked = [(PROMPTS[i % 3], vision(i)) for i in range(12)]
    answers = await asyncio.gather(*(language_server.ask(p, v, GREEDY) for p, v in asked))
    total = 0
    for (prompt, tokens), answer in zip(asked, answers, strict=True):
        expected = language_server.oracle.free(prompt, tokens, GREEDY.max_tokens)
        assert answer.text == expected.text
        assert answer.seg_hidden.shape == expected.states.shape
        assert np.abs(answer.seg_hidden - expected.states).max(initial=0) < 1e-4
        assert answer.usage is not None
        assert answer.usage.finish_reason == expected.finish_reason
        assert answer.usage.completion_tokens == expected.completion_tokens
        for text, states in zip(answer.heard, np.cumsum([len(s) for s in answer.states]), strict=True):
            assert text.count(tiny_language.SEG) >= states
        assert answer.starts == expected.starts
        total += len(expected.states)
    assert total >= 6, "the tiny model was built to say [SEG]"


async def test_different_images_get_different_answers(language_server: LanguageServer):
    """The prefix cache never lends one image's keys and values to another with the same prompt."""
    texts = [(await language_server.ask("x", vision(i), GREEDY)).text for i in range(3)]
    assert len(set(texts)) == 3


@pytest.mark.parametrize("template", [tiny_language.TEMPLATE, "[SEG] and [SEG][SEG]"])
async def test_a_forced_answer_costs_no_decoding(language_server: LanguageServer, template: str):
    """The text is the template, every [SEG] has the state that reading the template gives, and nothing is decoded."""
    options = LanguageOptions(max_tokens=1, answer_template=template)
    answer = await language_server.ask("Where?", vision(1), options)
    expected = language_server.oracle.forced("Where?", vision(1), template)
    assert answer.text == template
    assert answer.seg_hidden.shape == (template.count(tiny_language.SEG), tiny_language.WIDTH)
    assert np.abs(answer.seg_hidden - expected.states).max() < 1e-4
    assert answer.starts == expected.starts
    assert all(before != after for before, after in pairwise(answer.heard))
    assert answer.usage is not None
    assert answer.usage.decode_ms == 0


async def test_sampling_follows_its_seed(language_server: LanguageServer):
    """The same seed gives the same answer, another seed another."""
    one, same, other = [
        (await language_server.ask("x", vision(0), LanguageOptions(max_tokens=20, temperature=1.0, seed=seed))).text
        for seed in (1, 1, 2)
    ]
    assert one == same != other


def broken(place: tuple[int, int], value: float) -> np.ndarray:
    tokens = vision(0)
    tokens[place] = value
    return tokens


@pytest.mark.parametrize(
    ("prompt", "tokens", "options", "named"),
    [
        ("x", broken((3, 3), np.nan), GREEDY, "not finite"),
        ("x", vision(0)[:5], GREEDY, "vision_tokens should be"),
        ("x", vision(0)[:, :5], GREEDY, "vision_tokens should be"),
        ("", vision(0), GREEDY, "empty"),
        (b"\xff\xfe", vision(0), GREEDY, "not UTF-8"),
        ("x", vision(0), b"{", "options"),
        ("x", vision(0), b"{}", "max_tokens"),
        ("x", vision(0), LanguageOptions(max_tokens=4000), "do not fit"),
        ("x " * 3000, vision(0), GREEDY, "do not fit"),
        ("x", vision(0), LanguageOptions(max_tokens=1, answer_template="no"), "must hold"),
    ],
)
async def test_bad_requests_are_refused_and_harm_nobody(
    language_server: LanguageServer, prompt, tokens, options, named
):
    """One sentence says what is wrong; a good request beside it is answered."""
    good = asyncio.create_task(language_server.ask("x", vision(0), GREEDY))
    with pytest.raises(InvalidRequest, match=named):
        await language_server.ask(prompt, tokens, options)
    assert (await good).text


async def test_a_caller_who_leaves_ends_the_answer(language_server: LanguageServer):
    """Closing the stream ends the answer in the engine and is counted; the next answer is right."""
    before = cancelled(language_server)

    async def leave(answer: Answer) -> bool:
        return len(answer.text) > 0

    # The answer has to outlast the news of the caller's leaving: one that repeats itself has no end.
    oracle = language_server.oracle
    endless = next(i for i in range(50) if oracle.free("x", vision(i), 200).finish_reason == "length")
    await language_server.ask("x", vision(endless), LanguageOptions(max_tokens=1800), leave)
    async with asyncio.timeout(10):
        while cancelled(language_server) == before:  # noqa: ASYNC110 - Prometheus offers nothing to wait on
            await asyncio.sleep(0.05)
    expected = oracle.free("x", vision(2), GREEDY.max_tokens)
    assert (await language_server.ask("x", vision(2), GREEDY)).text == expected.text


def cancelled(server: LanguageServer) -> float:
    with urllib.request.urlopen(server.triton.metrics_url, timeout=5) as response:
        found = re.search(r"^medvl_llm_cancelled_total\{.*\} ([0-9.]+)$", response.read().decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0
