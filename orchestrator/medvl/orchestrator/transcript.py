"""The text of a generation as it grows, and the [SEG] tokens in it with their hidden states."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from medvl.contracts.errors import InternalError
from medvl.orchestrator.language import SegState


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
    """Gives each [SEG] token its number and its place; text that only spells it is text.

    Parameters
    ----------
    seg_token
        The token as it stands in the text.
    """

    def __init__(self, seg_token: str) -> None:
        self._seg_token = seg_token
        self._text = ""
        self._resolved = 0
        self._end = 0

    @property
    def text(self) -> str:
        """The whole text so far."""
        return self._text

    @property
    def resolved(self) -> int:
        """How many [SEG] tokens have been resolved."""
        return self._resolved

    def add(self, delta: str, segs: Iterable[SegState]) -> list[ResolvedSeg]:
        """Take in one response of the language model and return the [SEG] tokens that it resolves.

        Raises
        ------
        InternalError
            When a state comes before the text of its token, or for a place where the text has none.
        """
        self._text += delta
        return [self._resolve(seg) for seg in segs]

    def _resolve(self, seg: SegState) -> ResolvedSeg:
        if seg.start < self._end or not self._text.startswith(self._seg_token, seg.start):
            raise InternalError("The language model's [SEG] states do not belong to its text.")
        self._end = seg.start + len(self._seg_token)
        self._resolved += 1
        return ResolvedSeg(self._resolved - 1, Span(seg.start, self._end), seg.hidden)
