"""What a build depends on, told without importing any of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from medvl.contracts.errors import SetupError
from medvl.contracts.manifest import Target

SOURCES = ("medvl.contracts", "medvl.network", "medvl.export")
"""Packages whose code decides what a build writes."""

_TOOLS = ("medvl-sam2", "onnx", "onnxruntime", "onnxscript", "sam2", "torch", "transformers")
_TENSORRT_TOOLS = ("tensorrt", "torch-tensorrt")


def tool_versions(target: Target) -> dict[str, str]:
    """Return the versions of the distributions that a build uses.

    Raises
    ------
    SetupError
        When one is not installed; the sentence says what to install.
    """
    return {name: _version(name, "export") for name in _TOOLS} | (
        {name: _version(name, "tensorrt") for name in _TENSORRT_TOOLS} if target == "tensorrt" else {}
    )


def _version(name: str, extra: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        raise SetupError(
            f"The package {name} is not installed on this machine: pip install 'medvl-sam2[{extra}]'."
        ) from None


def sources_digest(packages: Iterable[str]) -> str:
    """Return the SHA-256 over the Python sources of packages, by path and content."""
    digest = hashlib.sha256()
    for package in packages:
        for root in _locations(package):
            for path in sorted(root.rglob("*.py")):
                digest.update(f"{package}/{path.relative_to(root).as_posix()}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _locations(package: str) -> list[Path]:
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise SetupError(f"The package {package} is not installed on this machine: pip install 'medvl-sam2[export]'.")
    return [Path(p) for p in spec.submodule_search_locations]


def inputs_digest(checkpoint_digest: str, target: Target) -> str:
    """Return the SHA-256 over everything that a build depends on: checkpoint, target, our sources, tool versions."""
    inputs = {
        "checkpoint": checkpoint_digest,
        "target": target,
        "sources": sources_digest(SOURCES),
        "versions": tool_versions(target),
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
