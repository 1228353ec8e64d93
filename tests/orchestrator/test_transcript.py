"""[SEG] tokens and their hidden states find each other, however the text is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvl.contracts.errors import InternalError
from medvl.orchestrator.language import SegState
from medvl.orchestrator.transcript import Transcript

SEG = "[SEG]"
PIECES = st.lists(st.sampled_from([SEG, "Größe ", "[", "SEG]", "[SE", " 🫁", "a"]), max_size=8)


def state(start: int, value: float = 0.0) -> SegState:
    return SegState(start, np.full(4, value, np.float32))


@given(pieces=PIECES, data=st.data())
def test_spans_do_not_depend_on_how_the_text_is_cut(pieces, data):
    """Deltas of any length, states that come as soon as their token or later, and [SEG] that is only spelled."""
    text = "".join(pieces)
    spelled = [i for i in range(len(text)) if text.startswith(SEG, i)]
    tokens = [i for i in spelled if data.draw(st.booleans())]
    transcript, sent, pairs = Transcript(SEG), 0, []
    while sent < len(text) or len(pairs) < len(tokens):
        left = len(text) - sent
        size = data.draw(st.integers(min(1, left), left))
        delta, sent = text[sent : sent + size], sent + size
        known = [i for i in tokens if i + len(SEG) <= sent][len(pairs) :]
        known = known[: data.draw(st.integers(0 if sent < len(text) else len(known), len(known)))]
        segs = [state(i, len(pairs) + k) for k, i in enumerate(known)]
        pairs += [(s.index, s.span.start, s.span.end, int(s.hidden[0])) for s in transcript.add(delta, segs)]
    assert transcript.text == text
    assert transcript.resolved == len(tokens)
    assert pairs == [(k, start, start + len(SEG), k) for k, start in enumerate(tokens)]


@pytest.mark.parametrize("starts", [(0,), (5,), (4, 4), (20,), (-5,)])
def test_a_state_for_a_place_without_its_token_is_a_defect(starts):
    """It is told, not given to the wrong place: no [SEG] there, the same one twice, or none yet."""
    transcript = Transcript(SEG)
    with pytest.raises(InternalError):
        transcript.add("The [SEG]", [state(start) for start in starts])
