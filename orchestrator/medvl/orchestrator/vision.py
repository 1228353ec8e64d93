"""The vision encoder behind Triton: a series to vision tokens, computed once."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvl.contracts.checkpoint import Checkpoint
from medvl.imaging.resample import to_grid
from medvl.orchestrator.cache import ArrayCache, KeyedLocks
from medvl.orchestrator.calls import Call
from medvl.orchestrator.store import StoredSeries
from medvl.orchestrator.triton import Triton
from medvl.orchestrator.work import Work
from medvl.wire.v1 import medvl_pb2 as pb

_Key = tuple[str, str]


class VisionEncoder:
    """Vision tokens by series and checkpoint (which fixes grid and window), cached, one computation for each at a time.

    Parameters
    ----------
    triton
        Where ``encode_volume`` is served.
    max_cache_bytes
        Bound of the cache.
    """

    def __init__(self, triton: Triton, max_cache_bytes: int) -> None:
        self._triton = triton
        self._cache: ArrayCache[_Key] = ArrayCache(max_cache_bytes)
        self._locks: KeyedLocks[_Key] = KeyedLocks()

    @property
    def cached_bytes(self) -> int:
        """Vision tokens held, in bytes."""
        return self._cache.nbytes

    async def tokens(self, work: Work) -> NDArray[Any]:
        """Return the vision tokens of a series, float32 [T, H] in the language model's embedding space.

        Progress is told where they have to be computed.

        Raises
        ------
        MedvlError
            As :meth:`medvl.orchestrator.triton.Triton.infer`.
        """
        key = (work.series.digest, work.checkpoint.digest)
        async with self._locks.of(key):
            tokens = self._cache.get(key)
            if tokens is None:
                await work.emitter.progress(pb.STAGE_ENCODE, key, 0, 1)
                tokens = await self._encode(work.series, work.checkpoint, work.call)
                self._cache.put(key, tokens)
                await work.emitter.progress(pb.STAGE_ENCODE, key, 1, 1)
        return tokens

    async def _encode(self, series: StoredSeries, checkpoint: Checkpoint, call: Call) -> NDArray[Any]:
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
        tokens: NDArray[Any] = outputs["vision_tokens"][0]
        return tokens
