"""The text of a generation as it grows, and the [SEG] tokens in it with their hidden states."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Span:
    """Half-open range of code points of the whole text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ResolvedSeg:
    """A [SEG] token whose hidden state has arrived.

    Attributes
    ----------
    index
        Its number among the [SEG] tokens of the text.
    span
        Where it stands in the text.
    hidden
        float32 [H], after the final norm.
    """

    index: int
    span: Span
    hidden: NDArray[Any]


class Transcript:
    """Pairs the k-th [SEG] of the text with the k-th hidden state, whichever comes first.

    Parameters
    ----------
    seg_token
        The token as it stands in the text.
    """

    def __init__(self, seg_token: str) -> None:
        self._seg_token = seg_token
        self._text = ""
        self._searched = 0
        self._spans: deque[Span] = deque()
        self._hidden: deque[NDArray[Any]] = deque()
        self._resolved = 0

    @property
    def text(self) -> str:
        """The whole text so far."""
        return self._text

    @property
    def unmatched(self) -> int:
        """Hidden states that no [SEG] of the text belongs to yet."""
        return len(self._hidden)

    def add(self, delta: str, hidden: NDArray[Any] | None) -> Iterator[ResolvedSeg]:
        """Take in one response of the language model.

        Parameters
        ----------
        delta
            Text that the response adds.
        hidden
            float32 [n_seg, H], or None.

        Yields
        ------
        ResolvedSeg
            Each [SEG] that this response resolves.
        """
        self._text += delta
        self._find_spans()
        self._hidden.extend(hidden if hidden is not None else ())
        while self._spans and self._hidden:
            yield ResolvedSeg(self._resolved, self._spans.popleft(), self._hidden.popleft())
            self._resolved += 1

    def _find_spans(self) -> None:
        while (start := self._text.find(self._seg_token, self._searched)) >= 0:
            self._searched = start + len(self._seg_token)
            self._spans.append(Span(start, self._searched))
        # The token may be cut between two deltas: its beginning is looked at again.
        self._searched = max(self._searched, len(self._text) - len(self._seg_token) + 1)
