"""SAM2's networks in this process: the executor of the torch reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medvl.network.prompts import PromptPoint, SlicePrompt, given_masks, prompt_arrays, track_arrays
from medvl.network.steps import Bank, Decoded, Remembered


@dataclass(frozen=True, slots=True)
class TorchFeatures:
    """Features f0, f1 and f2 of one slice, FP32 with a leading axis of length 1."""

    maps: tuple[Tensor, Tensor, Tensor]


class SliceSource:
    """The slices of one volume, encoded when they are first asked for and kept.

    Parameters
    ----------
    image_encoder
        :class:`medvl.network.sam2_parts.ImageEncoder`.
    slices
        UINT8 [D, S, S].
    """

    def __init__(self, image_encoder: nn.Module, slices: np.ndarray) -> None:
        self._image_encoder = image_encoder
        self.slices = slices
        self._features: dict[int, TorchFeatures] = {}

    async def get(self, slices: Sequence[int]) -> Sequence[TorchFeatures]:
        """Return the features of slices, in that order."""
        return [self._of(number) for number in slices]

    def expect(self, slices: Sequence[int]) -> None:
        """Do nothing: one thread computes everything here."""

    def _of(self, number: int) -> TorchFeatures:
        if number not in self._features:
            with torch.inference_mode():
                self._features[number] = TorchFeatures(
                    self._image_encoder(torch.from_numpy(self.slices[number : number + 1]))
                )
        return self._features[number]


@dataclass(frozen=True)
class TorchSteps:
    """The steps of propagation as torch modules of :mod:`medvl.network.sam2_parts`."""

    mask_decoder: nn.Module
    mask_prompt: nn.Module
    memory_encoder: nn.Module
    track_step: nn.Module
    side: int
    hidden_size: int

    async def decode(self, features: Sequence[TorchFeatures], prompts: Sequence[SlicePrompt]) -> Decoded[Tensor]:
        """Decode prompts without memory, each on its own slice."""
        maps = [torch.cat(level) for level in zip(*(f.maps for f in features), strict=True)]
        arrays = prompt_arrays(prompts, side=self.side, hidden_size=self.hidden_size)
        with torch.inference_mode():
            return Decoded(*self.mask_decoder(*maps, *map(torch.from_numpy, arrays.values())))

    async def given(self, features: TorchFeatures, masks: Sequence[NDArray[np.bool_]]) -> Remembered[Tensor]:
        """Take masks bool [S, S] of N objects for what is on one slice."""
        with torch.inference_mode():
            *decoded, memory = self.mask_prompt(*features.maps, torch.from_numpy(given_masks(masks)))
        return Remembered(Decoded(*decoded), memory)

    async def remember(self, features: TorchFeatures, mask_logits: Tensor, object_score: Tensor) -> Tensor:
        """Return the memory [N, HW, Cm] of N objects on one slice."""
        with torch.inference_mode():
            memory: Tensor = self.memory_encoder(features.maps[2], mask_logits, object_score)
        return memory

    async def track(self, features: TorchFeatures, bank: Bank[Tensor]) -> Remembered[Tensor]:
        """Track N objects onto one slice."""
        return self._step(features, bank, [()] * len(bank.memories[0]), None)

    async def correct(
        self,
        features: TorchFeatures,
        bank: Bank[Tensor],
        points: Sequence[tuple[PromptPoint, ...]],
        mask_logits: Tensor,
    ) -> Remembered[Tensor]:
        """Track N objects onto one slice with points that correct their last masks there."""
        return self._step(features, bank, points, mask_logits.numpy())

    def _step(
        self,
        features: TorchFeatures,
        bank: Bank[Tensor],
        points: Sequence[tuple[PromptPoint, ...]],
        masks: np.ndarray | None,
    ) -> Remembered[Tensor]:
        with torch.inference_mode():
            *decoded, memory = self.track_step(
                *features.maps,
                *map(torch.from_numpy, track_arrays(points, masks, side=self.side).values()),
                torch.stack(list(bank.memories)),
                torch.tensor(bank.rows),
                torch.stack(list(bank.pointers)),
                torch.tensor(bank.distances, dtype=torch.float32),
            )
        return Remembered(Decoded(*decoded), memory)
