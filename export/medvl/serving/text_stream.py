"""Tokens to text, piece by piece, so that the pieces joined are the text of all tokens."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

_REPLACEMENT = "\ufffd"
"""What a byte-level decoder puts for bytes that are no character (yet)."""


class TextStream:
    """Decodes one answer; characters that span tokens wait for their last byte.

    For byte-level tokenizers, as the Qwen2 family has: what stands before bytes that are no character yet is final,
    and behind a whole character decoding can begin anew.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pending: list[int] = []
        self._sent = 0

    def add(self, token_ids: Sequence[int], *, last: bool) -> str:
        """Return the text that has become certain; with the ``last`` tokens, all that is left."""
        self._pending += token_ids
        text: str = self._tokenizer.decode(self._pending, skip_special_tokens=False)
        certain = text if last else text.rstrip(_REPLACEMENT)
        added, self._sent = certain[self._sent :], max(len(certain), self._sent)
        if certain == text:
            self._pending.clear()
            self._sent = 0
        return added
