"""``medvl-export ladder``: every part in every precision, by tensors and by the masks that come of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medvl.contracts.checkpoint import load_checkpoint
from medvl.contracts.errors import SetupError
from medvl.contracts.manifest import verify_repository
from medvl.contracts.pbtxt import MODEL_FILES
from medvl.evaluation.cases import Case, held_out
from medvl.evaluation.clicks import first_click
from medvl.evaluation.masks import targets
from medvl.evaluation.metrics import dice
from medvl.evaluation.table import Layout
from medvl.export.gates import OutputParity, broken, compare
from medvl.export.parity import ReferenceCase, references
from medvl.export.parts import Part, load_parts
from medvl.export.repository import version_folder
from medvl.export.rungs import RUNGS, Made, Rung
from medvl.export.samples import Samples
from medvl.network.model import ReferenceModel
from medvl.network.prompts import ObjectPrompt

Progress = Callable[[str], None]
Mask = NDArray[np.bool_]

_RUNS = 7
"""Timed calls of a part; their median counts."""
_PROMPTS: Mapping[str, tuple[str, ...]] = {
    "vision_encoder": ("words",),
    "projector": ("words",),
    "sam2_image_encoder": ("click",),
    "sam2_mask_decoder": ("words", "click"),
    "sam2_memory_encoder": ("click",),
    "sam2_mask_prompt": ("mask",),
    "sam2_track_step": ("click",),
}
"""By which kinds of prompt the masks come that a part takes part in."""


@dataclass(frozen=True, slots=True)
class LadderRow:
    """One part in one precision against torch in FP32."""

    part: str
    rung: str
    max_abs: float
    """Largest difference of any output at any size of the parity gate."""
    relative: float
    """Largest share that the difference of an output has in it, by their norms."""
    cosine: float
    dice: float
    """Least Dice of the masks of held-out phantoms, that part alone in that precision."""
    masks: int
    speed: float
    """Time of onnxruntime in FP32 by that of this one, one thread each."""
    megabytes: float
    broken: str | None
    """What breaks the gate, or the shape that is wrong; the numbers are those of the outputs of the right shape."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """The rows, and a sentence for every rung that this machine lacks."""

    checkpoint: str
    cases: int
    first_seed: int
    rows: tuple[LadderRow, ...]
    absent: tuple[str, ...]

    def table(self, layout: Layout) -> str:
        """Return the rows for people."""
        head = ("part", "precision", "max abs", "relative", "cosine", "Dice", "speed", "MB", "gate")
        lines = [
            (
                row.part,
                row.rung,
                f"{row.max_abs:.1e}",
                f"{row.relative:.1e}",
                f"{row.cosine:.6f}",
                f"{row.dice:.4f}",
                f"{row.speed:.2f}",
                f"{row.megabytes:.1f}",
                row.broken or "holds",
            )
            for row in self.rows
        ]
        return layout([head, *lines]) + "\n" + "".join(f"{sentence}\n" for sentence in self.absent)

    def values(self) -> dict[str, Any]:
        """Return what JSON is to hold."""
        return asdict(self)


def measure_ladder(folder: Path, repository: Path, cases: int, seed: int, progress: Progress) -> Ladder:
    """Run every part in every precision that this machine has.

    Parameters
    ----------
    folder
        Checkpoint folder.
    repository
        Built from it for the CPU: its graphs are what is converted.
    cases
        Phantoms whose masks are compared.
    seed
        Of the first of them; those of training are refused.

    Raises
    ------
    SetupError
        When the repository was built from another checkpoint, or for engines.
    CheckpointError, InvalidRequest
        When folder or repository break their contracts, or a seed is one of training.
    """
    manifest = verify_repository(repository)
    if (manifest.checkpoint_digest, manifest.target) != (load_checkpoint(folder).digest, "cpu"):
        raise SetupError(
            f"{repository} was not built from that checkpoint for the CPU: name another with --repository."
        )
    model = ReferenceModel.load(folder)
    phantoms = [Case.make(number) for number in held_out(seed, cases)]
    wanted = {kind: [_Task(model, case, kind) for case in phantoms] for kind in ("words", "click", "mask")}
    rungs, absent = _present(RUNGS)
    rows: list[LadderRow] = []
    samples = Samples(0)
    for part in load_parts(folder):
        graph = version_folder(repository, part.model.name) / MODEL_FILES["cpu"]
        known = references(part, samples)
        tasks = [task for kind in _PROMPTS[part.model.name] for task in wanted[kind]]
        fp32_s = None
        for rung in rungs:
            with tempfile.TemporaryDirectory() as scratch:
                made = rung.make(part, graph, samples, Path(scratch))
                elapsed_s = _time(made, known[1])
                fp32_s = fp32_s or elapsed_s
                row = _row(part, rung, made, known, tasks)
                rows.append(replace(row, speed=fp32_s / elapsed_s))
            progress(f"{part.model.name} {rung.name}: Dice {rows[-1].dice:.4f}, cosine {rows[-1].cosine:.6f}")
    return Ladder(manifest.checkpoint, cases, seed, tuple(rows), tuple(absent))


def _present(rungs: Sequence[Rung]) -> tuple[list[Rung], list[str]]:
    found, absent = [], []
    for rung in rungs:
        try:
            rung.require()
        except SetupError as error:
            absent.append(f"{rung.name} was not run. {error}")
        else:
            found.append(rung)
    return found, absent


def _row(part: Part, rung: Rung, made: Made, known: Sequence[ReferenceCase], tasks: Sequence[_Task]) -> LadderRow:
    """Return a row with a speed of 1, which only the others tell."""
    compared, wrong = [], None
    for case in known:
        found = made.run(case.inputs)
        for name, expected in case.outputs.items():
            if found[name].shape == expected.shape:
                compared.append((compare(name, expected, found[name]), _relative(expected, found[name])))
            else:
                sizes = ", ".join(f"{axis} {length}" for axis, length in case.sizes.items())
                wrong = wrong or f"{name} is {list(found[name].shape)} at {sizes}, expected {list(expected.shape)}"
    masks = [dice(task.mask(_Replaced(part, made)), task.expected) for task in tasks]
    worst = OutputParity(
        max_abs=max(parity.max_abs for parity, _ in compared),
        cosine=min(parity.cosine for parity, _ in compared),
        dice=min(masks),
    )
    return LadderRow(
        part=part.model.name,
        rung=rung.name,
        max_abs=worst.max_abs,
        relative=max(relative for _, relative in compared),
        cosine=worst.cosine,
        dice=min(masks),
        masks=len(masks),
        speed=1.0,
        megabytes=made.bytes / 1e6,
        broken=wrong or broken(worst, rung.gate),
    )


def _relative(expected: NDArray[Any], found: NDArray[Any]) -> float:
    difference, size = (float(np.linalg.norm(a.ravel().astype(np.float64))) for a in (expected - found, expected))
    return difference / size if size else difference


def _time(made: Made, case: ReferenceCase) -> float:
    made.run(case.inputs)
    times_s = []
    for _ in range(_RUNS):
        started_s = perf_counter()
        made.run(case.inputs)
        times_s.append(perf_counter() - started_s)
    return median(times_s)


class _Replaced(nn.Module):
    """A part whose outputs another runtime computes."""

    def __init__(self, part: Part, made: Made) -> None:
        super().__init__()
        self.part, self._run = part, made.run

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Map the part's tensors in the order of the contract."""
        arrays = {
            spec.name: np.ascontiguousarray(tensor.numpy().astype(spec.dtype.numpy))
            for spec, tensor in zip(self.part.model.inputs, inputs, strict=True)
        }
        found = self._run(arrays)
        outputs = tuple(torch.from_numpy(found[spec.name]) for spec in self.part.model.outputs)
        return outputs if len(outputs) > 1 else outputs[0]


class _Mixed:
    """The modules of a checkpoint with one network exchanged, as :class:`ReferenceModel` reads them."""

    def __init__(self, model: ReferenceModel, replaced: _Replaced) -> None:
        self.networks = dict(model.modules.networks) | {replaced.part.model.name: replaced}
        self.vision_encoder, self.projector = self.networks["vision_encoder"], self.networks["projector"]
        self.scorer, self.region_scorer = model.modules.scorer, model.modules.region_scorer


class _Task:
    """One mask to make: the largest-seen organ of a phantom, by its name, a click on it, or a slice of its mask."""

    def __init__(self, model: ReferenceModel, case: Case, kind: str) -> None:
        self._model, self._case, self._kind = model, case, kind
        labels = {label.name for label in model.checkpoint.labels}
        self._target = max(
            (t for t in targets(case, 64) if t.asked in labels), key=lambda target: np.count_nonzero(target.mask)
        )
        self.expected = self._mask(model)

    def mask(self, replaced: _Replaced) -> Mask:
        """Return the mask bool [D, R, C] with one network in another precision."""
        return self._mask(replace(self._model, modules=cast("Any", _Mixed(self._model, replaced))))

    def _mask(self, model: ReferenceModel) -> Mask:
        volume, target = self._case.volume, self._target
        if self._kind == "words":
            return model.segment_label(volume, target.asked).mask
        number, row, column = first_click(target.mask).voxel
        if self._kind == "click":
            prompt = ObjectPrompt(0, {number: (model.point(volume, row, column, 1),)})
            return model.segment(volume, prompt).mask
        given = np.zeros_like(target.mask)
        given[number] = target.mask[number]
        return model.segment(volume, ObjectPrompt(0, {}), mask=given).mask
