"""The vision encoder behind Triton: a series to vision tokens and regions, computed once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvl.contracts.checkpoint import Checkpoint
from medvl.imaging.resample import to_grid
from medvl.orchestrator.cache import BoundedCache, KeyedLocks
from medvl.orchestrator.calls import Call
from medvl.orchestrator.store import StoredSeries
from medvl.orchestrator.triton import Triton
from medvl.orchestrator.work import Work
from medvl.wire.v1 import medvl_pb2 as pb

_Key = tuple[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """What ``encode_volume`` says of a series.

    Attributes
    ----------
    tokens
        Vision tokens float32 [T, H] in the language model's embedding space.
    regions
        float32 [G, n_region], for the segmenter.
    """

    tokens: NDArray[Any]
    regions: NDArray[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.tokens.nbytes + self.regions.nbytes


class VisionEncoder:
    """Vision tokens and regions by series and checkpoint (which fixes grid and window), each computed once and cached.

    Parameters
    ----------
    triton
        Where ``encode_volume`` is served.
    max_cache_bytes
        Bound of the cache.
    """

    def __init__(self, triton: Triton, max_cache_bytes: int) -> None:
        self._triton = triton
        self._cache: BoundedCache[_Key, Encoded] = BoundedCache(max_cache_bytes)
        self._locks: KeyedLocks[_Key] = KeyedLocks()

    @property
    def cached_bytes(self) -> int:
        """Vision tokens and regions held, in bytes."""
        return self._cache.nbytes

    async def encode(self, work: Work) -> Encoded:
        """Return what a series is encoded to; progress is told where that has to be computed.

        Raises
        ------
        MedvlError
            As :meth:`medvl.orchestrator.triton.Triton.infer` and :meth:`~medvl.orchestrator.triton.Triton.ask_again`.
        """
        key = (work.series.digest, work.checkpoint.digest)
        async with self._locks.of(key):
            encoded = self._cache.get(key)
            if encoded is None:
                await work.emitter.progress(pb.STAGE_ENCODE, key, 0, 1)
                encoded = await self._encode(work.series, work.checkpoint, work.call)
                # Kept under the checkpoint's name, it would outlive the request that finds out in the end.
                await self._triton.ask_again(work.served, work.call)
                self._cache.put(key, encoded)
                await work.emitter.progress(pb.STAGE_ENCODE, key, 1, 1)
        return encoded

    async def _encode(self, series: StoredSeries, checkpoint: Checkpoint, call: Call) -> Encoded:
        vision = checkpoint.vision
        with call.stages.measure("preprocess"):
            grid = await asyncio.to_thread(to_grid, series.volume.hu, vision.grid)
        with call.stages.measure("encode"):
            outputs = await self._triton.infer(
                "encode_volume",
                {
                    "volume_hu": grid[np.newaxis],
                    "window_hu": np.array([checkpoint.windows[vision.window]], np.float32),
                },
                call,
            )
        return Encoded(outputs["vision_tokens"][0], outputs["regions"][0])
