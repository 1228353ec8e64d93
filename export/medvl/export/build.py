"""From a checkpoint to a repository: every part built, compared with the torch reference, and installed together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from medvl.contracts.checkpoint import load_checkpoint
from medvl.contracts.engines import EngineRecord, EngineSet, this_machine
from medvl.contracts.errors import CheckpointError, SetupError
from medvl.contracts.manifest import Manifest, Target, record_files, verify_repository
from medvl.export.engine_options import EngineOptions
from medvl.export.fingerprint import inputs_digest, tool_versions
from medvl.export.folders import locked, replacement, sibling
from medvl.export.presets import PRESETS
from medvl.export.repository import refuse_foreign, version_folder, write_skeleton

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A repository that holds its manifest."""

    repository: Path
    manifest: Manifest
    built: bool
    """False when it was there already, made from the same inputs."""


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
        with replacement(out) as staging:
            cache = sibling(out, "timing-cache")
            manifest = _fill(staging, folder, target, inputs, progress, options=options, timing_cache=cache)
    return BuildResult(out, manifest, built=True)


def _current(out: Path, inputs: str) -> Manifest | None:
    """Return the manifest of a repository that is whole and made from these inputs."""
    try:
        manifest = verify_repository(out)
    except CheckpointError:
        return None
    return manifest if manifest.inputs == inputs else None


def _fill(
    staging: Path,
    folder: Path,
    target: Target,
    inputs: str,
    progress: Progress,
    *,
    options: EngineOptions,
    timing_cache: Path,
) -> Manifest:
    # A build with nothing to do must not wait for torch.
    from medvl.export.builders import builder_for  # noqa: PLC0415
    from medvl.export.check import require  # noqa: PLC0415
    from medvl.export.networks import build_networks  # noqa: PLC0415
    from medvl.export.parts import load_parts  # noqa: PLC0415

    builder = builder_for(target, options, timing_cache)
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
        versions=tool_versions(target, options),
        files=record_files(staging),
        engines=_engine_set(builder.engines, folder, options) if target == "tensorrt" else None,
    )
    manifest.write(staging)
    return manifest


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
