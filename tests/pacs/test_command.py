"""``medvl pacs`` as a process of its own."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import signal
import subprocess
import sys

import pytest

from medvl.client.cli import main
from medvl.pacs import run as run_module
from medvl.pacs.config import Destination, GatewayConfig
from medvl.pacs.spool import Phase, Spool

from .conftest import RESULTS, make_series

UNCAUGHT = """
import asyncio, logging, threading
from medvl.pacs.run import configure_log

configure_log()

def fail():
    raise ValueError("PLANTED")

async def forgotten():
    await asyncio.wait([asyncio.create_task(asyncio.to_thread(fail))])

logging.getLogger("pydicom").error("PLANTED")
logging.getLogger("medvl.pacs.part").info("a sentence of ours")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
asyncio.run(forgotten())
fail()
"""


async def start(site, spool):
    """The command at work: the process, its first line and the port that it names."""
    command = [
        sys.executable, "-m", "medvl.client.cli", "pacs", "--host", "127.0.0.1", "--port", "0", "--endpoint",
        site.service.endpoint, "--destination", f"INBOX@127.0.0.1:{site.inbox.destination.port}", "--labels",
        "liver,spleen", "--spool", str(spool), "--quiet-s", "0.2",
    ]  # fmt: skip
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    listening = await process.stderr.readline()
    return process, listening, int(listening.split()[-1])


async def test_no_patient_data_is_logged_and_sigterm_ends_it(site, series, tmp_path):
    """From the first instance to delivery, and through a failure: no value of a header on any stream or in any name."""
    alone = make_series(1)
    for ds in [*alone, *series]:
        # Libraries warn about these, and quote them.
        ds.PatientName = "PLANTED"
        ds.add_new("PatientBirthDate", "LO", "PLANTED-DATE")
    spool = tmp_path / "spool"
    process, listening, port = await start(site, spool)
    assert await site.send_to(port, alone) == [0]
    lines = [listening, *[await process.stderr.readline() for _ in range(3)]]
    assert await site.send_to(port, series) == [0] * len(series)
    lines.append(await process.stderr.readline())
    process.send_signal(signal.SIGTERM)
    out, rest = await asyncio.wait_for(process.communicate(), 60)
    said = b"".join([out, *lines, rest])
    assert process.returncode == 0
    for line, words in zip(lines[1:], ("spool: 0 refused series", "begun", "refused: ", "begun"), strict=True):
        assert words in line.decode()
    assert b" delivered: 3 results" in rest
    assert b"PLANTED" not in said.upper()
    assert series[0].SeriesInstanceUID.encode() not in said
    assert not [p for p in spool.rglob("*") if "PLANTED" in p.name.upper()]
    states = [json.loads(p.read_text()) for p in spool.rglob("state.json")]
    assert sorted(s["phase"] for s in states) == ["delivered", "refused"]


async def test_a_series_that_ends_the_process_waits_behind_the_others(site, series):
    """As one does that does not fit into memory: it is known to have been begun, and is tried again after a while."""
    site.service.pause()
    process, _, port = await start(site, site.config.spool)
    assert await site.send_to(port, series) == [0] * len(series)
    await asyncio.to_thread(site.service.asked.wait)
    process.kill()
    await process.wait()
    state = site.spooled().state()
    assert (state.phase, state.attempts, state.again_at_s > state.changed_at_s) == (Phase.BEGUN, 1, True)
    site.service.go_on.set()
    async with site.gateway():
        assert await site.outcomes.get()
    assert site.spooled().state().attempts == 2
    assert site.inbox.take().keys() == RESULTS


def test_what_nothing_catches_is_told_without_its_words():
    """In a thread, a forgotten task and the main thread; what pydicom and its like remark is not."""
    run = subprocess.run([sys.executable, "-c", UNCAUGHT], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "PLANTED" not in run.stdout + run.stderr
    ours, thread, task, main_thread = (line.split(" ", 3)[3] for line in run.stderr.splitlines())
    assert ours == "a sentence of ours"
    assert task.startswith("asyncio in ")
    assert ": ValueError in fail:" in task
    for said in (thread, main_thread):
        assert said.startswith("an exception was not caught: ValueError in fail:")


TOLD = {
    "--aet": ("SCP", "ae_title", "SCP"),
    "--host": ("10.0.0.1", "host", "10.0.0.1"),
    "--port": ("104", "port", 104),
    "--labels": ("liver, spleen,", "labels", ("liver", "spleen")),
    "--geometry-policy": ("resample", "geometry_policy", "resample"),
    "--quiet-s": ("4", "quiet_s", 4.0),
    "--keep-h": ("2", "keep_s", 7200.0),
    "--keep-refused-h": ("3", "keep_refused_s", 10800.0),
}
"""Of each option what is typed, and what of the gateway's configuration that is."""


@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize("options", [[], *([option] for option in TOLD), [*TOLD]], ids=lambda o: " ".join(o) or "none")
def test_what_is_typed_is_what_the_gateway_is_told(options, tmp_path, monkeypatch):
    """Each option is its own field, in its unit: hours are hours. What is not typed is what the help says."""
    told = []

    async def serve(config):
        told.append(config)

    monkeypatch.setattr(run_module, "_serve", serve)
    typed = [word for option in options for word in (option, TOLD[option][0])]
    needed = ["--endpoint", "localhost:1", "--destination", "PACS@host:104", "--spool", str(tmp_path / "s")]
    assert main(["pacs", *needed, *typed]) == 0
    untold = GatewayConfig(
        ae_title="MEDVL",
        host="0.0.0.0",
        port=11112,
        endpoint="localhost:1",
        destination=Destination("PACS", "host", 104),
        labels=(),
        geometry_policy="reject",
        spool=tmp_path / "s",
        quiet_s=15.0,
        keep_s=24 * 3600.0,
        keep_refused_s=72 * 3600.0,
    )
    assert told == [dataclasses.replace(untold, **{field: value for _, field, value in map(TOLD.get, options)})]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--destination", "PACS"],
        ["--destination", "PACS@host:104", "--quiet-s", "0"],
        ["--destination", "PACS@host:104", "--aet", "A-TITLE-THAT-IS-TOO-LONG"],
        ["--destination", "PACS@host:104", "--endpoint", "nowhere"],
        ["--destination", "PACS@host:104", "--port", "70000"],
        ["--destination", "PACS@host:104", "--keep-refused-h", "-1"],
    ],
    ids=" ".join,
)
def test_nonsense_is_refused_before_the_port_opens(arguments, tmp_path):
    """With the exit code of wrong arguments."""
    assert main(["pacs", "--endpoint", "localhost:1", "--spool", str(tmp_path / "s"), *arguments]) == 2
    assert not (tmp_path / "s").exists()


@pytest.mark.usefixtures("own_logging")
def test_a_port_that_is_taken_is_said(site, tmp_path, capsys):
    """With the exit code of a wrong setup; the spool is free again."""
    taken = str(site.inbox.destination.port)
    arguments = ["--endpoint", "localhost:1", "--destination", "PACS@h:104", "--spool", str(tmp_path / "s")]
    assert main(["pacs", *arguments, "--host", "127.0.0.1", "--port", taken]) == 7
    assert f"Port {taken}" in capsys.readouterr().err
    Spool(tmp_path / "s").close()
