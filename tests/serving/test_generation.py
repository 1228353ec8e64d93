"""An engine that dies takes no caller with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ASK = """
import asyncio, pathlib, sys
from medvl.serving.engine_settings import EngineSettings, VARIABLE_PREFIX, prepare_process
prepare_process()
import numpy as np
import tiny_language
from medvl.contracts.errors import BackendUnavailable
from medvl.serving import generation, orphans
from medvl.serving.engine import Engine
from medvl.serving.prompting import PromptBuilder
from medvl.serving.settings import Settings

folder, spec = pathlib.Path(sys.argv[1]), tiny_language.checkpoint("at", "prefix")
tiny_language.write_language_model(folder)
settings = Settings(VARIABLE_PREFIX, {"kv_cache_bytes": str(2**25)})
engine = Engine(EngineSettings.read(folder, spec.language, settings, on_cpu=True))
engine.start()
builder = PromptBuilder(folder, spec)
prompt = builder.build("x", np.ones((tiny_language.TOKENS, tiny_language.WIDTH), np.float32))
take = engine.llm.collective_rpc


async def answer():
    forced = builder.forced_answer(tiny_language.TEMPLATE)
    return sum([len(d.seg_hidden) async for d in generation.forced_answer(engine.llm, spec.language, prompt, forced)])


async def fetch():
    return await generation._take_states(engine.llm, "nobody's", tiny_language.WIDTH)


async def die_before_it_is_read(*args, **kwargs):
    # What has been stopped cannot answer before it is killed.
    for process in orphans.children():
        process.suspend()
        asyncio.get_running_loop().call_later(0.5, process.kill)
    return await take(*args, **kwargs)


def tell(work):
    try:
        print(engine.submit(asyncio.wait_for(work, 60)).result())
    except BackendUnavailable as error:
        print(error)


tell(answer())
engine.llm.collective_rpc = die_before_it_is_read
tell(answer())
engine.llm.collective_rpc = take
tell(fetch())
engine.stop()
"""
STOPPED = "The language model has stopped: try again later."


@pytest.mark.e2e
def test_states_of_an_engine_that_dies_are_unavailable(tmp_path: Path):
    """Whether it dies while it is asked for them or before: vLLM leaves a call open whose engine dies meanwhile."""
    command = [sys.executable, "-c", ASK, tmp_path / "language"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    assert done.stdout.splitlines() == ["1", STOPPED, STOPPED], done.stderr
