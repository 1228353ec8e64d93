"""The data folder: one system at a time, and nothing left of one that was killed."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from medvl.contracts.errors import SetupError
from medvl.runtime.folder import DataFolder, ProcessRecord, SystemState, write_private


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "data")
    folder.prepare()
    return folder


def state(**processes: ProcessRecord) -> SystemState:
    return SystemState(
        endpoint="127.0.0.1:8500",
        triton_endpoint="127.0.0.1:8501",
        metrics_url="http://127.0.0.1:8502/metrics",
        triton_metrics_url="http://127.0.0.1:8503/metrics",
        checkpoint="phantom",
        repository="phantom",
        versions={},
        processes=processes,
    )


def test_a_second_system_is_sent_to_the_first(folder: DataFolder) -> None:
    """The sentence says where the system is and how to stop it."""
    with folder.locked():
        folder.write_state(state(runtime=ProcessRecord(pid=4711, created_s=0.0)))
        with pytest.raises(SetupError, match=r"already runs .* at 127\.0\.0\.1:8500.*kill 4711"), folder.locked():
            pass


def test_a_second_system_waits_for_one_that_starts(folder: DataFolder) -> None:
    """Before the first is ready there is nowhere to be sent to."""
    with (
        folder.locked(),
        pytest.raises(SetupError, match="Another medvl up is starting or stopping"),
        folder.locked(),
    ):
        pass


def test_the_folder_is_free_again_after_use(folder: DataFolder) -> None:
    """The lock ends with its holder."""
    for _ in range(2):
        with folder.locked():
            pass


def test_processes_of_a_killed_system_are_ended(folder: DataFolder) -> None:
    """A system that was killed left its state behind, and its processes are found by it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        record = ProcessRecord.of(process.pid)
        folder.write_state(state(triton=record))
        folder.end_leftovers()
        assert record.find() is None
    assert folder.read_state() is None


def test_a_process_that_took_over_an_id_is_left_alone(folder: DataFolder) -> None:
    """Ids are used again; the time of creation tells processes apart."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        folder.write_state(state(triton=ProcessRecord(pid=process.pid, created_s=1.0)))
        folder.end_leftovers()
        assert process.poll() is None
        process.kill()


def test_state_that_cannot_be_read_is_no_state(folder: DataFolder) -> None:
    """A file of another version does not keep a system from starting."""
    folder.state_file.write_text('{"endpoint": 1}')
    assert folder.read_state() is None


def test_the_previous_log_is_kept_once(folder: DataFolder) -> None:
    """A new start does not destroy the evidence of the last one."""
    for run in ("first", "second", "third"):
        folder.log_file("triton").write_text(run)
    assert {p.name: p.read_text() for p in folder.logs.iterdir()} == {"triton.log": "third", "triton.log.1": "second"}


def test_secrets_are_for_this_user_only(folder: DataFolder) -> None:
    """The key of Triton's restricted protocols stands in the orchestrator's configuration."""
    path = folder.runtime / "orchestrator.json"
    write_private(path, "{}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.root.stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_made_is_named_by_its_option(tmp_path: Path) -> None:
    """The sentence says what to change."""
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match="choose another with --data"):
        DataFolder(tmp_path / "file" / "data").prepare()
