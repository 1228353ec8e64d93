"""``python -m medvl.orchestrator --config file.json``: serve until SIGTERM or SIGINT, then drain."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from medvl.contracts.errors import SetupError
from medvl.orchestrator import audit
from medvl.orchestrator.config import OrchestratorConfig, load_config
from medvl.orchestrator.memory import reuse_freed_chunks
from medvl.orchestrator.server import running


def main() -> int:
    """Run the orchestrator; return the process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m medvl.orchestrator", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="JSON file with the configuration")
    path: Path = parser.parse_args().config
    audit.configure()
    reuse_freed_chunks()
    try:
        asyncio.run(_serve(load_config(path)))
    except SetupError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


async def _serve(config: OrchestratorConfig) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    async with running(config):
        await stop.wait()


if __name__ == "__main__":
    sys.exit(main())
