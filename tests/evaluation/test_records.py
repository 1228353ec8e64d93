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
    """In memory and from the file, item for item."""
    records = Records(tmp_path)
    made = records.get(IDENTITY, lambda: [ITEM])
    assert records.get(IDENTITY, never) == made
    assert Records(tmp_path).get(IDENTITY, never) == made
    assert made.items == (ITEM,)


@pytest.mark.parametrize("name", [field.name for field in fields(Identity)])
def test_everything_that_a_result_depends_on_is_in_its_key(name: str, tmp_path):
    """Another checkpoint, software, case, task, subject or condition is done anew."""
    Records(tmp_path).get(IDENTITY, lambda: [ITEM])
    assert replace(IDENTITY, **{name: "other"}) not in Records(tmp_path)


def test_a_line_that_was_cut_off_is_done_again(tmp_path):
    """A process that dies while it writes costs that one result, and the file goes on whole."""
    records = Records(tmp_path)
    second = replace(IDENTITY, case="8")
    for identity in (IDENTITY, second):
        records.get(identity, lambda: [ITEM])
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-20])
    again = Records(tmp_path)
    assert IDENTITY in again
    assert second not in again
    again.get(second, lambda: [ITEM])
    assert second in Records(tmp_path)


def test_a_foreign_file_is_refused(tmp_path):
    """With a sentence that says what to do."""
    (tmp_path / FILE).write_text('{"key": 1}\n')
    with pytest.raises(SetupError, match="--work"):
        Records(tmp_path)
