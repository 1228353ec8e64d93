"""The repository that Triton is to serve: a given one, proven, or one built from a checkpoint."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import sys
from pathlib import Path

from medvl.contracts.errors import CheckpointError, SetupError
from medvl.contracts.manifest import Manifest, verify_repository
from medvl.runtime.processes import Command, ManagedProcess

TARGET = "cpu"


def serving_extras_missing(modules: frozenset[str]) -> SetupError:
    """Return the error for an interpreter that cannot carry the models out."""
    return SetupError(
        f"The embedded models need {', '.join(sorted(modules))}, which this Python lacks: run make setup in a checkout "
        "of medvl-sam2, then its .venv/bin/medvl up."
    )


async def built_repository(checkpoint: str, repositories: Path, log_file: Path) -> Path:
    """Build the repository of a checkpoint; ``medvl-export`` leaves one that is up to date as it is.

    Parameters
    ----------
    checkpoint
        A checkpoint folder, or the name of a preset.
    repositories
        Where repositories are kept.
    log_file
        Where the builder's output goes.

    Raises
    ------
    SetupError
        When the builder is not installed.
    CheckpointError
        When it refuses the checkpoint; its own words follow.
    """
    builder = Path(sys.executable).with_name("medvl-export")
    if not builder.is_file():
        raise serving_extras_missing(frozenset({"medvl-export"}))
    out = repositories / _slug(checkpoint)
    argv = (str(builder), "build", "--checkpoint", checkpoint, "--target", TARGET, "--out", str(out))
    process = await ManagedProcess.start(Command(argv, os.environ, log_file))
    try:
        exit_code = await process.wait()
    finally:
        process.kill()
    if exit_code:
        raise CheckpointError(f"The repository of {_slug(checkpoint)} was not built:\n{process.log_tail()}")
    return out


async def proven_repository(repository: Path) -> Manifest:
    """Check every file of a repository against its manifest.

    Raises
    ------
    CheckpointError
        When a file is not what was built, or when it was built for another target.
    """
    manifest = await asyncio.to_thread(verify_repository, repository)
    if manifest.target != TARGET:
        sources = manifest.engines.sources if manifest.engines else ["--checkpoint", manifest.checkpoint]
        command = ("medvl-export", "build", *sources, "--target", TARGET, "--out", str(repository))
        raise CheckpointError(
            f"The repository {repository.name} was built for {manifest.target}, which the embedded server does not "
            f"run. Build it again for this machine: {shlex.join(command)}"
        )
    return manifest


def _slug(checkpoint: str) -> str:
    """Return a folder name for a checkpoint: the preset's, or that of its folder."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", Path(checkpoint).name) or "checkpoint"
