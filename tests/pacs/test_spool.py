"""The spool loses nothing, and says nothing about a patient."""

from __future__ import annotations

import errno
import json
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import Mock

import pytest

from medvl.contracts.errors import SetupError
from medvl.pacs import spool as spool_module
from medvl.pacs.spool import Phase, Spool, write_durably


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "spool")
    yield spool
    spool.close()


def receive(spool, series_uid, instance_uid, data):
    """Write an instance; what it holds is its own digest."""
    spool.receive(series_uid, instance_uid, data.hex(), data)


def only(spool):
    [series] = spool.series()
    return series


@dataclass
class Disk:
    """What would be there after a power cut: names by folder, and contents of files."""

    folders: dict[Path, set[str]] = field(default_factory=dict)
    contents: list[bytes] = field(default_factory=list)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk, fsync = Disk(), os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_dir():
            disk.folders[path] = {inside.name for inside in path.iterdir()}
        else:
            disk.contents.append(path.read_bytes())

    monkeypatch.setattr(os, "fsync", watched)
    return disk


def test_what_was_received_survives_a_power_cut(spool, disk: Disk):
    """Its bytes, its name, and those of the folders above it; what it replaced does not come back."""
    for data in (b"first", b"corrected"):
        receive(spool, "1.2", "1.2.1", data)
        series = only(spool)
        [path] = series.instances.iterdir()
        assert data in disk.contents
        assert disk.folders[series.instances] == {path.name}
    assert disk.folders[series.folder] == {"instances"}
    assert disk.folders[series.folder.parent] == {series.name}


def test_what_became_of_a_series_survives_a_power_cut(spool, disk: Disk):
    """Its results, and that they were delivered."""
    receive(spool, "1.2", "1.2.1", b"x")
    series = only(spool)
    series.keep_results("f", {"sr.dcm": b"report"})
    series.record(series.fingerprint(), Phase.DELIVERED)
    assert disk.folders[series.folder / "results"] == {"f"}
    assert disk.folders[series.folder] == {"instances", "results", "state.json"}
    assert {b"report", (series.folder / "state.json").read_bytes()} <= {*disk.contents}


def test_names_in_the_spool_are_hashes(spool, tmp_path):
    """UIDs hold sites and times; names of files are made of neither."""
    receive(spool, "1.2.3.4711", "1.2.3.4711.1", b"x")
    names = [p.name for p in tmp_path.rglob("*")]
    assert not [n for n in names if "4711" in n]


def test_only_its_owner_reads_the_spool(spool, tmp_path):
    """It holds patient data."""
    for name in ("series", "incoming"):
        assert (tmp_path / "spool" / name).stat().st_mode & 0o077 == 0


def test_an_instance_that_comes_twice_is_one(spool):
    """Its series is what it was."""
    receive(spool, "1.2", "1.2.1", b"x")
    series = only(spool)
    series.record(series.fingerprint(), Phase.DELIVERED)
    receive(spool, "1.2", "1.2.1", b"x")
    assert [path.read_bytes() for path in series.instances.iterdir()] == [b"x"]
    assert series.due_at_s(1.0) is None


def test_an_instance_that_was_corrected_replaces_what_it_was(spool):
    """Its series is worked on again; with what it was before it is the series of before."""
    for number in "12":
        receive(spool, "1.2", f"1.2.{number}", b"first")
    series = only(spool)
    before = series.fingerprint()
    series.record(before, Phase.DELIVERED)
    receive(spool, "1.2", "1.2.1", b"corrected")
    assert sorted(path.read_bytes() for path in series.instances.iterdir()) == [b"corrected", b"first"]
    assert series.due_at_s(1.0) is not None
    receive(spool, "1.2", "1.2.1", b"first")
    assert series.fingerprint() == before


def test_a_correction_that_a_crash_cut_short_leaves_one_file(tmp_path, monkeypatch):
    """Both are there for a moment, so that one of them always is; the next gateway keeps the newer one."""
    spool = Spool(tmp_path / "spool")
    receive(spool, "1.2", "1.2.1", b"first")
    receive(spool, "1.2", "1.2.2", b"other")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            receive(spool, "1.2", "1.2.1", b"corrected")
    assert len([*only(spool).instances.iterdir()]) == 3
    spool.close()
    spool = Spool(tmp_path / "spool")
    assert sorted(path.read_bytes() for path in only(spool).instances.iterdir()) == [b"corrected", b"other"]
    spool.close()


def test_a_spool_of_an_earlier_version_goes_on(spool):
    """Its names do not say what files hold: a series stays what became of it until one of its instances comes again."""
    receive(spool, "1.2", "1.2.1", b"x")
    series = only(spool)
    [path] = series.instances.iterdir()
    path.rename(path.with_name(f"{path.name[:32]}.dcm"))
    series.record(series.fingerprint(), Phase.DELIVERED)
    assert series.due_at_s(1.0) is None
    receive(spool, "1.2", "1.2.1", b"x")
    assert [p.name for p in series.instances.iterdir()] == [path.name]
    assert series.due_at_s(1.0) is not None


def test_an_instance_that_is_replaced_meanwhile_has_no_time(spool, monkeypatch):
    """The series is not held up by it."""
    receive(spool, "1.2", "1.2.1", b"x")
    series = only(spool)
    [path] = series.instances.iterdir()
    monkeypatch.setattr(Path, "iterdir", lambda _: iter([path, path.with_name("gone")]))
    assert series.due_at_s(1.0) == path.stat().st_mtime + 1.0


def test_a_series_is_due_when_it_has_been_quiet(spool):
    """Counted from the newest instance."""
    receive(spool, "1.2", "1.2.1", b"x")
    receive(spool, "1.2", "1.2.2", b"x")
    for number, path in enumerate(sorted(only(spool).instances.iterdir())):
        os.utime(path, (1000.0 + number, 1000.0 + number))
    assert only(spool).due_at_s(15.0) == 1016.0


def test_a_failure_waits_twice_as_long_each_time_and_survives_a_restart(spool):
    """5, 10, 20 seconds, and never longer than a quarter of an hour."""
    receive(spool, "1.2", "1.2.1", b"x")
    delays = []
    for _ in range(12):
        series = only(spool)
        state = series.record(series.fingerprint(), Phase.FAILED)
        delays.append(round(state.again_at_s - state.changed_at_s))
        assert series.due_at_s(1.0) == state.again_at_s
    assert delays[:3] == [5, 10, 20]
    assert delays[-1] == 900


def test_what_ended_its_gateway_waits_as_what_failed(spool):
    """Begun and never told of: each time counts, and what is told of it is no attempt of its own."""
    receive(spool, "1.2", "1.2.1", b"x")
    series = only(spool)
    for attempts, delay_s in ((1, 5), (2, 10), (3, 20)):
        state = series.record(series.fingerprint(), Phase.BEGUN)
        assert (state.attempts, round(state.again_at_s - state.changed_at_s)) == (attempts, delay_s)
        assert series.due_at_s(1.0) == state.again_at_s
    state = series.record(series.fingerprint(), Phase.FAILED)
    assert (state.attempts, round(state.again_at_s - state.changed_at_s)) == (3, 20)


def test_a_new_instance_makes_a_finished_series_due(spool):
    """What became of other instances says nothing about these."""
    receive(spool, "1.2", "1.2.1", b"x")
    series = only(spool)
    series.record(series.fingerprint(), Phase.DELIVERED)
    assert series.due_at_s(1.0) is None
    receive(spool, "1.2", "1.2.2", b"x")
    assert series.due_at_s(1.0) is not None


def test_results_are_there_whole_or_not_at_all(spool, monkeypatch):
    """A crash between two files leaves none of them. The report comes first, what refers to the masks after them."""
    receive(spool, "1.2", "1.2.1", b"x")
    series = only(spool)

    def crash(path, data):
        if path.name == "sr.dcm":
            raise KeyboardInterrupt
        write_durably(path, data)

    with monkeypatch.context() as patch:
        patch.setattr("medvl.pacs.spool.write_durably", crash)
        with pytest.raises(KeyboardInterrupt):
            series.keep_results("f", {"seg.dcm": b"1", "sr.dcm": b"2"})
    assert series.results("f") == []
    series.keep_results("f", {"measurements.dcm": b"0", "seg.dcm": b"1", "sr.dcm": b"2"})
    assert [p.name for p in series.results("f")] == ["sr.dcm", "seg.dcm", "measurements.dcm"]


def test_a_write_that_fails_leaves_nothing(spool, tmp_path, monkeypatch):
    """A disk that is full would stay so by what could not be written to it."""
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            write_durably(tmp_path / "file", b"x", scratch=tmp_path / "spool" / "incoming")
    assert not list((tmp_path / "spool" / "incoming").iterdir())


def test_what_a_crash_left_half_written_is_swept_at_the_start(tmp_path):
    """It was never acknowledged."""
    incoming = tmp_path / "spool" / "incoming"
    incoming.mkdir(parents=True)
    (incoming / ".part-x").write_bytes(b"half")
    Spool(tmp_path / "spool").close()
    assert not list(incoming.iterdir())


def test_a_spool_has_one_user(tmp_path):
    """A second one is told so before it sweeps what the first is writing, and may have the spool after it."""
    first = Spool(tmp_path / "spool")
    part = tmp_path / "spool" / "incoming" / ".part-x"
    part.write_bytes(b"half")
    with pytest.raises(SetupError, match="Another gateway uses this spool"):
        Spool(tmp_path / "spool")
    assert part.exists()
    first.close()
    Spool(tmp_path / "spool").close()
    assert not part.exists()


def test_series_are_deleted_after_the_time_of_their_phase(spool):
    """The spool does not grow for ever by what was delivered or refused; what is still to be delivered stays."""
    for number, phase in enumerate([Phase.DELIVERED, Phase.FAILED, Phase.REFUSED, Phase.BEGUN]):
        receive(spool, f"1.{number}", "1.9", b"x")
        series = next(s for s in spool.series() if s.state() is None)
        series.record(series.fingerprint(), phase)
    receive(spool, "1.9", "1.9", b"new")
    spool.purge({Phase.DELIVERED: 3600.0, Phase.REFUSED: 3600.0})
    assert (len(list(spool.series())), spool.refused()) == (5, 1)
    spool.purge({Phase.DELIVERED: 0.0, Phase.REFUSED: 3600.0})
    assert (len(list(spool.series())), spool.refused()) == (4, 1)
    spool.purge({Phase.DELIVERED: 0.0, Phase.REFUSED: 0.0})
    assert sorted(s.state().phase for s in spool.series() if s.state()) == [Phase.BEGUN, Phase.FAILED]
    assert spool.refused() == 0


def test_an_instance_that_comes_just_before_its_series_is_deleted_is_kept(spool):
    """It was acknowledged, and nobody has worked on it yet."""
    receive(spool, "1.2", "1.2.1", b"x")
    series = only(spool)
    series.record(series.fingerprint(), Phase.DELIVERED)
    lock = spool._moving

    @contextmanager
    def after_a_late_instance():
        spool._moving = lock
        receive(spool, "1.2", "1.2.2", b"late")
        with lock:
            yield

    spool._moving = after_a_late_instance()
    spool.purge({Phase.DELIVERED: 0.0})
    assert spool._moving is lock
    assert sorted(path.read_bytes() for path in only(spool).instances.iterdir()) == [b"late", b"x"]


def test_no_series_is_deleted_while_an_instance_is_written(spool, monkeypatch):
    """It would go with it, acknowledged: one waits for the other."""
    excluded = []

    def watched(function):
        return lambda *given, **named: excluded.append(spool._moving.locked()) or function(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(spool_module, "write_durably", watched(write_durably))
        receive(spool, "1.2", "1.2.1", b"x")
    series = only(spool)
    series.record(series.fingerprint(), Phase.DELIVERED)
    monkeypatch.setattr(Path, "rename", watched(Path.rename))
    spool.purge({Phase.DELIVERED: 0.0})
    assert excluded == [True, True]
    assert not [*spool.series()]


def test_the_state_is_json_without_identifiers(spool):
    """For people who look for the reason of a failure."""
    receive(spool, "1.2.3.4711", "1.2.3.4711.1", b"x")
    series = only(spool)
    series.record(series.fingerprint(), Phase.FAILED)
    said = (series.folder / "state.json").read_text()
    assert json.loads(said)["phase"] == "failed"
    assert "4711" not in said
