"""An operator's settings: the environment first, then the configuration, then the default; nonsense is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medvl.contracts.errors import SetupError
from medvl.serving.engine_settings import EngineSettings
from medvl.serving.settings import Settings

from . import tiny_language


def settings(**parameters: str) -> Settings:
    values = {key: {"string_value": value} for key, value in parameters.items()}
    return Settings.of(json.dumps({"parameters": values}), "MEDVL_TEST_")


def test_the_environment_comes_first(monkeypatch):
    """A variable beats the configuration, which beats the default."""
    assert settings().integer("max_sequences", 32) == 32
    assert settings(max_sequences="8").integer("max_sequences", 32) == 8
    monkeypatch.setenv("MEDVL_TEST_MAX_SEQUENCES", "4")
    assert settings(max_sequences="8").integer("max_sequences", 32) == 4


@pytest.mark.parametrize("text", ["many", "0", "-1", "nan", "inf"])
def test_nonsense_is_refused_by_name(text):
    """What is not a positive number stops the start and names the setting."""
    with pytest.raises(SetupError, match="share"):
        settings(share=text).number("share", 0.5)


def test_a_fraction_of_a_thing_is_refused():
    """Counts are whole."""
    with pytest.raises(SetupError, match="whole"):
        settings(max_sequences="1.5").integer("max_sequences", 32)


def test_a_gpu_bounds_its_cache_by_its_memory():
    """Eager mode, one process and a fixed cache are for CPUs; on a GPU a share of its memory bounds the cache."""
    language = tiny_language.checkpoint("at", "prefix").language
    cpu = EngineSettings.read(Path("llm"), language, settings(kv_cache_bytes="1000"), on_cpu=True).arguments()
    gpu = EngineSettings.read(Path("llm"), language, settings(gpu_memory_share="0.7"), on_cpu=False).arguments()
    assert (cpu["enforce_eager"], cpu["kv_cache_memory_bytes"]) == (True, 1000)
    assert cpu["distributed_executor_backend"].endswith("UniProcExecutor")
    assert gpu.keys().isdisjoint({"enforce_eager", "distributed_executor_backend"})
    assert (gpu["gpu_memory_utilization"], gpu["kv_cache_memory_bytes"]) == (0.7, None)
    assert cpu["max_model_len"] == gpu["max_model_len"] == tiny_language.CONTEXT
