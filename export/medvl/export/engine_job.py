"""An engine to be built by a process of its own: what that is told, and what it answers.

The process is ``python -m medvl.export.engine_worker JOB``. A builder that dies takes nothing with it, and one that
hangs or grows is stopped.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from medvl.contracts.engines import EngineBuilder, Precision
from medvl.contracts.errors import BuildError
from medvl.contracts.manifest import sha256_of
from medvl.export.bounded import Limits, run_bounded

Library = Literal["tensorrt", "tensorrt_rtx"]
"""Python module that builds; the API of the two is the same where they are used here."""

Shape = tuple[int, ...]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputShapes(_Message):
    """Shapes that an input takes; equal ones where no axis is free."""

    name: str
    dtype: str
    """Name of the numpy dtype."""
    smallest: Shape
    usual: Shape
    largest: Shape

    @property
    def dynamic(self) -> bool:
        """Whether an axis is free."""
        return self.smallest != self.largest


class Binding(_Message):
    """A tensor of an engine as TensorRT names it."""

    name: str
    input: bool
    dtype: str
    """TensorRT's name: ``FLOAT``."""
    shape: Shape
    """-1 where an axis is free."""


class EngineJob(_Message):
    """What the process is told."""

    model: str
    library: Library
    builder: EngineBuilder
    source: Path
    """ONNX graph, or for torch-tensorrt what ``torch.export.save`` wrote; FP32 in either case."""
    engine: Path
    """File to write."""
    inputs: tuple[InputShapes, ...]
    """In the order of the contract."""
    outputs: tuple[str, ...]
    precision: Precision
    calibration: Path | None = None
    """NPZ of inputs by name, for FP16."""
    timing_cache: Path | None = None
    """What TensorRT measured in earlier builds; read where it exists, and written."""
    version_compatible: bool = False


class EngineFacts(_Message):
    """What the process answers when it has written the engine."""

    graph_sha256: str
    """Over the SHA-256 of the files that the engine was built from, typed already: :func:`graph_sha256`."""
    layers: int | None = None
    bindings: tuple[Binding, ...] | None = None
    """Of the network that was parsed; None where the builder does not show it."""
    parse_s: float | None = None
    build_s: float
    engine_bytes: int
    peak_bytes: int = 0
    """Memory of the process, resident, at its highest; told by its parent."""


class Refusal(_Message):
    """What the process answers when the builder takes the graph for wrong or unsupported."""

    refused: str
    """A sentence."""


class Answer(_Message):
    """Either of them."""

    facts: EngineFacts | None = None
    refusal: Refusal | None = None


def graph_files(graph: Path) -> list[Path]:
    """Return the files of an ONNX graph: itself, and weights that stand beside it under its name with a suffix."""
    return [graph, *sorted(graph.parent.glob(f"{graph.name}.*"))]


def graph_sha256(graph: Path) -> str:
    """Return the SHA-256 over the SHA-256 of every file of a graph."""
    digest = hashlib.sha256()
    for path in graph_files(graph):
        digest.update(bytes.fromhex(sha256_of(path)))
    return digest.hexdigest()


def build_engine(job: EngineJob, limits: Limits) -> EngineFacts:
    """Build an engine in a process of its own.

    Raises
    ------
    BuildError
        When the builder refuses the graph, fails, is killed, or exceeds a limit; the sentence names the model.
    """
    with tempfile.TemporaryDirectory() as scratch:
        request, answer = Path(scratch, "job.json"), Path(scratch, "answer.json")
        request.write_text(job.model_dump_json(), "utf-8")
        command = [sys.executable, "-m", "medvl.export.engine_worker", str(request), str(answer)]
        peak_bytes = run_bounded(command, f"The engine of {job.model}", limits)
        found = Answer.model_validate_json(answer.read_bytes())
    if found.facts is None:
        raise BuildError(f"The engine of {job.model} cannot be built: {found.refusal and found.refusal.refused}")
    return found.facts.model_copy(update={"peak_bytes": peak_bytes})
