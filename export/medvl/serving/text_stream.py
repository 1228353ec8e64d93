"""Tokens to text, piece by piece, so that the pieces joined are the text of all tokens; the places of [SEG] in it."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

_REPLACEMENT = "\ufffd"
"""What a byte-level decoder puts for bytes that are no character (yet)."""


class TextStream:
    """Decodes one answer; characters that span tokens wait for their last byte.

    For byte-level tokenizers, as the Qwen2 family has: what stands before bytes that are no character yet is final,
    and behind a whole character decoding can begin anew.

    Parameters
    ----------
    tokenizer
        The checkpoint's, added tokens included.
    seg_token_id
        The [SEG] token; text that spells it in other tokens is text.
    """

    def __init__(self, tokenizer: Tokenizer, seg_token_id: int) -> None:
        self._tokenizer = tokenizer
        self._seg_token_id = seg_token_id
        self._seg_starts: list[int] = []
        self._pending: list[int] = []
        self._decoded = 0
        self._sent = 0

    def add(self, token_ids: Sequence[int], *, last: bool) -> str:
        """Return the text that has become certain; with the ``last`` tokens, all that is left."""
        for token in token_ids:
            if token == self._seg_token_id:
                self._seg_starts.append(self._decoded + len(self._decode()))
            self._pending.append(token)
        text = self._decode()
        certain = text if last else text.rstrip(_REPLACEMENT)
        added, self._sent = certain[self._sent :], max(len(certain), self._sent)
        if certain == text:
            self._decoded += len(text)
            self._pending.clear()
            self._sent = 0
        return added

    def take_seg_starts(self, count: int) -> list[int]:
        """Return where the next [SEG] tokens stand: code points of the whole text before each of them."""
        taken, self._seg_starts = self._seg_starts[:count], self._seg_starts[count:]
        return taken

    def _decode(self) -> str:
        text: str = self._tokenizer.decode(self._pending, skip_special_tokens=False)
        return text
