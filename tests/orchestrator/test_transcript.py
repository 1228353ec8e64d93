"""[SEG] tokens and their hidden states find each other, however the text is cut."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medvl.orchestrator.transcript import Transcript

SEG = "[SEG]"
PIECES = st.lists(st.sampled_from([SEG, "Größe ", "[", "SEG]", "[SE", " 🫁", "a"]), max_size=8)


@given(pieces=PIECES, data=st.data())
def test_spans_do_not_depend_on_how_the_text_is_cut(pieces, data):
    """Deltas of any length, and states that come early, late or in one heap, give the same pairs."""
    text = "".join(pieces)
    starts = [i for i in range(len(text)) if text.startswith(SEG, i)]
    transcript, left, sent, pairs = Transcript(SEG), text, 0, []
    while left or sent < len(starts):
        size = data.draw(st.integers(0 if sent < len(starts) else 1, len(left)))
        delta, left = left[:size], left[size:]
        count = data.draw(st.integers(0 if delta else 1, len(starts) - sent) if sent < len(starts) else st.just(0))
        hidden = np.arange(sent, sent + count)[:, np.newaxis]
        sent += count
        pairs += [(s.index, s.span.start, s.span.end, int(s.hidden[0])) for s in transcript.add(delta, hidden)]
    assert transcript.text == text
    assert transcript.unmatched == 0
    assert pairs == [(k, start, start + len(SEG), k) for k, start in enumerate(starts)]


def test_a_state_without_its_token_stays_unmatched():
    """It is told, not given to the wrong place."""
    transcript = Transcript(SEG)
    assert not list(transcript.add("no token", np.zeros((1, 4))))
    assert transcript.unmatched == 1
