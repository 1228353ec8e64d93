"""The states of [SEG] are kept for the request that asked, once each, in the order of their tokens."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medvl.contracts.errors import InternalError
from medvl.serving.seg_capture import (
    REQUEST_FIELD,
    SampledRow,
    SegCapture,
    SegLedger,
    SegRequest,
    sampled_rows,
    states_from_bytes,
)

SEG, H = 7, 4


def state(value: float) -> torch.Tensor:
    return torch.full((H,), value)


def play(mode: str, tokens: list[int], capture: SegCapture | None = None) -> np.ndarray:
    """Decode ``tokens`` one by one; the state at step i, which follows i tokens, holds the value i."""
    capture = capture or SegCapture()
    request = SegRequest("key", SEG, mode)
    for i in range(len(tokens) + 1):
        row = SampledRow("request", request, tokens[i - 1] if i else None)
        capture.observe([(1, row)], torch.stack([state(-1.0), state(float(i))]))
    return states_from_bytes(capture.take("key"), H)


@given(st.lists(st.sampled_from([1, 2, SEG]), max_size=12))
def test_every_seg_token_has_its_state(tokens):
    """AT is the state that follows the token, PREDICTING the one before it, prompt_end the first of all."""
    places = [i for i, token in enumerate(tokens) if token == SEG]
    assert play("at", tokens)[:, 0].tolist() == [i + 1 for i in places]
    assert play("predicting", tokens)[:, 0].tolist() == places
    assert play("prompt_end", tokens)[:, 0].tolist() == [0]


def test_states_are_fetched_once():
    """What has been taken is forgotten."""
    capture = SegCapture()
    assert len(play("at", [SEG, 1], capture)) == 1
    assert capture.take("key") == b""


def test_previous_states_of_ended_requests_are_dropped():
    """A request that ended leaves nothing behind that a namesake could be given."""
    capture = SegCapture()
    play("predicting", [1, 2], capture)
    capture.forget_ended(lambda _: False)
    with pytest.raises(KeyError):
        capture.observe([(0, SampledRow("request", SegRequest("k", SEG, "predicting"), SEG))], torch.zeros(1, H))


def runner(*, partial: bool = False, rows: int = 2) -> SimpleNamespace:
    """Return what the extension reads of vLLM's V1 runner: one request that asks and one that does not."""
    asks = SimpleNamespace(extra_args={REQUEST_FIELD: SegRequest("k", SEG, "at").to_extra()})
    silent = SimpleNamespace(extra_args=None)
    return SimpleNamespace(
        input_batch=SimpleNamespace(num_reqs=rows, req_ids=["silent", "asks"]),
        discard_request_mask=SimpleNamespace(np=np.array([False, partial])),
        requests={
            "silent": SimpleNamespace(sampling_params=silent, output_token_ids=[SEG]),
            "asks": SimpleNamespace(sampling_params=asks, output_token_ids=[1, SEG]),
        },
    )


def test_only_requests_that_ask_are_watched():
    """Rows of other requests are left alone."""
    assert sampled_rows(runner(), torch.zeros(2, H)) == [(1, SampledRow("asks", SegRequest("k", SEG, "at"), SEG))]


def test_rows_that_are_not_samples_are_ignored():
    """Profiling runs, prompt log-probabilities and the chunks of a long prompt yield no state."""
    assert sampled_rows(runner(), torch.zeros(3, H)) == []
    assert sampled_rows(runner(partial=True), torch.zeros(2, H)) == []


@given(st.lists(st.lists(st.sampled_from([1, SEG]), max_size=4), max_size=8), st.integers(0, 6))
def test_states_come_with_the_text_after_their_token(steps, ahead):
    """However tokens are bundled and however far the engine runs ahead, each [SEG] gets its own state, in order."""
    tokens = [token for step in steps for token in step]
    places = [i for i, token in enumerate(tokens[:-1]) if token == SEG]
    ledger, fetched, read, released = SegLedger(SEG, H), 0, 0, []
    for step in steps:
        read += len(step)
        if ledger.see(step):
            known = [p for p in places if p + 1 < read + ahead][fetched:]
            ledger.add(np.array([[p] * H for p in known], np.float32).reshape(-1, H))
            fetched += len(known)
        released += ledger.release()[:, 0].tolist()
        assert released == [p for p in places if p + 1 < read]


def test_a_lost_state_is_an_error():
    """An answer whose [SEG] has no state is never passed on as if nothing were missing."""
    ledger = SegLedger(SEG, H)
    assert ledger.see([SEG, 1])
    with pytest.raises(InternalError):
        ledger.release()
