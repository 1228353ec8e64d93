"""What TensorRT engines were built for, and whether this machine is that: told without torch and without TensorRT.

An engine belongs to the GPU model, the driver and the TensorRT version that it was built with. ``manifest.json`` of a
repository of plans says which; :func:`require_fit` compares it with the machine that is to load them.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import shlex
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from medvl.contracts.checkpoint import Sha256
from medvl.contracts.errors import SetupError

EngineBuilder = Literal["onnx", "torch-tensorrt"]
"""``onnx``: TensorRT's own ONNX parser. ``torch-tensorrt``: its serialized-engine call."""

Precision = Literal["fp32", "fp16"]
"""``fp16``: in FP16 where values allow and the parity gate holds, else in FP32."""

_SMI_TIMEOUT_S = 30


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Gpu(_Value):
    """One GPU."""

    name: str
    """As NVIDIA's driver calls it: ``NVIDIA H100 80GB HBM3``."""
    compute_capability: str
    """``9.0``."""
    driver: str
    """``580.95.05``."""


class Machine(_Value):
    """What loads engines."""

    gpus: tuple[Gpu, ...]
    """Those that a server here would use; none where no GPU can be read."""
    tensorrt: str | None
    """Version of the TensorRT library; None where there is none."""


class EngineRecord(_Value):
    """One engine. Its own SHA-256 is that of its file in the manifest."""

    precision: Precision
    layers: int | None
    """Layers of the network that was parsed; None where the builder does not tell."""
    profile: dict[str, tuple[int, int, int]]
    """Smallest, usual and largest length of every free axis."""
    graph_sha256: Sha256
    """Over the SHA-256 of each file of the graph that the engine was built from, its weights included."""


class EngineSet(_Value):
    """The engines of a repository: what they were built for, and how to build them again."""

    gpu: Gpu
    tensorrt: str
    version_compatible: bool
    """Whether a newer TensorRT may load them."""
    builder: EngineBuilder
    precision: Precision
    """What was asked for; each engine says what it became."""
    checkpoint: str
    """What ``--checkpoint`` was: a preset's name, or a folder of the machine that built them."""
    quantised: str | None = None
    """What ``--quantised`` was: a folder of that machine; None where the language model is the checkpoint's own."""
    engines: dict[str, EngineRecord]
    """By model."""

    @property
    def sources(self) -> list[str]:
        """Options that name what the repository was built from."""
        return ["--checkpoint", self.checkpoint, *(["--quantised", self.quantised] if self.quantised else [])]

    def command(self, repository: Path) -> str:
        """Return the command that builds the repository again, on the machine where it is run."""
        words = ["medvl-export", "build", *self.sources, "--target", "tensorrt"]
        words += ["--builder", self.builder, "--precision", self.precision]
        words += ["--version-compatible"] if self.version_compatible else []
        return shlex.join([*words, "--out", str(repository)])


def require_fit(engines: EngineSet, repository: Path, machine: Machine) -> None:
    """Refuse engines that were built for another machine than this.

    Parameters
    ----------
    engines
        Of the manifest.
    repository
        Named in the command.
    machine
        This one: :func:`this_machine`.

    Raises
    ------
    SetupError
        With one line for everything that does not fit, and the command that builds the engines again.
    """
    if lines := list(_unfit(engines, machine)):
        raise SetupError(
            "\n".join(["The engines of this repository do not fit this machine.", *lines])
            + f"\nBuild them again on this machine: {engines.command(repository)}"
        )


def _unfit(engines: EngineSet, machine: Machine) -> Iterator[str]:
    if not machine.gpus:
        yield "GPU: no GPU can be read here; nvidia-smi, which comes with NVIDIA's driver, names none"
    built = engines.gpu
    for gpu in machine.gpus:
        for what, expected, found in (
            ("GPU", built.name, gpu.name),
            ("compute capability", built.compute_capability, gpu.compute_capability),
        ):
            if expected != found:
                yield f"{what}: built for {expected}, found {found}"
        if _numbers(gpu.driver)[:1] < _numbers(built.driver)[:1]:
            yield f"driver: built with {built.driver}, found the older {gpu.driver}"
    if machine.tensorrt is None:
        yield "TensorRT: no libnvinfer can be loaded here, nor is the package tensorrt installed"
    elif not _runs(engines, machine.tensorrt):
        asked = "the same major version, as new or newer" if engines.version_compatible else "the same version"
        yield f"TensorRT: built with {engines.tensorrt}, found {machine.tensorrt}; {asked} is needed"


def _runs(engines: EngineSet, found: str) -> bool:
    """Return whether NVIDIA documents that a TensorRT loads what another has built.

    An engine loads in the version that built it; a version-compatible one in later versions of the same major version
    (https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/engine-compatibility.html). Of major
    versions NVIDIA names exceptions, which are not relied upon here.
    """
    built, here = _numbers(engines.tensorrt)[:3], _numbers(found)[:3]
    return built == here or (engines.version_compatible and built[:1] == here[:1] and here > built)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdecimal())


def this_machine() -> Machine:
    """Read the GPUs and the TensorRT version of this machine."""
    return Machine(gpus=tuple(_gpus()), tensorrt=_tensorrt_version())


def _gpus() -> Iterator[Gpu]:
    """Yield the GPUs that ``nvidia-smi`` names, or those of them that ``CUDA_VISIBLE_DEVICES`` leaves."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "":  # set, and leaving none
        return
    command = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            [*command, *([f"--id={visible}"] if visible else [])],
            capture_output=True,
            text=True,
            check=True,
            timeout=_SMI_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError):
        return
    for line in done.stdout.splitlines():
        match [field.strip() for field in line.split(",")]:
            case [name, capability, driver]:
                yield Gpu(name=name, compute_capability=capability, driver=driver)


def _tensorrt_version() -> str | None:
    """Return the version of the library that a server would load, else that of the Python package."""
    name = ctypes.util.find_library("nvinfer")
    if name and (found := library_version(name)):
        return found
    try:
        return version("tensorrt")
    except PackageNotFoundError:
        return None


def library_version(library: str) -> str | None:
    """Return the version that a TensorRT library (10 or newer) tells of itself; None where it cannot be loaded."""
    try:
        number: int = ctypes.CDLL(library).getInferLibVersion()
    except (OSError, AttributeError):
        return None
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
