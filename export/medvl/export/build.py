"""From a checkpoint to a repository: every part built, compared with the torch reference, and installed together."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from medvl.contracts.checkpoint import load_checkpoint
from medvl.contracts.engines import EngineRecord, EngineSet
from medvl.contracts.errors import CheckpointError, SetupError
from medvl.contracts.manifest import Manifest, Target, load_manifest, record_files, verify_repository
from medvl.export.engine_options import EngineOptions
from medvl.export.fingerprint import engine_machine, inputs_digest, quantised_digest, tool_versions
from medvl.export.folders import locked, replacement, sibling, target_of
from medvl.export.fresh import fresh
from medvl.export.language_gate import gated_language
from medvl.export.presets import PRESETS
from medvl.export.quantised import QuantisedLanguage
from medvl.export.repository import refuse_foreign, version_folder, write_skeleton
from medvl.export.stamps import Stamp

if TYPE_CHECKING:
    from medvl.export.networks import Networks, Step
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


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What a build depends on, by digests."""

    networks: str
    everything: str
    language: QuantisedLanguage | None
    """What is served in the place of the checkpoint's language model."""


def build_repository(
    folder: Path,
    target: Target,
    out: Path,
    progress: Progress,
    options: EngineOptions | None = None,
    *,
    quantised: Path | None = None,
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
    quantised
        Folder with the checkpoint's language model in fewer bits, to be served in the place of its own. Networks of a
        repository that is there already are taken over where nothing else has changed.

    Raises
    ------
    CheckpointError
        When the checkpoint breaks the contract, or the quantised folder holds another language model.
    ParityError
        When a built part, or the quantised language model, disagrees with the torch reference.
    BuildError
        When TensorRT refuses a part, or building it dies, takes too long or too much memory; when vLLM does not serve
        the quantised folder.
    SetupError
        When the machine lacks what the target needs, ``out`` is a mount point or holds something else than a
        repository, or what an earlier build has finished was changed since.
    """
    out = target_of(out)
    options = options or EngineOptions()
    with locked(out):
        spec, kept = load_checkpoint(folder).language, sibling(out, "quantised.json")
        language = QuantisedLanguage.read(quantised, spec, kept) if quantised else None
        inputs = _inputs(folder, target, options, language)
        old = _proven(out)
        if old and old.inputs == inputs.everything:
            return BuildResult(out, old, built=False)
        refuse_foreign(out)
        work = _work_folder(out, inputs.networks)
        with replacement(out) as staging:
            # A build with nothing to do must not wait for torch.
            from medvl.export.networks import take_over  # noqa: PLC0415
            from medvl.export.steps import Making  # noqa: PLC0415

            if old and old.networks == inputs.networks:
                take_over(out, old, work)
            making = Making(folder, target, options, sibling(out, "timing-cache"))
            manifest, built = _fill(staging, making, inputs, work, progress)
            if changed := built.changed(staging, manifest.files):
                for name in changed:
                    shutil.rmtree(work / name)
                Stamp(out).forget()
                raise SetupError(
                    f"Files of {', '.join(changed)} were changed after they had passed the parity gate: build again, "
                    "and these parts are made anew; nothing was installed."
                )
        shutil.rmtree(work)
        Stamp(out).write()
    return BuildResult(out, manifest, built=True, steps=built.steps)


def _inputs(folder: Path, target: Target, options: EngineOptions, language: QuantisedLanguage | None) -> _Inputs:
    networks = inputs_digest(load_checkpoint(folder).digest, target, options)
    everything = quantised_digest(networks, language.quantisation) if language else networks
    return _Inputs(networks, everything, language)


def _proven(out: Path) -> Manifest | None:
    """Return the manifest of a repository that is whole."""
    stamp = Stamp(out)
    try:
        # Gigabytes are hashed where a size or a time of change is not what it was; a server's host hashes them always.
        manifest = load_manifest(out) if stamp.holds() else verify_repository(out)
    except CheckpointError:
        return None
    stamp.write()
    return manifest


def _work_folder(out: Path, inputs: str) -> Path:
    """Return the folder of the networks that an earlier build of these inputs has finished, or an empty one."""
    work = sibling(out, "work")
    told = work / "inputs"
    if not told.is_file() or told.read_text("utf-8") != inputs:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        told.write_text(inputs, "utf-8")
    return work


def _fill(staging: Path, making: Making, inputs: _Inputs, work: Path, progress: Progress) -> tuple[Manifest, Networks]:
    from medvl.export import steps  # noqa: PLC0415 - brings torch
    from medvl.export.networks import build_networks  # noqa: PLC0415

    folder, target, options = making.folder, making.target, making.options
    fresh(steps.check_checkpoint, folder)
    parity = None
    if language := inputs.language:
        fresh(steps.check_quantised, language.folder, folder)
        parity = gated_language(folder, language, work / f"llm-{inputs.everything}.json", progress)
    write_skeleton(staging, folder, language)
    built = build_networks(making, work, partial(version_folder, staging), progress)
    built.report.model_copy(update={"language": parity}).write(staging)
    checkpoint = load_checkpoint(folder)
    files = record_files(staging)
    if language:
        language.require_unchanged({name: record.sha256 for name, record in files.items()})
    manifest = Manifest(
        checkpoint=checkpoint.name,
        checkpoint_digest=checkpoint.digest,
        trained=checkpoint.trained,
        target=target,
        inputs=inputs.everything,
        networks=inputs.networks,
        versions=tool_versions(target, options),
        files=files,
        engines=_engine_set(built.engines, folder, options, language) if target == "tensorrt" else None,
        quantisation=language.quantisation if language else None,
    )
    manifest.write(staging)
    return manifest, built


def _engine_set(
    engines: Mapping[str, EngineRecord], folder: Path, options: EngineOptions, language: QuantisedLanguage | None
) -> EngineSet:
    """Return what the engines of this build are for: this machine, and the first GPU that is visible."""
    return EngineSet(
        gpu=engine_machine().gpus[0],
        tensorrt=tool_versions("tensorrt", options)["tensorrt"],
        version_compatible=options.version_compatible,
        builder=options.builder,
        precision=options.precision,
        checkpoint=next((name for name, path in PRESETS.items() if path == folder), str(folder.absolute())),
        quantised=str(language.folder.absolute()) if language else None,
        engines=dict(engines),
    )
