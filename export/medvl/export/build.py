"""From a checkpoint to a repository: every part built, compared with the torch reference, and installed together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from medvl.contracts.checkpoint import load_checkpoint
from medvl.contracts.errors import CheckpointError
from medvl.contracts.manifest import Manifest, Target, record_files, verify_repository
from medvl.export.fingerprint import inputs_digest, tool_versions
from medvl.export.folders import locked, replacement
from medvl.export.repository import refuse_foreign, version_folder, write_skeleton

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A repository that holds its manifest."""

    repository: Path
    manifest: Manifest
    built: bool
    """False when it was there already, made from the same inputs."""


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
        with replacement(out) as staging:
            manifest = _fill(staging, folder, target, inputs, progress)
    return BuildResult(out, manifest, built=True)


def _current(out: Path, inputs: str) -> Manifest | None:
    """Return the manifest of a repository that is whole and made from these inputs."""
    try:
        manifest = verify_repository(out)
    except CheckpointError:
        return None
    return manifest if manifest.inputs == inputs else None


def _fill(staging: Path, folder: Path, target: Target, inputs: str, progress: Progress) -> Manifest:
    # A build with nothing to do must not wait for torch.
    from medvl.export.builders import builder_for  # noqa: PLC0415
    from medvl.export.check import require  # noqa: PLC0415
    from medvl.export.networks import build_networks  # noqa: PLC0415
    from medvl.export.parts import load_parts  # noqa: PLC0415

    builder = builder_for(target)
    checkpoint = require(folder)
    write_skeleton(staging, folder)
    report = build_networks(load_parts(folder), builder, target, partial(version_folder, staging), progress)
    report.write(staging)
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
    return manifest
