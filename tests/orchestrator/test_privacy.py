"""Nothing that a caller says about a patient is written down."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import warnings

import grpc
import pytest

from medvl.orchestrator import audit
from medvl.orchestrator.audit import FIELDS
from medvl.wire.v1 import medvl_pb2 as pb

from .conftest import Series, System, collect

NAME = "Jane Planted"


async def test_no_text_of_a_request_is_logged(system: System, series: Series, capfd):
    """Questions, descriptions, class names, answers and digests stay out of the log, also when a request fails."""
    await system.put(series)
    system.fake.deltas = [(f"{NAME} is well.", ())]
    await collect(system.stub.Ask(pb.AskRequest(series=series.digest, question=f"How is {NAME}?")))
    system.fake.language_error = f"exception: prompt {NAME}"
    refused = [
        system.stub.Ask(pb.AskRequest(series=series.digest, question=f"How is {NAME}?")),
        system.stub.Ask(pb.AskRequest(series=series.digest, question=f"{NAME} [SEG]")),
        system.stub.Ask(pb.AskRequest(series=NAME, question="How?")),
        system.stub.Segment(pb.SegmentRequest(series=series.digest, objects=[pb.ObjectPrompt(label=NAME)])),
        system.stub.Segment(pb.SegmentRequest(series=series.digest, objects=[pb.ObjectPrompt(text=NAME)])),
    ]
    for call in refused:
        with pytest.raises(grpc.aio.AioRpcError):
            await collect(call)
    await system.lines(7)
    written = system.log.getvalue() + "".join(capfd.readouterr())
    assert "INVALID_REQUEST" in written
    assert "Planted" not in written
    assert series.digest not in written


async def test_every_line_is_json_of_allowed_fields(system: System, series: Series):
    """A log that machines read, with an id by which a caller's report can be found."""
    await system.put(series)
    call = system.stub.Report(pb.ReportRequest(series=series.digest))
    metadata = dict(await call.initial_metadata())
    await collect(call)
    lines = await system.lines(2)
    assert all(line.keys() <= FIELDS for line in lines)
    (line,) = [line for line in lines if line.get("request_id") == metadata["medvl-request-id"]]
    assert (line["method"], line["code"]) == ("Report", "OK")
    assert line["stages_ms"]["total"] > 0


async def test_a_defect_is_logged_by_its_place_not_by_its_words(system: System, series: Series, monkeypatch):
    """Type and frames find a bug; the text of an exception may hold what it failed on."""
    from medvl.orchestrator import service

    def fail(*_):
        raise ZeroDivisionError(f"{NAME} divided by zero")

    monkeypatch.setattr(service, "provenance", fail)
    await system.put(series)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(system.stub.Report(pb.ReportRequest(series=series.digest)))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    line = (await system.lines(2))[-1]
    assert "Planted" not in repr(caught.value) + system.log.getvalue()
    assert line["error_type"] == "ZeroDivisionError"
    assert any(frame.startswith("_write:") for frame in line["frames"])


def fail() -> None:
    raise ValueError(f"cannot parse {NAME}")


@pytest.mark.usefixtures("own_logging")
def test_what_libraries_log_is_json_without_their_words():
    """Who, how grave, where, and the type of an exception are told; a text may hold what a library was given."""
    stream = io.StringIO()
    audit.configure(stream)
    library = logging.getLogger("some.library")
    library.info("chatter about %s", NAME)
    talkative = logging.getLogger("talkative.library")
    talkative.setLevel(logging.DEBUG)
    talkative.debug("chatter that its own level lets pass")
    library.warning("no place for %s", NAME, extra={"patient": NAME})
    library.log(35, f"a level of its own for {NAME}")
    try:
        fail()
    except ValueError:
        library.exception("lost %s", NAME)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"{NAME} is deprecated", DeprecationWarning, stacklevel=1)
    assert "Planted" not in stream.getvalue()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert all(line.keys() <= FIELDS for line in lines)
    assert [(line["logger"], line["level"], line.get("error_type")) for line in lines] == [
        ("some.library", "warning", None),
        ("some.library", "warning", None),
        ("some.library", "error", "ValueError"),
        ("warnings", "warning", "DeprecationWarning"),
    ]
    assert lines[2]["frames"][-1].startswith("fail:")
    assert lines[3]["frames"][0].startswith("test_privacy.py:")


@pytest.mark.usefixtures("own_logging")
def test_what_nothing_catches_is_json_without_its_words():
    """A thread that fails, a deletion that does, and the end of the process are lines of the log."""
    stream = io.StringIO()
    audit.configure(stream)
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    try:
        fail()
    except ValueError as error:
        sys.excepthook(ValueError, error, error.__traceback__)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert "Planted" not in stream.getvalue()
    assert all(line.keys() <= FIELDS for line in lines)
    assert [(line["event"], line["level"], line["error_type"]) for line in lines] == 2 * [
        ("uncaught", "critical", "ValueError")
    ]
