"""Every graph of a checkpoint, parsed and built by TensorRT-RTX: the proof that can be had without a GPU.

TensorRT-RTX has the ONNX parser and the builder API of TensorRT, installs from PyPI and builds where there is no GPU.
Its engines are no plans for Triton and cannot be run here. What it shows: NVIDIA's parser takes every node, the types
agree, the profile covers the free axes. What it does not: any number, any speed, any converter of torch-tensorrt.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from medvl.contracts.checkpoint import Checkpoint, load_checkpoint
from medvl.contracts.engines import Precision
from medvl.contracts.errors import BuildError, InvalidRequest, ParityError, SetupError
from medvl.contracts.models import MODELS
from medvl.contracts.pbtxt import MODEL_FILES
from medvl.export.bounded import Limits
from medvl.export.engine_job import EngineFacts, build_engine, graph_files
from medvl.export.engine_options import EngineOptions
from medvl.export.parts import Part, load_parts
from medvl.export.presets import SPECS, resolve_checkpoint, resolve_spec
from medvl.export.repository import version_folder
from medvl.export.samples import Samples
from medvl.export.steps import SAMPLE_SEED
from medvl.export.tensorrt_builder import check_facts, engine_job, write_source
from medvl.network.modules import Modules

_SEED = 0
"""Of the weights of a checkpoint that has none."""

_MIB = 2**20


class Row(BaseModel):
    """What became of one graph."""

    model_config = ConfigDict(frozen=True)

    graph: str
    graph_bytes: int
    """Of the FP32 graph with its weights."""
    profile: dict[str, tuple[int, int, int]]
    """Smallest, usual and largest length of every free axis."""
    facts: EngineFacts | None = None
    refused: str | None = None
    """Why there is no engine."""


class Report(BaseModel):
    """Every graph of a checkpoint."""

    model_config = ConfigDict(frozen=True)

    checkpoint: str
    precision: Precision
    tensorrt_rtx: str
    """Version."""
    rows: tuple[Row, ...]

    def require(self) -> None:
        """Raise BuildError with one line for every graph that was refused."""
        if lines := [row.refused for row in self.rows if row.refused]:
            raise BuildError("\n".join(lines))


@dataclass(frozen=True)
class Graphs:
    """The parts of a checkpoint, and where their ONNX graphs come from."""

    checkpoint: str
    parts: Sequence[Part]
    write: Callable[[Part, Samples, Path], Path]
    """Returns the graph of a part, written into a folder unless it is there already."""


def exported_graphs(name: str, models: Sequence[str] | None = None) -> Graphs:
    """Return graphs that are exported on the way.

    Parameters
    ----------
    name
        A checkpoint folder, a preset, or a specification, whose networks get random weights at full size.
    models
        Those to take, all where None.

    Raises
    ------
    CheckpointError
        When the checkpoint is none of these, or breaks the contract.
    InvalidRequest
        When a model is not one of its networks.
    """
    if name in SPECS:
        checkpoint = resolve_spec(name)
        torch.manual_seed(_SEED)
        parts = _parts(Modules.build(checkpoint))
    else:
        folder = resolve_checkpoint(name)
        checkpoint, parts = load_checkpoint(folder), load_parts(folder)
    return Graphs(checkpoint.name, _chosen(parts, models), _export)


def repository_graphs(repository: Path, models: Sequence[str] | None = None) -> Graphs:
    """Return the graphs of a repository that was built for the CPU; raises as :func:`exported_graphs`."""
    checkpoint: Checkpoint = load_checkpoint(repository)

    def stored(part: Part, _: Samples, __: Path) -> Path:
        # Not linked to: onnx takes no weights that are a link.
        return version_folder(repository, part.model.name) / MODEL_FILES["cpu"]

    return Graphs(checkpoint.name, _chosen(_parts(Modules.shapes(checkpoint)), models), stored)


def _export(part: Part, samples: Samples, folder: Path) -> Path:
    return write_source(part, samples, "onnx", folder)


def _parts(modules: Modules) -> list[Part]:
    return [Part(MODELS[name], module, modules.axes) for name, module in modules.networks.items()]


def _chosen(parts: Sequence[Part], models: Sequence[str] | None) -> Sequence[Part]:
    known = [part.model.name for part in parts]
    if unknown := sorted(set(models or ()) - set(known)):
        raise InvalidRequest(f"There is no network {unknown[0]!r}: the networks are {', '.join(known)}.")
    return [part for part in parts if models is None or part.model.name in models]


def prove(graphs: Graphs, options: EngineOptions, progress: Callable[[str], None]) -> Report:
    """Build every graph, each in a process of its own; one that is refused does not keep the others from it.

    Parameters
    ----------
    graphs
        What to build.
    options
        Precision and limits.
    progress
        Receives one line for every graph.

    Raises
    ------
    SetupError
        Without TensorRT-RTX, or AutoCast where FP16 is asked for.
    """
    found = _rtx_version()
    if options.precision == "fp16":
        from medvl.export.autocast import require_autocast  # noqa: PLC0415 - an extra of its own

        require_autocast()
    samples = Samples(SAMPLE_SEED)
    rows = []
    for part in graphs.parts:
        with tempfile.TemporaryDirectory() as folder:
            row = _row(graphs, part, samples, options, Path(folder))
        progress(_line(row))
        rows.append(row)
    return Report(checkpoint=graphs.checkpoint, precision=options.precision, tensorrt_rtx=found, rows=tuple(rows))


def _row(graphs: Graphs, part: Part, samples: Samples, options: EngineOptions, folder: Path) -> Row:
    source = graphs.write(part, samples, folder)
    row = Row(
        graph=part.model.name,
        graph_bytes=sum(path.stat().st_size for path in graph_files(source)),
        profile={axis: (r.smallest, r.usual, r.largest) for axis, r in part.ranges.items()},
    )
    job = engine_job(
        part,
        samples,
        source,
        folder / "engine",
        scratch=folder,
        library="tensorrt_rtx",
        options=options,
        precision=options.precision,
    )
    try:
        facts = build_engine(job, Limits(options.time_limit_s, options.memory_limit_gib))
        check_facts(part, facts)
    except (BuildError, ParityError) as error:
        return row.model_copy(update={"refused": str(error)})
    return row.model_copy(update={"facts": facts})


def _rtx_version() -> str:
    try:
        return version("tensorrt-rtx")
    except PackageNotFoundError:
        raise SetupError(
            "The package tensorrt-rtx is not installed on this machine: "
            "pip install '.[rtx]' in a checkout of medvl-sam2."
        ) from None


_COLUMNS = ("graph", "layers", "profile", "parse s", "build s", "graph MB", "engine MB", "peak MiB")


def table(report: Report) -> str:
    """Return the report as text, one line for every graph."""
    lines = [_COLUMNS, *(_cells(row) for row in report.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
    head = f"{report.checkpoint}, {report.precision}, TensorRT-RTX {report.tensorrt_rtx}\n"
    return head + "".join("  ".join(c.ljust(w) for c, w in zip(x, widths, strict=True)).rstrip() + "\n" for x in lines)


def _cells(row: Row) -> tuple[str, ...]:
    profile = ", ".join(f"{axis} {low}..{high} ({usual})" for axis, (low, usual, high) in row.profile.items())
    size = f"{row.graph_bytes / 1e6:.1f}"
    if row.facts is None:
        return (row.graph, "refused", profile, "-", "-", size, "-", "-")
    f = row.facts
    numbers = (f"{f.parse_s or 0.0:.2f}", f"{f.build_s:.1f}", size, f"{f.engine_bytes / 1e6:.1f}")
    return (row.graph, str(f.layers), profile, *numbers, f"{f.peak_bytes / _MIB:.0f}")


def _line(row: Row) -> str:
    return row.refused or (f"{row.graph}: {row.facts.layers} layers in {row.facts.build_s:.1f} s" if row.facts else "")
