"""Errors keep their class, their sentence and their delay across Triton, which carries only a text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvl.contracts import errors
from medvl.contracts.faults import from_triton_text, to_triton_text


def subclasses(cls: type) -> list[type]:
    return [cls, *(d for child in cls.__subclasses__() for d in subclasses(child))]


TREE = subclasses(errors.MedvlError)
SENTENCES = st.text(min_size=1).map(lambda s: f"The volume is wrong {s}".strip())


@pytest.mark.parametrize("cls", TREE)
@given(sentence=SENTENCES, delay=st.none() | st.integers(1, 9000).map(lambda n: n / 10))
def test_every_error_survives_the_hop(cls, sentence, delay):
    """Class, sentence and delay come back for every error of the tree."""
    back = from_triton_text(to_triton_text(cls(sentence, retry_after_s=delay)))
    assert type(back) is cls
    assert str(back) == sentence
    assert back.retry_after_s == delay


@pytest.mark.parametrize(
    "prefix",
    [
        "in ensemble 'encode_volume', ",
        "[StatusCode.INVALID_ARGUMENT] ",
        "Failed to process the request(s) for model instance 'llm_0_0', message: TritonModelException: ",
    ],
)
def test_the_words_that_triton_puts_in_front_are_dropped(prefix):
    """An error is recognised inside a text of Triton."""
    back = from_triton_text(prefix + "UNKNOWN_LABEL: The checkpoint knows no class 'x'.")
    assert isinstance(back, errors.UnknownLabel)
    assert str(back) == "The checkpoint knows no class 'x'."


@pytest.mark.parametrize(
    ("text", "cls"),
    [
        ("Exceeds maximum queue size", errors.Overloaded),
        ("Request timeout expired", errors.Overloaded),
        ("Stub process 'llm_0_0' is not healthy.", errors.BackendUnavailable),
        ("Request for unknown model: 'llm' is not found", errors.BackendUnavailable),
        ("Request for unknown model: 'llm' has no available versions", errors.BackendUnavailable),
    ],
)
def test_tritons_own_errors_are_understood(text, cls):
    """Triton's own refusals become the error that tells the caller whether to retry."""
    assert type(from_triton_text(text)) is cls


def test_a_full_queue_names_a_delay():
    """A caller refused by a full queue learns when to come back."""
    assert from_triton_text("Exceeds maximum queue size").retry_after_s > 0


@given(st.text(alphabet=st.characters(exclude_characters=":")))
def test_words_of_a_backend_are_never_repeated(text):
    """A text that is not ours never reaches the caller."""
    assert text not in str(from_triton_text(f"/secret/path {text}")) or not text.strip() or len(text) < 40
