"""The spool: what was received and is not done with, so that a crash at any moment loses nothing.

::

    <spool>/lock                                         held by the gateway that uses the spool
    <spool>/incoming/                                    what is being written or deleted; swept at the start
    <spool>/series/<id>/instances/<id>-<digest>.dcm      instances as they were received
    <spool>/series/<id>/results/<fingerprint>/           sr.dcm, ..., made from that set of instances
    <spool>/series/<id>/state.json                       what became of which set of instances

Names are hashes of UIDs and of contents, never what a file or a header says. Every file comes into place by a rename
after its bytes have reached the disk. Since the name of an instance says what it holds, a set of instances is known by
names alone, and none of them changes under a reader: other content is another file, and the earlier one goes. Versions
before this one wrote ``<id>.dcm``: such a file stays what it is until its instance comes again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from medvl.contracts.errors import SetupError

REPORT = "sr.dcm"
MASKS = "seg.dcm"
MEASUREMENTS = "measurements.dcm"
_FIRST_DELAY_S = 5.0
_MAX_DELAY_S = 900.0
_ID_LENGTH = 32


class Phase(StrEnum):
    """What became of a set of instances."""

    DELIVERED = "delivered"
    REFUSED = "refused"
    """It is no series that can be worked on; only further instances can change that."""
    BEGUN = "begun"
    """It is worked on; or what worked on it was ended, by itself perhaps, and it is tried again as one that failed."""
    FAILED = "failed"
    """To be tried again at ``again_at_s``."""


_TRIED_AGAIN = (Phase.BEGUN, Phase.FAILED)


@dataclass(frozen=True, slots=True)
class State:
    """What became of the set of instances that ``fingerprint`` names; times are seconds since the epoch."""

    fingerprint: str
    phase: Phase
    attempts: int
    changed_at_s: float
    again_at_s: float


class SpooledSeries:
    """One series of the spool, named by the hash of its UID."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.instances = folder / "instances"

    @property
    def name(self) -> str:
        """Hash of the Series Instance UID; safe to log."""
        return self.folder.name

    def files(self) -> list[Path]:
        """Return the instances that are here."""
        return sorted(self.instances.iterdir())

    def fingerprint(self) -> str:
        """Return the fingerprint of the instances that are here."""
        return fingerprint_of(self.files())

    def state(self) -> State | None:
        """Return what became of the instances that are here now; None when they are new, or nobody can tell."""
        try:
            fields = json.loads((self.folder / "state.json").read_text("utf-8"))
            state = State(**{**fields, "phase": Phase(fields["phase"])})
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            # Not this version's, or not ours: doing it again makes the same documents.
            return None
        return state if state.fingerprint == self.fingerprint() else None

    def record(self, fingerprint: str, phase: Phase) -> State:
        """Write what became of a set of instances; failures in a row wait twice as long each time.

        What was begun and what came of it are one attempt.
        """
        before, now_s = self.state(), time.time()
        known = before is not None and before.phase is Phase.BEGUN and phase is not Phase.BEGUN
        attempts = (before.attempts if before else 0) + (not known)
        delay_s = min(_MAX_DELAY_S, _FIRST_DELAY_S * 2 ** min(attempts - 1, 16))
        state = State(fingerprint, phase, attempts, now_s, now_s + delay_s)
        write_durably(self.folder / "state.json", json.dumps(asdict(state)).encode())
        return state

    def due_at_s(self, quiet_s: float) -> float | None:
        """Return when to work on this series, in seconds since the epoch; None when there is nothing to do."""
        state = self.state()
        if state is not None:
            return state.again_at_s if state.phase in _TRIED_AGAIN else None
        return max(self._came_at_s(), default=time.time()) + quiet_s

    def _came_at_s(self) -> Iterator[float]:
        for path in self.instances.iterdir():
            with suppress(FileNotFoundError):  # replaced since
                yield path.stat().st_mtime

    def results(self, fingerprint: str) -> list[Path]:
        """Return the files that were made from a set of instances; empty when there are none yet.

        The report comes first, then the masks, then what refers to them.
        """
        files = (self.folder / "results" / fingerprint).glob("*.dcm")
        return sorted(files, key=lambda path: (path.name != REPORT, path.name != MASKS, path.name))

    def keep_results(self, fingerprint: str, files: Mapping[str, bytes]) -> list[Path]:
        """Write the files made from a set of instances, all or none of them, and return their paths."""
        final = self.folder / "results" / fingerprint
        final.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="making-") as making:
            folder = Path(making) / "results"
            folder.mkdir()
            for name, data in files.items():
                write_durably(folder / name, data)
            folder.rename(final)
            _sync(final.parent)
        return self.results(fingerprint)


class Spool:
    """A spool folder; one gateway at a time uses it, until it is closed.

    Raises
    ------
    SetupError
        When another one uses it.
    """

    def __init__(self, folder: Path) -> None:
        self._lock = _locked(folder)
        self._incoming = folder / "incoming"
        self._series = folder / "series"
        self._moving = threading.Lock()
        shutil.rmtree(self._incoming, ignore_errors=True)
        for part in (self._incoming, self._series):
            part.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in self._series.glob("*/making-*"):
            shutil.rmtree(left)
        for series in self.series():
            _finish_replacing(series.instances)

    def close(self) -> None:
        """Leave the spool to the next gateway."""
        os.close(self._lock)

    def receive(self, series_uid: str, instance_uid: str, digest: str, *parts: bytes) -> None:
        """Write an instance; it is on the disk when this returns, and what it was before is not.

        Parameters
        ----------
        series_uid, instance_uid
            Which one it is.
        digest
            Hash of its content, in hexadecimal. An instance that is here with the same content stays as it is; with
            another one, such as a patient who was corrected at the PACS, it makes the series a new one to work on.
        parts
            The file, piece after piece; one of a gigabyte is not copied to be put behind another.

        Raises
        ------
        OSError
            When the disk does not take it.
        """
        instance = hashed(instance_uid)
        path = self._series / hashed(series_uid) / "instances" / f"{instance}-{digest}.dcm"
        with self._moving:
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True)
                _sync(path.parent.parent)
                _sync(self._series)
            if not path.exists():
                write_durably(path, *parts, scratch=self._incoming)
            _delete([earlier for earlier in path.parent.glob(f"{instance}*") if earlier != path])

    def series(self) -> Iterator[SpooledSeries]:
        """Yield every series that is here."""
        for folder in sorted(self._series.iterdir()):
            if (folder / "instances").is_dir():
                yield SpooledSeries(folder)

    def refused(self) -> int:
        """Return how many series are refused, as far as they say so."""
        count = 0
        for series in self.series():
            with suppress(OSError):
                state = series.state()
                count += state is not None and state.phase is Phase.REFUSED
        return count

    def free_bytes(self) -> int:
        """Return what its disk can still take."""
        return shutil.disk_usage(self._series).free

    def purge(self, keep_s: Mapping[Phase, float]) -> None:
        """Delete every series that came into a phase longer ago than it is kept then; what cannot be moved stays."""
        for series in self.series():
            with suppress(OSError):
                self._purge(series, keep_s)

    def _purge(self, series: SpooledSeries, keep_s: Mapping[Phase, float]) -> None:
        if _over(series, keep_s):
            with self._moving:
                # An instance may have arrived since.
                if _over(series, keep_s):
                    series.folder.rename(self._incoming / series.name)
            shutil.rmtree(self._incoming / series.name, ignore_errors=True)


def _locked(folder: Path) -> int:
    """Return the descriptor that holds the lock of a spool; the system lets go of it with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise SetupError("Another gateway uses this spool: stop it, or give each its own --spool.") from None
        raise
    return descriptor


def _finish_replacing(instances: Path) -> None:
    """Delete what a crash between writing an instance and deleting what it was before has left.

    The newer one was not acknowledged yet, so its sender has it still, but either is whole.
    """
    by_age = sorted(instances.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest = {path.name[:_ID_LENGTH]: path for path in by_age}
    _delete(path for path in by_age if newest[path.name[:_ID_LENGTH]] != path)


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink()
        _sync(path.parent)


def _over(series: SpooledSeries, keep_s: Mapping[Phase, float]) -> bool:
    state = series.state()
    return state is not None and state.changed_at_s + keep_s.get(state.phase, math.inf) <= time.time()


def fingerprint_of(instances: Iterable[Path]) -> str:
    """Return a hash of which instances these are, and of what they hold."""
    return hashed("\n".join(sorted(path.name for path in instances)))


def hashed(text: str) -> str:
    """Return a name that says nothing: 128 bits of SHA-256, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()[:_ID_LENGTH]


def write_durably(path: Path, *parts: bytes, scratch: Path | None = None) -> None:
    """Write a file that is either whole on the disk or not there, through a temporary one in ``scratch``."""
    descriptor, part = tempfile.mkstemp(dir=scratch or path.parent, prefix=".part-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        Path(part).replace(path)
    except OSError:
        # A full disk gets back what this took of it.
        Path(part).unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
