"""Hidden states of [SEG] from inside vLLM's worker.

:class:`SegCaptureExtension` is vLLM's ``worker_extension_cls``: it wraps the model's ``compute_logits``, whose input is
the state after the final norm of every position that is about to be sampled. A request opts in by
``SamplingParams(extra_args={REQUEST_FIELD: request.to_extra()})`` and its states are fetched by ``collective_rpc``.

The extension reads the V1 model runner (``VLLM_USE_V2_MODEL_RUNNER=0``) with synchronous scheduling: only there are the
sampled tokens known when the next state appears.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch

from medvl.contracts.defects import cause_of
from medvl.contracts.errors import InternalError
from medvl.serving.orphans import end_with

log = logging.getLogger(__name__)

REQUEST_FIELD = "medvl_seg"
MAX_REQUESTS = 4096
"""Requests whose states wait to be fetched; the oldest is dropped beyond, so that a lost caller costs no memory."""


@dataclass(frozen=True, slots=True)
class SegRequest:
    """What a request asks the worker to keep."""

    key: str
    """Name under which the states are fetched."""
    token_id: int
    """The [SEG] token."""
    state: Literal["at", "predicting", "prompt_end"]
    """Which state to keep: those at the answer's [SEG] tokens, those that predicted them, or that of the prompt's last
    token."""

    def to_extra(self) -> dict[str, Any]:
        """Return the plain value that crosses to the worker."""
        return {"key": self.key, "token_id": self.token_id, "state": self.state}

    @classmethod
    def from_extra(cls, extra: Mapping[str, Any] | None) -> Self | None:
        """Read the value of ``SamplingParams.extra_args``, None when the request did not ask."""
        value = (extra or {}).get(REQUEST_FIELD)
        return None if value is None else cls(**value)


@dataclass(frozen=True, slots=True)
class SampledRow:
    """One row of ``compute_logits``' input: the state of a request's last token so far."""

    request_id: str
    seg: SegRequest
    last_output: int | None
    """The answer's last token, None while the prompt is read."""


class SegCapture:
    """Keeps the states of [SEG] tokens until they are fetched."""

    def __init__(self) -> None:
        self._kept: dict[str, list[torch.Tensor]] = {}
        self._previous: dict[str, torch.Tensor] = {}

    def observe(self, rows: Iterable[tuple[int, SampledRow]], hidden: torch.Tensor) -> None:
        """Keep what the rows of one step ask for.

        Parameters
        ----------
        rows
            Row number and request of the rows whose request opted in.
        hidden
            States [rows, H] after the final norm.
        """
        for i, row in rows:
            match row.seg.state:
                case "prompt_end" if row.last_output is None:
                    self._keep(row.seg.key, hidden[i])
                case "at" if row.last_output == row.seg.token_id:
                    self._keep(row.seg.key, hidden[i])
                case "predicting":
                    if row.last_output == row.seg.token_id:
                        self._keep(row.seg.key, self._previous[row.request_id])
                    self._previous[row.request_id] = hidden[i].detach().clone()

    def _keep(self, key: str, state: torch.Tensor) -> None:
        self._kept.setdefault(key, []).append(state.detach().to("cpu", torch.float32, copy=True))
        while len(self._kept) > MAX_REQUESTS:
            del self._kept[next(iter(self._kept))]

    def forget_ended(self, alive: Callable[[str], bool]) -> None:
        """Drop the previous states of requests that ended."""
        self._previous = {rid: state for rid, state in self._previous.items() if alive(rid)}

    def take(self, key: str) -> bytes:
        """Return and forget a request's states, FP32 [n, H] in the order of their tokens."""
        states = self._kept.pop(key, [])
        return torch.stack(states).numpy().tobytes() if states else b""


def states_from_bytes(data: bytes, width: int) -> np.ndarray:
    """Return the states of :meth:`SegCapture.take` as FP32 [n, width]."""
    return np.frombuffer(data, dtype=np.float32).reshape(-1, width)


class SegLedger:
    """Matches the states of an answer's [SEG] tokens with its text.

    A state exists once the token after [SEG] has been sampled. The engine runs ahead of its reader, so states of tokens
    that have not been read may come along; they wait here for their token.
    """

    def __init__(self, token_id: int, width: int) -> None:
        self._token_id = token_id
        self._states = np.empty((0, width), np.float32)
        self._seen = 0
        self._last = 0
        self._released = 0

    def see(self, token_ids: Sequence[int]) -> bool:
        """Note the tokens of a step and return whether states have to be fetched for it."""
        if token_ids:
            self._seen += sum(token == self._token_id for token in token_ids)
            self._last = int(token_ids[-1] == self._token_id)
        return self._due > len(self._states)

    def add(self, states: np.ndarray) -> None:
        """Note states that have been fetched, FP32 [n, H]."""
        self._states = np.concatenate([self._states, states])

    def release(self) -> np.ndarray:
        """Return the states, FP32 [n, H], of the tokens that have been seen and followed by another.

        Raises
        ------
        InternalError
            When one of them is missing.
        """
        due = self._due
        if len(self._states) < due:
            raise InternalError("The states of [SEG] do not match the answer's tokens.")
        released, self._states = self._states[:due], self._states[due:]
        self._released += due
        return released

    @property
    def _due(self) -> int:
        return self._seen - self._last - self._released


class SegCaptureExtension:
    """Methods that vLLM adds to its worker; called by name through ``collective_rpc``."""

    model_runner: Any

    def seg_install(self) -> None:
        """Begin to watch the model's states."""
        capture, runner = SegCapture(), self.model_runner
        self._seg_capture = capture
        self._seg_failure: str | None = None
        compute_logits = runner.model.compute_logits

        def watched(hidden_states: torch.Tensor, *args: object, **kwargs: object) -> object:
            try:
                capture.observe(sampled_rows(runner, hidden_states), hidden_states)
                capture.forget_ended(runner.requests.__contains__)
            except Exception as error:
                # Nothing that goes wrong here may take the engine down with every other request.
                self._seg_failure = cause_of(error)
                log.error("the states of [SEG] were not captured: %s", self._seg_failure)
            return compute_logits(hidden_states, *args, **kwargs)

        runner.model.compute_logits = watched

    def seg_take(self, key: str) -> bytes:
        """Return and forget the states that a request asked for, FP32 [n, H]; raise what went wrong since the last."""
        failure, self._seg_failure = self._seg_failure, None
        if failure is not None:
            raise RuntimeError(failure)
        return self._seg_capture.take(key)

    def end_with(self, process_id: int) -> None:
        """End the engine's processes when another process, the stub that serves them, is gone."""
        end_with(process_id)


def sampled_rows(runner: Any, hidden: torch.Tensor) -> list[tuple[int, SampledRow]]:  # noqa: ANN401
    """Return the rows of one step whose requests opted in and whose last token so far was computed in it.

    Profiling runs and prompt log-probabilities call ``compute_logits`` with other rows and yield none; neither do
    the chunks of a prompt before its last.
    """
    batch = runner.input_batch
    if hidden.shape[0] != batch.num_reqs:
        return []
    partial = runner.discard_request_mask.np
    rows = []
    for i, request_id in enumerate(batch.req_ids):
        state = runner.requests.get(request_id)
        params = None if state is None or partial[i] else state.sampling_params
        seg = None if params is None else SegRequest.from_extra(params.extra_args)
        if seg is not None:
            outputs = state.output_token_ids
            rows.append((i, SampledRow(request_id, seg, outputs[-1] if outputs else None)))
    return rows
