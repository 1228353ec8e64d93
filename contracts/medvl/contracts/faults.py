"""Errors across Triton, which carries nothing of an error but a text.

A model of ours that fails sends ``REASON: sentence`` or ``REASON(retry_after_s=1.5): sentence``, where the reason is
that of a class of :mod:`medvl.contracts.errors`; the caller rebuilds the class from it. Triton may put words of its
own in front ("in ensemble 'encode_volume', ..."). Texts of Triton itself are known by their words; whatever else a
server may say becomes :class:`InternalError` and is not repeated, since a backend's words never reach a caller.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from medvl.contracts.errors import (
    BackendUnavailable,
    DeadlineExceeded,
    InternalError,
    MedvlError,
    Overloaded,
    RequestCancelled,
)

OVERLOAD_RETRY_S = 1.0
"""Delay advised when a queue of Triton is full, or did not move for its own timeout; Triton names none."""

_OURS = re.compile(
    r"(?:^|[\s,])(?P<reason>[A-Z][A-Z_]+)(?:\(retry_after_s=(?P<retry_after_s>[0-9.]+)\))?: (?P<sentence>.+)", re.DOTALL
)

_TRITON: tuple[tuple[str, type[MedvlError], str], ...] = (
    ("exceeds maximum queue size", Overloaded, "The server is busy: try again later."),
    ("timeout expired", Overloaded, "The request waited too long for a model: try again later."),
    ("deadline exceeded", DeadlineExceeded, "The deadline passed before a model had answered."),
    ("cancelled", RequestCancelled, "The request was cancelled."),
    ("not healthy", BackendUnavailable, "A model does not answer: try again later."),
    ("not ready", BackendUnavailable, "A model does not answer: try again later."),
    ("no available versions", BackendUnavailable, "A model is not loaded: try again later."),
    ("unknown model", BackendUnavailable, "A model is not loaded: try again later."),
    ("is not found", BackendUnavailable, "A model is not loaded: try again later."),
    ("server exiting", BackendUnavailable, "The server is stopping: try again later."),
    ("connect to all addresses", BackendUnavailable, "The inference server cannot be reached: try again later."),
    ("internal error from core", BackendUnavailable, "The inference server cannot be reached: try again later."),
)
"""Words of Triton 2.51's own errors and of gRPC in lower case, and what they mean to a caller."""


def _tree(root: type[MedvlError]) -> Iterator[type[MedvlError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


_BY_REASON = {cls.reason: cls for cls in _tree(MedvlError)}


def to_triton_text(error: MedvlError) -> str:
    """Return the text under which a model sends an error."""
    delay = "" if error.retry_after_s is None else f"(retry_after_s={error.retry_after_s:g})"
    return f"{error.reason}{delay}: {error}"


def from_triton_text(text: str) -> MedvlError:
    """Return the error that a text of Triton means, ready to be raised.

    Parameters
    ----------
    text
        Message of an ``InferenceServerException`` or of a stream's ``error_message``.
    """
    for match in _OURS.finditer(text):
        if cls := _BY_REASON.get(match["reason"]):
            delay = match["retry_after_s"]
            return cls(match["sentence"].strip(), retry_after_s=float(delay) if delay else None)
    lowered = text.lower()
    for words, cls, sentence in _TRITON:
        if words in lowered:
            return cls(sentence, retry_after_s=OVERLOAD_RETRY_S if cls is Overloaded else None)
    return InternalError("A model failed in a way that is a defect of the server.")
