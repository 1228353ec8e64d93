"""From a checkpoint to a repository: every part built, compared with the torch reference, and installed together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from medvl.contracts.checkpoint import load_checkpoint
from medvl.contracts.errors import CheckpointError
from medvl.contracts.manifest import Manifest, Target, files_of, load_manifest, record_files, verify_repository
from medvl.export.fingerprint import inputs_digest, tool_versions
from medvl.export.folders import locked, replacement, sibling
from medvl.export.repository import refuse_foreign, version_folder, write_skeleton

if TYPE_CHECKING:
    from medvl.export.networks import Step

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A repository that holds its manifest."""

    repository: Path
    manifest: Manifest
    built: bool
    """False when it was there already, made from the same inputs."""
    steps: tuple[Step, ...] = ()
    """What was done for the networks, and what it cost; less where an earlier build ended in the middle."""


def build_repository(folder: Path, target: Target, out: Path, progress: Progress) -> BuildResult:
    """Build the repository of a checkpoint, or find it built.

    Parameters
    ----------
    folder
        Checkpoint folder.
    target
        What the networks become: ONNX graphs for ``cpu``, plans for ``tensorrt``.
    out
        Repository to make. An existing one is replaced at the very end, or left as it is when anything fails.
    progress
        Receives one line for every part.

    Raises
    ------
    CheckpointError
        When the folder breaks the contract.
    ParityError
        When a built part disagrees with the torch reference.
    SetupError
        When the machine lacks what the target needs, or ``out`` holds something else than a repository.
    """
    out = out.absolute()
    inputs = inputs_digest(load_checkpoint(folder).digest, target)
    with locked(out):
        if manifest := _current(out, inputs):
            return BuildResult(out, manifest, built=False)
        refuse_foreign(out)
        work = _work_folder(out, inputs)
        with replacement(out) as staging:
            manifest, steps = _fill(staging, folder, target, inputs, work, progress)
        shutil.rmtree(work)
        _Stamp(out).write()
    return BuildResult(out, manifest, built=True, steps=steps)


def _current(out: Path, inputs: str) -> Manifest | None:
    """Return the manifest of a repository that is whole and made from these inputs."""
    stamp = _Stamp(out)
    try:
        # Gigabytes are hashed where a size or a time of change is not what it was; a server's host hashes them always.
        manifest = load_manifest(out) if stamp.holds() else verify_repository(out)
    except CheckpointError:
        return None
    stamp.write()
    return manifest if manifest.inputs == inputs else None


def _work_folder(out: Path, inputs: str) -> Path:
    """Return the folder of the parts that an earlier build of these inputs has finished, or an empty one."""
    work = sibling(out, "work")
    told = work / "inputs"
    if not told.is_file() or told.read_text("utf-8") != inputs:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        told.write_text(inputs, "utf-8")
    return work


def _fill(
    staging: Path, folder: Path, target: Target, inputs: str, work: Path, progress: Progress
) -> tuple[Manifest, tuple[Step, ...]]:
    # A build with nothing to do must not wait for torch.
    from medvl.export import networks, steps  # noqa: PLC0415

    networks.fresh(steps.check_checkpoint, folder)
    write_skeleton(staging, folder)
    built = networks.build_networks(folder, target, work, partial(version_folder, staging), progress)
    built.report.write(staging)
    checkpoint = load_checkpoint(folder)
    manifest = Manifest(
        checkpoint=checkpoint.name,
        checkpoint_digest=checkpoint.digest,
        trained=checkpoint.trained,
        target=target,
        inputs=inputs,
        versions=tool_versions(target),
        files=record_files(staging),
    )
    manifest.write(staging)
    return manifest, built.steps


class _Stamp:
    """The file beside a repository that says how its files looked when they were proven last."""

    def __init__(self, repository: Path) -> None:
        self._repository, self._path = repository, sibling(repository, "build.json")

    def holds(self) -> bool:
        """Return whether no file has another size or time of change since."""
        try:
            stamp = json.loads(self._path.read_text("utf-8"))
        except (OSError, ValueError):
            return False
        return bool(stamp == self._files())

    def write(self) -> None:
        self._path.write_text(json.dumps(self._files()) + "\n", "utf-8")

    def _files(self) -> dict[str, list[int]]:
        states = {name: path.stat() for name, path in files_of(self._repository).items()}
        return {name: [s.st_size, s.st_mtime_ns] for name, s in states.items()}
