"""SAM2's networks as propagation asks for them, each a model of this Triton server."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medvl.contracts.checkpoint import Checkpoint
from medvl.contracts.models import MODELS
from medvl.network.prompts import PromptPoint, SlicePrompt, given_masks, prompt_arrays, track_arrays
from medvl.network.steps import Bank, Decoded, Remembered
from medvl.serving.feature_store import FeatureStore, SeriesKey, SliceFeatures

Arrays = dict[str, np.ndarray]
Infer = Callable[[str, Arrays], Awaitable[Arrays]]
"""Calls a model by name; outputs may be views of memory that the caller has to let go."""


@dataclass
class Spent:
    """What a request has cost so far."""

    slices_encoded: int = 0
    encode_s: float = 0.0
    decode_s: float = 0.0
    track_s: float = 0.0


async def encode(infer: Infer, slices: np.ndarray) -> list[SliceFeatures]:
    """Compute the features of slices UINT8 [B, S, S], in memory of their own, in batches that the model takes."""
    features = []
    limit = MODELS["sam2_image_encoder"].max_batch_size
    for first in range(0, len(slices), limit):
        out = await infer("sam2_image_encoder", {"slices": slices[first : first + limit]})
        count = len(out["f0"])
        features += [SliceFeatures.apart(*(out[n][i : i + 1] for n in ("f0", "f1", "f2"))) for i in range(count)]
    return features


class StoredFeatures:
    """The features of one series in use, as propagation asks for them."""

    def __init__(self, store: FeatureStore, key: SeriesKey, spent: Spent) -> None:
        self._store = store
        self._key = key
        self._spent = spent

    async def get(self, slices: Sequence[int]) -> Sequence[SliceFeatures]:
        """Return the features of slices, in that order."""
        start_s = time.perf_counter()
        fetched = await self._store.get(self._key, slices)
        self._spent.encode_s += time.perf_counter() - start_s
        self._spent.slices_encoded += fetched.computed
        return fetched.features

    def expect(self, slices: Sequence[int]) -> None:
        """Begin to compute the features of slices that are not here."""
        self._spent.slices_encoded += self._store.expect(self._key, slices)


class TritonSteps:
    """Runs the steps of propagation as calls to other models; arrays are numpy, FP32."""

    def __init__(self, infer: Infer, checkpoint: Checkpoint, spent: Spent) -> None:
        self._infer = infer
        self._side = checkpoint.segmentation.side
        self._hidden_size = checkpoint.language.hidden_size
        self._spent = spent

    async def decode(self, features: Sequence[SliceFeatures], prompts: Sequence[SlicePrompt]) -> Decoded[np.ndarray]:
        """Decode prompts without memory, in as many calls as the largest batch asks for."""
        start_s = time.perf_counter()
        limit = MODELS["sam2_mask_decoder"].max_batch_size
        # One padding for all, so that calls of other requests can share a batch with the last one.
        arrays = prompt_arrays(prompts, side=self._side, hidden_size=self._hidden_size)
        parts = []
        for first in range(0, len(prompts), limit):
            rows = slice(first, first + limit)
            maps = stacked(features[rows])
            parts.append(await self._infer("sam2_mask_decoder", maps | {n: a[rows] for n, a in arrays.items()}))
        self._spent.decode_s += time.perf_counter() - start_s
        return decoded({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    async def given(self, features: SliceFeatures, masks: Sequence[NDArray[np.bool_]]) -> Remembered[np.ndarray]:
        """Take masks bool [S, S] of N objects for what is on one slice."""
        start_s = time.perf_counter()
        out = await self._infer("sam2_mask_prompt", stacked([features]) | {"given_mask": given_masks(masks)})
        self._spent.decode_s += time.perf_counter() - start_s
        return Remembered(decoded(out), out["memory"].copy())

    async def remember(self, features: SliceFeatures, mask_logits: np.ndarray, object_score: np.ndarray) -> np.ndarray:
        """Return the memory [N, HW, Cm] of N objects on one slice."""
        start_s = time.perf_counter()
        inputs = {"f2": features.f2, "mask_logits": mask_logits, "object_score": object_score}
        out = await self._infer("sam2_memory_encoder", inputs)
        self._spent.track_s += time.perf_counter() - start_s
        return out["memory"].copy()

    async def track(self, features: SliceFeatures, bank: Bank[np.ndarray]) -> Remembered[np.ndarray]:
        """Track N objects onto one slice."""
        return await self._step(features, bank, [()] * len(bank.memories[0]), None)

    async def correct(
        self,
        features: SliceFeatures,
        bank: Bank[np.ndarray],
        points: Sequence[tuple[PromptPoint, ...]],
        mask_logits: np.ndarray,
    ) -> Remembered[np.ndarray]:
        """Track N objects onto one slice with points that correct their last masks there."""
        return await self._step(features, bank, points, mask_logits)

    async def _step(
        self,
        features: SliceFeatures,
        bank: Bank[np.ndarray],
        points: Sequence[tuple[PromptPoint, ...]],
        masks: np.ndarray | None,
    ) -> Remembered[np.ndarray]:
        start_s = time.perf_counter()
        inputs = {
            **stacked([features]),
            **track_arrays(points, masks, side=self._side),
            "bank_memory": np.stack(bank.memories),
            "bank_row": np.array(bank.rows, np.int64),
            "bank_pointer": np.stack(bank.pointers),
            "bank_distance": np.array(bank.distances, np.float32),
        }
        out = await self._infer("sam2_track_step", inputs)
        self._spent.track_s += time.perf_counter() - start_s
        return Remembered(decoded(out), out["memory"].copy())


def stacked(features: Sequence[SliceFeatures]) -> Arrays:
    """Return feature maps of slices, one row per slice, by tensor name."""
    return {name: np.concatenate([getattr(f, name) for f in features]) for name in ("f0", "f1", "f2")}


def decoded(out: Arrays) -> Decoded[np.ndarray]:
    """Return the mask heads' outputs in memory of their own: views would keep Triton's shared memory busy."""
    return Decoded(*(out[name].copy() for name in ("mask_logits", "iou", "object_pointer", "object_score")))
