"""A process that logs without words says what failed and where, and nothing of what it was given."""

from __future__ import annotations

import subprocess
import sys

from medvl.contracts.defects import cause_of
from medvl.contracts.errors import Overloaded

NAME = "Jane Planted"
PROGRAM = f"""
import asyncio, logging, threading
from medvl.contracts.defects import log_without_words

log_without_words()
words = {NAME!r}

def fail():
    raise ValueError(words)

def leave():
    raise SystemExit(words)

class Deleted:
    def __del__(self):
        raise KeyError(words)

async def forgotten():
    task = asyncio.create_task(asyncio.to_thread(fail))
    await asyncio.wait([task])

logging.getLogger("some.library").warning("no place for %s", words)
logging.getLogger("medvl.part").warning("a sentence of ours")
try:
    fail()
except ValueError:
    logging.getLogger("medvl.part").exception("a request failed")
for target in (fail, leave):
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
Deleted()
asyncio.run(forgotten())
fail()
"""


def test_no_word_of_an_exception_is_written():
    """Types and places are told of what is logged, of threads, deletions, forgotten tasks and the main thread."""
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "Planted" not in run.stdout + run.stderr
    said = [line.split(" ", 3)[3] for line in run.stderr.splitlines()]
    assert [line.rpartition(":")[0] for line in said] == [
        "some.library in <module>",
        "",
        "a request failed: ValueError in fail",
        "an exception was not caught: ValueError in fail",
        "an exception was not caught: KeyError in __del__",
        said[5].rpartition(":")[0],
        "an exception was not caught: ValueError in fail",
    ]
    assert said[1] == "a sentence of ours"
    assert said[5].startswith("asyncio in ")
    assert ": ValueError in fail:" in said[5]


def test_a_cause_is_a_reason_or_a_type_with_its_place():
    """An exception that was never raised has no place."""
    assert cause_of(Overloaded(f"{NAME} waits.")) == "OVERLOADED"
    assert cause_of(ValueError(NAME)) == "ValueError"
