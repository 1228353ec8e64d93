"""The generator and the command, against a service on loopback."""

from __future__ import annotations

import json
import threading

import nibabel
import numpy as np
import pytest

from medvl.client.aio import AsyncClient
from medvl.client.cli import main
from medvl.client.policies import RetryPolicy
from medvl.client.results import SeriesRef
from medvl.contracts.errors import (
    BackendUnavailable,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    Overloaded,
    UnknownLabel,
)
from medvl.loadtest.generate import Generator, Outcome
from medvl.loadtest.plan import Load

SERIES = SeriesRef("0" * 64, (16, 18, 20))
NO_RETRY = RetryPolicy(max_attempts=1)


def load(*, rate=None, concurrency=None, count=10, warmup=0):
    return Load(
        request_rate=rate,
        concurrency=concurrency,
        duration_s=60.0,
        deadline_s=30.0,
        max_requests=count,
        warmup=warmup,
        seed=1,
    )


def ask(client, deadline_s):
    return client.ask(SERIES, "Is the liver normal?", deadline_s=deadline_s)


async def generate(service, load):
    async with AsyncClient(service.endpoint, retry=NO_RETRY) as client:
        return await Generator(client, load, [ask]).run()


async def test_an_open_loop_does_not_wait_for_answers(service):
    """The service answers nobody until ten requests are there; a loop that waited would never send the second."""
    service.hold = threading.Barrier(10)
    samples = await generate(service, load(rate=200.0))
    assert [s.outcome for s in samples] == [Outcome.OK] * 10


async def test_an_open_loop_keeps_its_schedule(service):
    """Nothing is sent before its time; what is late is late in the samples too."""
    samples = await generate(service, load(rate=100.0))
    assert all(s.sent_s >= s.scheduled_s for s in samples)
    assert all(s.scheduled_s < s.first_s <= s.ended_s for s in samples)


async def test_a_closed_loop_has_as_many_under_way_as_clients(service):
    """Three clients: never four requests at once, and never fewer while there is work."""
    service.hold = threading.Barrier(3)
    samples = await generate(service, load(concurrency=3, count=12))
    assert len(samples) == 12
    assert service.most_running == 3


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Overloaded("Busy.", retry_after_s=1.0), Outcome.SHED),
        (DeadlineExceeded("Late."), Outcome.DEADLINE),
        (BackendUnavailable("Away."), Outcome.UNAVAILABLE),
        (UnknownLabel("Unknown."), Outcome.FAILED),
        (InternalError("Defect."), Outcome.FAILED),
    ],
    ids=lambda value: getattr(value, "reason", None),
)
async def test_every_refusal_falls_into_its_class(service, error, outcome):
    """Nothing is repeated: what the service sheds counts as shed."""
    service.errors[1] = error
    samples = await generate(service, load(concurrency=1, count=3))
    assert [s.outcome for s in samples] == [Outcome.OK, outcome, Outcome.OK]
    assert len(service.arrived_s) == 3


async def test_an_answer_that_differs_from_the_first_is_wrong(service):
    """The same question on the same series has one greedy answer; the warm-up's counts as the first."""
    service.drifts_from = 3
    samples = await generate(service, load(concurrency=1, count=4, warmup=1))
    assert [s.outcome for s in samples] == [Outcome.OK, Outcome.OK, Outcome.WRONG_ANSWER, Outcome.WRONG_ANSWER]


async def test_a_service_that_fails_the_warm_up_is_not_measured(service):
    """Its error is raised instead."""
    service.errors[0] = InvalidRequest("No.")
    with pytest.raises(InvalidRequest):
        await generate(service, load(concurrency=1, warmup=1))


def run(service, series, *arguments):
    return main(["loadtest", str(series), "--endpoint", service.endpoint, *arguments])


def test_the_command_measures_and_writes_its_figures(service, series, tmp_path, capsys):
    """Figures on standard output and in the file; the series is named by its digest only."""
    out = tmp_path / "out.json"
    status = run(
        service, series, "--request-rate", "100", "--task", "ask", "--max-requests", "20", "--goodput", "e2e:60000",
        "--goodput", "ttft:60000", "--min-goodput", "1", "--json", str(out),
    )  # fmt: skip
    document = json.loads(out.read_text())
    assert status == 0
    assert document["passed"] is True
    assert document["figures"]["outcomes"]["ok"] == 20
    assert document["figures"]["e2e"]["count"] == 20
    assert document["figures"]["good_share"] == 1.0
    assert document["service"]["checkpoint"] == "fake"
    assert document["series"]["shape"] == [16, 18, 20]
    assert series.name not in out.read_text()
    assert "20 requests" in capsys.readouterr().out
    assert len(set(service.questions)) == 3


def test_a_series_that_would_be_refused_is_loaded_with_a_warning(service, series, tmp_path, capsys):
    """A tilted gantry: its slices are not at right angles to their axis."""
    tilted = nibabel.load(series)
    affine = tilted.affine.copy()
    affine[1, 2] = 0.8
    nibabel.save(nibabel.Nifti1Image(np.asarray(tilted.dataobj), affine), tmp_path / "tilted.nii.gz")
    assert run(service, tmp_path / "tilted.nii.gz", "--concurrency", "1", "--max-requests", "2") == 0
    assert "warning" in capsys.readouterr().err
    assert run(service, series, "--concurrency", "1", "--max-requests", "2") == 0
    assert "warning" not in capsys.readouterr().err


def test_a_wrong_answer_fails_the_command(service, series):
    """CI sees exit code 1."""
    service.drifts_from = 4
    assert run(service, series, "--concurrency", "1", "--max-requests", "6") == 1


def test_a_missed_objective_fails_the_command(service, series):
    """No answer comes within a nanosecond."""
    arguments = ["--concurrency", "1", "--max-requests", "3", "--goodput", "e2e:0.000001", "--min-goodput", "0.5"]
    assert run(service, series, *arguments) == 1


def test_segmentation_takes_the_first_class_that_is_served(service, series):
    """Without --label."""
    assert run(service, series, "--concurrency", "1", "--max-requests", "2", "--task", "segment-label") == 0
    assert {p.label for p in service.prompts} == {"liver"}


def test_points_are_few_and_come_again(service, series):
    """So that each answer can be compared with the first one to the same point."""
    assert run(service, series, "--concurrency", "2", "--max-requests", "40", "--task", "segment-point") == 0
    assert 1 < len({tuple(p.points[0].lps_mm) for p in service.prompts}) <= 8


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--concurrency", "1", "--request-rate", "1"],
        ["--concurrency", "0"],
        ["--request-rate", "nan"],
        ["--concurrency", "1", "--goodput", "tpot:5"],
        ["--concurrency", "1", "--goodput", "e2e:soon"],
        ["--concurrency", "1", "--min-goodput", "90"],
    ],
    ids=" ".join,
)
def test_nonsense_is_refused_before_anything_is_sent(service, series, arguments):
    """With the exit code of wrong arguments."""
    assert run(service, series, *arguments) == 2
    assert not service.arrived_s
