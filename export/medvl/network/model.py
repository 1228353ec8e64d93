"""The torch reference of MedVL-SAM2: what the served system must answer, in one process without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medvl.contracts.checkpoint import Checkpoint, load_checkpoint
from medvl.imaging.resample import FitTransform, fit_slices, to_grid
from medvl.imaging.volume import Volume
from medvl.imaging.windows import Window, to_uint8
from medvl.network.language import LanguageModel, ReferenceText
from medvl.network.memory_bank import Known
from medvl.network.modules import Modules
from medvl.network.prompts import ObjectPrompt, PromptPoint
from medvl.network.propagation import Propagation
from medvl.network.room import Room
from medvl.network.slice_mask import SliceMasks
from medvl.network.torch_steps import SliceSource, TorchSteps

_KEPT_BYTES = 2**30
"""Of one object, for its next correction."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """What model ``encode_volume`` says of a volume.

    Attributes
    ----------
    tokens
        Vision tokens FP32 [T, H].
    regions
        FP32 [G, n_region].
    """

    tokens: Tensor
    regions: NDArray[np.float32]


@dataclass
class ReferenceMask:
    """One object.

    Attributes
    ----------
    mask
        bool [D, R, C] on the canonical grid.
    first_logits
        FP32 [f_4, f_4] of the prompted slices, by number.
    """

    mask: NDArray[np.bool_]
    masks: SliceMasks
    given: Mapping[int, NDArray[np.bool_]] = field(default_factory=dict)
    """bool [R, C] by slice, what somebody gave and nothing corrects."""
    found: bool = False
    score: float = 0.0
    key_slices: tuple[int, ...] = ()
    first_logits: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    known: Known[Tensor] | None = None
    """What a further correction can go on from."""

    def prompted(self, object_id: int, number: int, mask_logits: NDArray[np.float32], score: float) -> None:
        """Keep the logits of a prompted slice."""
        self.first_logits[number] = mask_logits

    def worked_on(self, object_id: int, number: int, mask_logits: NDArray[np.float32], presence: float) -> None:
        """Keep the mask of a slice."""
        own = self.given.get(number)
        self.mask[number] = self.masks(number, mask_logits) if own is None else own

    def progress(self, done: int, total: int) -> None:
        """Nobody waits here."""

    def ended(self, object_id: int, score: float, key_slices: Sequence[int], *, found: bool) -> None:
        """Keep what is said of the whole object."""
        self.score, self.key_slices, self.found = score, tuple(key_slices), found and bool(self.mask.any())

    def keep(self, object_id: int, known: Known[Tensor]) -> None:
        """Keep what a further correction can go on from."""
        self.known = known


@dataclass(frozen=True, eq=False)
class ReferenceModel:
    """A checkpoint in FP32 (its language model in its own dtype) on the CPU."""

    checkpoint: Checkpoint
    modules: Modules
    language: LanguageModel

    @classmethod
    def load(cls, folder: Path) -> ReferenceModel:
        """Load a checkpoint folder.

        Raises
        ------
        CheckpointError
            When the folder breaks the contract.
        """
        checkpoint = load_checkpoint(folder)
        return cls(checkpoint, Modules.load(folder, checkpoint), LanguageModel(folder, checkpoint.language))

    @torch.inference_mode()
    def encode(self, volume: Volume) -> Encoded:
        """Return what the vision encoder and the projector make of a canonical volume."""
        vision = self.checkpoint.vision
        grid = torch.from_numpy(to_grid(volume.hu, vision.grid))[None]
        window = torch.tensor([self.checkpoint.windows[vision.window]], dtype=torch.float32)
        low, high, regions = self.modules.vision_encoder(grid, window)
        return Encoded(self.modules.projector(low, high, regions)[0], regions[0].numpy())

    def report(self, volume: Volume) -> ReferenceText:
        """Write the report of a canonical volume, greedily."""
        language = self.checkpoint.language
        prompt = language.prompts.for_report(volume.geometry.extent_mm)
        return self.language.answer(self.encode(volume).tokens, prompt, language.max_report_tokens)

    def ask(self, volume: Volume, question: str) -> ReferenceText:
        """Answer a question about a canonical volume, greedily."""
        language = self.checkpoint.language
        prompt = language.prompts.for_question(question, volume.geometry.extent_mm)
        return self.language.answer(self.encode(volume).tokens, prompt, language.max_answer_tokens)

    def segment_label(self, volume: Volume, name: str) -> ReferenceMask:
        """Segment a class by name."""
        label = self.checkpoint.label(name)
        prompt = self.checkpoint.language.prompts.for_label(name, volume.geometry.extent_mm)
        return self._segment_words(volume, prompt, label.window or self.checkpoint.segmentation.window)

    def segment_text(self, volume: Volume, text: str) -> ReferenceMask:
        """Segment what a text describes."""
        prompt = self.checkpoint.language.prompts.for_text(text, volume.geometry.extent_mm)
        return self._segment_words(volume, prompt, self.checkpoint.segmentation.window)

    def segment(
        self,
        volume: Volume,
        prompt: ObjectPrompt,
        window: str | None = None,
        mask: NDArray[np.bool_] | None = None,
        known: Known[Tensor] | None = None,
    ) -> ReferenceMask:
        """Segment one object.

        Parameters
        ----------
        volume
            On canonical axes.
        prompt
            Points in pixels of SAM2's slices, see :meth:`point`.
        window
            Name of the window; that of the checkpoint's segmentation by default.
        mask
            bool [D, R, C] to begin with, on the slices where it has a voxel.
        known
            Of the same prompt with fewer corrections, where there is no need to begin again.
        """
        transform = self._transform(volume)
        given = {} if mask is None else {int(n): mask[n] for n in np.flatnonzero(mask.any((1, 2)))}
        prompt = replace(prompt, masks={number: transform.mask_to_model(own) for number, own in given.items()})
        spec = self.checkpoint.segmentation
        source = self.slice_source(volume, window or spec.window)
        unchanged = {number: given[number] for number in prompt.kept_slices}
        masks = SliceMasks(transform, source.slices.__getitem__, spec.edges)
        found = ReferenceMask(np.zeros(volume.hu.shape, np.bool_), masks, unchanged)
        depth, room, outlined = volume.geometry.shape[0], Room(_KEPT_BYTES), None
        if (chooser := self.modules.region_scorer) and prompt.seg_hidden is not None:
            outlined = chooser.outlined(self.encode(volume).regions, (depth, *transform.fitted_shape))
        scorer = self.modules.scorer
        propagation = Propagation(self.steps, source, depth, spec, found, room, scorer=scorer, outlined=outlined)
        earlier = {} if known is None else {prompt.object_id: known}
        asyncio.run(propagation.run([prompt], earlier, keep=found.keep))
        return found

    @property
    def steps(self) -> TorchSteps:
        """SAM2's networks for prompts and masks."""
        networks = self.modules.networks
        return TorchSteps(
            mask_decoder=networks["sam2_mask_decoder"],
            mask_prompt=networks["sam2_mask_prompt"],
            memory_encoder=networks["sam2_memory_encoder"],
            track_step=networks["sam2_track_step"],
            side=self.checkpoint.segmentation.side,
            hidden_size=self.checkpoint.language.hidden_size,
        )

    def slice_source(self, volume: Volume, window: str) -> SliceSource:
        """Return the features of a volume's slices through a window by name."""
        spec = self.checkpoint.segmentation
        slices = fit_slices(to_uint8(volume.hu, Window(*self.checkpoint.windows[window])), spec.side, spec.fit)
        return SliceSource(self.modules.networks["sam2_image_encoder"], slices)

    def point(self, volume: Volume, row: float, column: float, label: int) -> PromptPoint:
        """Return a prompt at voxel indices of a slice as SAM2 takes it; ``label`` as in medvl.network.prompts."""
        x, y = self._transform(volume).to_model_xy(np.array([column, row])).tolist()
        return PromptPoint(x, y, label)

    def seg_state(self, volume: Volume, prompt: str) -> NDArray[np.float32]:
        """Return the [SEG] state FP32 [H] of the forced answer to a prompt."""
        answer = self.checkpoint.language.prompts.segment_answer
        return self.language.seg_state(self.encode(volume).tokens, prompt, answer)

    def _segment_words(self, volume: Volume, prompt: str, window: str) -> ReferenceMask:
        return self.segment(volume, ObjectPrompt(0, {}, self.seg_state(volume, prompt)), window)

    def _transform(self, volume: Volume) -> FitTransform:
        spec = self.checkpoint.segmentation
        _, rows, columns = volume.hu.shape
        return FitTransform(rows, columns, spec.side, spec.fit)
