"""SAM2's graphs in the segmenter's own process, where that is possible: a call then costs no hop and no copy.

On a CPU, where the models of the repository are ONNX, the segmenter opens them itself. A repository with other models,
such as TensorRT plans, is called through the server (:mod:`medvl.serving.bls`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort

from medvl.contracts.models import MODELS
from medvl.serving.onnx_session import open_session
from medvl.serving.triton_steps import Arrays

GRAPH_FILE = "model.onnx"
SEGMENTER_GRAPHS = (
    "sam2_image_encoder",
    "sam2_mask_decoder",
    "sam2_memory_encoder",
    "sam2_mask_prompt",
    "sam2_track_step",
)
OWN_ENCODE_BATCH, OWN_OBJECT_BATCH = 1, 4
"""Slices that are encoded in one call, and objects, or slices that are searched for one, that share a call."""


class OwnGraphs:
    """Graphs that run in worker threads of this process.

    Parameters
    ----------
    paths
        ``model.onnx`` of each model by name.
    workers
        Calls that run at once: both directions of an object, or two requests.
    threads
        Of one call, for large graphs.
    """

    def __init__(self, paths: Mapping[str, Path], *, workers: int, threads: int) -> None:
        self._sessions: dict[str, ort.InferenceSession] = {n: open_session(p, threads) for n, p in paths.items()}
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix="sam2")

    async def infer(self, model: str, inputs: Arrays) -> Arrays:
        """Call a model; its outputs are arrays of their own."""
        names = [spec.name for spec in MODELS[model].outputs]
        outputs = await asyncio.get_running_loop().run_in_executor(self._workers, self.run, model, names, inputs)
        return dict(zip(names, outputs, strict=True))

    def run(self, model: str, names: Sequence[str], inputs: Arrays) -> Sequence[np.ndarray]:
        """Call a model in this thread; return the named outputs."""
        outputs: Sequence[np.ndarray] = self._sessions[model].run(names, inputs)
        return outputs

    def close(self) -> None:
        """End the worker threads."""
        self._workers.shutdown(cancel_futures=True)


def graphs_beside(model_folder: Path, version: str) -> dict[str, Path] | None:
    """Return the graphs that stand beside a model in a repository, None when one of them is no ONNX.

    Parameters
    ----------
    model_folder, version
        The segmenter's own, as Triton gives them; all models of a repository have the same one.
    """
    paths = {name: model_folder.parent / name / version / GRAPH_FILE for name in SEGMENTER_GRAPHS}
    return paths if all(path.is_file() for path in paths.values()) else None
