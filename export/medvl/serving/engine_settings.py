"""How vLLM runs on this machine: environment, settings and their defaults. Imports nothing of vLLM or torch."""

from __future__ import annotations

import locale
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from medvl.contracts.checkpoint import LanguageSpec
from medvl.serving.settings import Settings

VARIABLE_PREFIX = "MEDVL_LLM_"
"""Of the environment variables that set the engine up."""

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # Standard output is for what a command answers.
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_PLUGINS": "",
    # The [SEG] states are read from the V1 model runner.
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # On a CPU: two threads on two busy cores gave 6 tokens/s where one gave 138.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
"""Defaults that vLLM reads from the environment; they hold only where the variable is not set."""

ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""Runs the model in the engine's own process. On a CPU vLLM would start a worker beside it, which spins for a second
after every request: with a canary twice a second it kept a core busy for ever. What vLLM fears for, OpenMP's settings,
stands in :data:`ENVIRONMENT`. By its name, since "uni" is turned into the worker."""
WORKER_EXTENSION = "medvl.serving.seg_capture.SegCaptureExtension"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How the engine runs on this machine."""

    folder: Path
    """The transformers folder."""
    dtype: str
    max_context: int
    """Tokens of prompt, vision tokens and answer together."""
    on_cpu: bool
    max_sequences: int
    """Answers that are decoded together."""
    kv_cache_bytes: int | None
    """Memory of the key/value cache; None leaves it to ``gpu_memory_share``."""
    gpu_memory_share: float
    tensor_parallel: int

    @classmethod
    def read(
        cls, folder: Path, language: LanguageSpec, settings: Settings, *, on_cpu: bool, dtype: str | None = None
    ) -> Self:
        """Read ``max_sequences``, ``kv_cache_bytes``, ``gpu_memory_share`` and ``tensor_parallel``.

        On a GPU the cache has no size of its own, ``gpu_memory_share`` bounds it. ``dtype`` is that of a quantised
        language model, in the place of the checkpoint's.

        Raises
        ------
        SetupError
            Naming the setting that is not a positive number.
        """
        return cls(
            folder=folder,
            dtype=dtype or language.dtype,
            max_context=language.max_context,
            on_cpu=on_cpu,
            max_sequences=settings.integer("max_sequences", 32),
            kv_cache_bytes=settings.integer("kv_cache_bytes", 128 * 2**20) if on_cpu else None,
            gpu_memory_share=settings.number("gpu_memory_share", 0.5),
            tensor_parallel=settings.integer("tensor_parallel", 1),
        )

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of ``AsyncEngineArgs``."""
        arguments: dict[str, Any] = {
            "model": str(self.folder),
            "dtype": self.dtype,
            "max_model_len": self.max_context,
            "max_num_seqs": self.max_sequences,
            "enable_prompt_embeds": True,
            "worker_extension_cls": WORKER_EXTENSION,
            # The captured states need the sampled token of the step before.
            "async_scheduling": False,
            "kv_cache_memory_bytes": self.kv_cache_bytes,
            "tensor_parallel_size": self.tensor_parallel,
        }
        if self.on_cpu:
            # 128, the default there, lets nothing shorter hit the prefix cache.
            executor = {"distributed_executor_backend": ONE_PROCESS} if self.tensor_parallel == 1 else {}
            return arguments | executor | {"enforce_eager": True, "block_size": 32}
        return arguments | {"gpu_memory_utilization": self.gpu_memory_share}


def prepare_process() -> None:
    """Set locale and environment; before vllm or torch is imported.

    The stub's interpreter starts in the C locale and ignores the environment's, and torch then cannot read its own
    files.
    """
    locale.setlocale(locale.LC_ALL, "C.UTF-8")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
