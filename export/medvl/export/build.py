"""From a checkpoint to a repository: every part built, compared with the torch reference, and installed together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from medvl.contracts.checkpoint import load_checkpoint
from medvl.contracts.engines import EngineRecord, EngineSet, this_machine
from medvl.contracts.errors import CheckpointError, SetupError
from medvl.contracts.manifest import Manifest, Target, files_of, load_manifest, record_files, verify_repository
from medvl.export.engine_options import EngineOptions
from medvl.export.fingerprint import inputs_digest, tool_versions
from medvl.export.folders import locked, replacement, sibling
from medvl.export.fresh import fresh
from medvl.export.presets import PRESETS
from medvl.export.repository import refuse_foreign, version_folder, write_skeleton

if TYPE_CHECKING:
    from medvl.export.networks import Step
    from medvl.export.steps import Making

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


def build_repository(
    folder: Path, target: Target, out: Path, progress: Progress, options: EngineOptions | None = None
) -> BuildResult:
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
    options
        How engines are built; without effect on ONNX graphs. What TensorRT measures is kept beside ``out``.

    Raises
    ------
    CheckpointError
        When the folder breaks the contract.
    ParityError
        When a built part disagrees with the torch reference.
    BuildError
        When TensorRT refuses a part, or building it dies, takes too long or too much memory.
    SetupError
        When the machine lacks what the target needs, or ``out`` holds something else than a repository.
    """
    out = out.absolute()
    options = options or EngineOptions()
    inputs = inputs_digest(load_checkpoint(folder).digest, target, options)
    with locked(out):
        if manifest := _current(out, inputs):
            return BuildResult(out, manifest, built=False)
        refuse_foreign(out)
        work = _work_folder(out, inputs)
        with replacement(out) as staging:
            from medvl.export.steps import Making  # noqa: PLC0415 - a build with nothing to do must not wait for torch

            making = Making(folder, target, options, sibling(out, "timing-cache"))
            manifest, steps = _fill(staging, making, inputs, work, progress)
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
    staging: Path, making: Making, inputs: str, work: Path, progress: Progress
) -> tuple[Manifest, tuple[Step, ...]]:
    from medvl.export import steps  # noqa: PLC0415 - brings torch
    from medvl.export.networks import build_networks  # noqa: PLC0415

    folder, target, options = making.folder, making.target, making.options
    fresh(steps.check_checkpoint, folder)
    write_skeleton(staging, folder)
    built = build_networks(making, work, partial(version_folder, staging), progress)
    built.report.write(staging)
    checkpoint = load_checkpoint(folder)
    manifest = Manifest(
        checkpoint=checkpoint.name,
        checkpoint_digest=checkpoint.digest,
        trained=checkpoint.trained,
        target=target,
        inputs=inputs,
        versions=tool_versions(target, options),
        files=record_files(staging),
        engines=_engine_set(built.engines, folder, options) if target == "tensorrt" else None,
    )
    manifest.write(staging)
    return manifest, built.steps


def _engine_set(engines: Mapping[str, EngineRecord], folder: Path, options: EngineOptions) -> EngineSet:
    """Return what the engines of this build are for: this machine, and the first GPU that is visible."""
    gpus = this_machine().gpus
    if not gpus:
        raise SetupError(
            "nvidia-smi does not tell the GPU of this machine, to which engines belong: install it beside the driver."
        )
    return EngineSet(
        gpu=gpus[0],
        tensorrt=tool_versions("tensorrt", options)["tensorrt"],
        version_compatible=options.version_compatible,
        builder=options.builder,
        precision=options.precision,
        checkpoint=next((name for name, path in PRESETS.items() if path == folder), str(folder.absolute())),
        engines=dict(engines),
    )


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
