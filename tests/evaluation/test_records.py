"""What is done is not done again, and only what it depends on decides."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from medvl.contracts.errors import SetupError
from medvl.evaluation.items import Answered
from medvl.evaluation.records import FILE, Identity, Records

IDENTITY = Identity("c" * 64, "medvl-sam2 0", "7", "report", "reference", "own")
ITEM = Answered(topic="side", closed=True, question="Which?", answer="Left.", right=True)


def never():
    raise AssertionError("done again")


def test_a_second_run_finds_what_is_there(tmp_path):
    """In memory and from the file, item for item, whatever breaks a line elsewhere."""
    item = ITEM.model_copy(update={"answer": "Left.\u2028\x85\nOr not."})
    with Records(tmp_path) as records:
        made = records.get(IDENTITY, lambda: [item])
        assert records.get(IDENTITY, never) == made
    with Records(tmp_path) as records:
        assert records.get(IDENTITY, never) == made
    assert made.items == (item,)


@pytest.mark.parametrize("name", [field.name for field in fields(Identity)])
def test_everything_that_a_result_depends_on_is_in_its_key(name: str, tmp_path):
    """Another checkpoint, software, case, task, subject or condition is done anew."""
    with Records(tmp_path) as records:
        records.get(IDENTITY, lambda: [ITEM])
        assert replace(IDENTITY, **{name: "other"}) not in records


def test_a_line_that_was_cut_off_is_done_again(tmp_path):
    """A process that dies while it writes costs that one result, and the file goes on whole."""
    second = replace(IDENTITY, case="8")
    with Records(tmp_path) as records:
        for identity in (IDENTITY, second):
            records.get(identity, lambda: [ITEM])
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-20])
    with Records(tmp_path) as again:
        assert IDENTITY in again
        assert second not in again
        again.get(second, lambda: [ITEM])
    with Records(tmp_path) as records:
        assert second in records


def test_two_evaluations_do_not_share_a_file(tmp_path):
    """One would cut off what the other is writing."""
    with Records(tmp_path) as records:
        with pytest.raises(SetupError, match="--work"), Records(tmp_path):
            pass
        assert IDENTITY not in records


def test_a_foreign_file_is_refused(tmp_path):
    """With a sentence that says what to do."""
    (tmp_path / FILE).write_text('{"key": 1}\n')
    with pytest.raises(SetupError, match="--work"), Records(tmp_path):
        pass
