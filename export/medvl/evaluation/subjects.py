"""What is evaluated, behind one face: the torch reference in this process, and the served system over its protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medvl.client import Box, Client, Point
from medvl.client import ObjectPrompt as ServedPrompt
from medvl.contracts.errors import InvalidRequest
from medvl.evaluation.clicks import Click, VoxelBox
from medvl.imaging.volume import Volume
from medvl.network.memory_bank import Known
from medvl.network.model import Encoded, ReferenceMask, ReferenceModel
from medvl.network.prompts import BOX_FIRST, BOX_SECOND, NEGATIVE, POSITIVE, ObjectPrompt, PromptPoint
from medvl.network.torch_steps import SliceSource

Voxels = NDArray[np.bool_]
T = TypeVar("T")


class Subject(Protocol):
    """Answers about canonical volumes; a mask bool [D, R, C] without a voxel says that nothing was found."""

    name: str

    def report(self, volume: Volume) -> str:
        """Write a report."""

    def report_masks(self, volume: Volume) -> tuple[str, Sequence[Voxels]]:
        """Write a report and segment what each of its [SEG] stands for."""

    def ask(self, volume: Volume, question: str) -> str:
        """Answer a question."""

    def segment_label(self, volume: Volume, name: str) -> Voxels:
        """Segment a class by name."""

    def segment_text(self, volume: Volume, text: str) -> Voxels:
        """Segment what a text describes."""

    def segment_points(self, volume: Volume, clicks: Sequence[Click]) -> Voxels:
        """Segment what the first click points at; each further one corrects the mask of those before it."""

    def segment_box(self, volume: Volume, box: VoxelBox) -> Voxels:
        """Segment what a box holds."""


class ReferenceSubject:
    """The torch reference.

    Parameters
    ----------
    folder
        A checkpoint folder.
    """

    name = "reference"

    def __init__(self, folder: Path) -> None:
        loaded = ReferenceModel.load(folder)
        self._model = _KeepingModel(loaded.checkpoint, loaded.modules, loaded.language)
        self._clicks: dict[tuple[str | Click, ...], Known[Tensor] | None] = {}

    def report(self, volume: Volume) -> str:
        """Write a report."""
        return self._model.report(volume).text

    def report_masks(self, volume: Volume) -> tuple[str, Sequence[Voxels]]:
        """Write a report and segment what each of its [SEG] stands for."""
        said = self._model.report(volume)
        prompts = (ObjectPrompt(0, {}, state) for state in said.seg_hidden)
        return said.text, [_voxels(self._model.segment(volume, prompt)) for prompt in prompts]

    def ask(self, volume: Volume, question: str) -> str:
        """Answer a question."""
        return self._model.ask(volume, question).text

    def segment_label(self, volume: Volume, name: str) -> Voxels:
        """Segment a class by name."""
        return _voxels(self._model.segment_label(volume, name))

    def segment_text(self, volume: Volume, text: str) -> Voxels:
        """Segment what a text describes."""
        return _voxels(self._model.segment_text(volume, text))

    def segment_points(self, volume: Volume, clicks: Sequence[Click]) -> Voxels:
        """Segment what the first click points at; each further one corrects the mask of those before it."""
        first, *corrections = (self._clicked(volume, click) for click in clicks)
        known = self._clicks.get((volume.digest, *clicks[:-1]))
        found = self._model.segment(volume, ObjectPrompt(0, first, corrections=tuple(corrections)), known=known)
        # Only the next click of the same object goes on from there.
        self._clicks = {(volume.digest, *clicks): found.known}
        return _voxels(found)

    def _clicked(self, volume: Volume, click: Click) -> dict[int, tuple[PromptPoint, ...]]:
        number, row, column = click.voxel
        return {number: (self._model.point(volume, row, column, NEGATIVE if click.negative else POSITIVE),)}

    def segment_box(self, volume: Volume, box: VoxelBox) -> Voxels:
        """Segment what a box holds; its middle slice is prompted, as the service does."""
        first, last = round(box.low[0]), round(box.high[0])
        ends = ((box.low, BOX_FIRST), (box.high, BOX_SECOND))
        corners = tuple(self._model.point(volume, row, column, label) for (_, row, column), label in ends)
        prompt = ObjectPrompt(0, {(first + last) // 2: corners}, None, first, last)
        return _voxels(self._model.segment(volume, prompt))


@dataclass(frozen=True, eq=False)
class _KeepingModel(ReferenceModel):
    """The reference, which keeps what it computed of the latest volume: its questions and prompts share that."""

    kept: dict[tuple[str, str], Any] = field(default_factory=dict)

    def encode(self, volume: Volume) -> Encoded:
        return self._once(volume, "encoded", lambda: ReferenceModel.encode(self, volume))

    def slice_source(self, volume: Volume, window: str) -> SliceSource:
        return self._once(volume, window, lambda: ReferenceModel.slice_source(self, volume, window))

    def _once(self, volume: Volume, what: str, make: Callable[[], T]) -> T:
        for key in [key for key in self.kept if key[0] != volume.digest]:
            del self.kept[key]
        key = (volume.digest, what)
        if key not in self.kept:
            self.kept[key] = make()
        kept: T = self.kept[key]
        return kept


class ServedSubject:
    """A running service.

    Parameters
    ----------
    client
        Connected to it; whoever made it closes it.
    checkpoint_digest
        Of the checkpoint that it must serve.

    Raises
    ------
    InvalidRequest
        When it serves another one.
    """

    name = "served"

    def __init__(self, client: Client, checkpoint_digest: str) -> None:
        self._client = client
        provenance = client.describe().provenance
        if provenance.checkpoint_digest != checkpoint_digest:
            raise InvalidRequest(
                f"The service serves the checkpoint {provenance.checkpoint_digest[:12]}, not {checkpoint_digest[:12]}: "
                "name the checkpoint that it was built from."
            )
        self.software = provenance.software
        if quantisation := provenance.quantisation:
            # Figures that are kept belong to it alone.
            self.software += f" with a language model of {quantisation}, {quantisation.digest[:12]}"
        self.triton_version = provenance.triton_version

    def report(self, volume: Volume) -> str:
        """Write a report."""
        return self._client.report(volume).collect().text

    def report_masks(self, volume: Volume) -> tuple[str, Sequence[Voxels]]:
        """Write a report and segment what each of its [SEG] stands for."""
        answer = self._client.report(volume).collect()
        return answer.text, [mask.array for mask in sorted(answer.masks, key=lambda m: m.object_index)]

    def ask(self, volume: Volume, question: str) -> str:
        """Answer a question."""
        return self._client.ask(volume, question).collect().text

    def segment_label(self, volume: Volume, name: str) -> Voxels:
        """Segment a class by name."""
        return self._segment(volume, ServedPrompt(label=name))

    def segment_text(self, volume: Volume, text: str) -> Voxels:
        """Segment what a text describes."""
        return self._segment(volume, ServedPrompt(text=text))

    def segment_points(self, volume: Volume, clicks: Sequence[Click]) -> Voxels:
        """Segment what the first click points at; each further one corrects the mask of those before it."""
        points = tuple(Point(_lps_mm(volume, click.voxel), click.negative, i) for i, click in enumerate(clicks))
        return self._segment(volume, ServedPrompt(points=points))

    def segment_box(self, volume: Volume, box: VoxelBox) -> Voxels:
        """Segment what a box holds."""
        return self._segment(volume, ServedPrompt(boxes=(Box(_lps_mm(volume, box.low), _lps_mm(volume, box.high)),)))

    def _segment(self, volume: Volume, prompt: ServedPrompt) -> Voxels:
        (mask,) = self._client.segment(volume, [prompt]).collect().masks
        return mask.array


def _voxels(mask: ReferenceMask) -> Voxels:
    return mask.mask if mask.found else np.zeros_like(mask.mask)


def _lps_mm(volume: Volume, voxel: tuple[float, float, float]) -> tuple[float, float, float]:
    x, y, z = volume.geometry.index_to_lps(np.array(voxel)).tolist()
    return x, y, z
