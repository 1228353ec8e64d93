"""``medvl up``: the system on this machine, until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from medvl.contracts.paths import HOME_VARIABLE, data_folder
from medvl.runtime.system import EmbeddedSystem, SystemOptions

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

DESCRIPTION = """\
Start the Triton server and the orchestrator on this machine, without a container.
The first start fetches the server and builds the repository of the checkpoint.
"""


def register(subparsers: Subparsers) -> None:
    """Add the command ``up``."""
    parser = subparsers.add_parser("up", help="start the system on this machine", description=DESCRIPTION)
    parser.set_defaults(run=run)
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help=f"data folder ({HOME_VARIABLE}, else the user's data home)"
    )
    parser.add_argument("--port", type=_port, default=0, help="port of the service on loopback (a free one)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--checkpoint", metavar="FOLDER|PRESET", default="phantom", help="what to serve (phantom)")
    what.add_argument("--repository", type=Path, metavar="FOLDER", help="serve what medvl-export has built")
    parser.add_argument(
        "--json",
        dest="as_json",
        action="store_true",
        help="print one JSON document when the system is ready, and one when it fails",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the system until SIGINT or SIGTERM; return 0 after a clean stop."""
    return asyncio.run(_run(arguments))


async def _run(arguments: argparse.Namespace) -> int:
    task = asyncio.create_task(_serve(arguments))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return 0
    return 1


async def _serve(arguments: argparse.Namespace) -> None:
    options = SystemOptions(checkpoint=arguments.checkpoint, repository=arguments.repository, port=arguments.port)
    async with EmbeddedSystem(arguments.data or data_folder(), options, _say) as system:
        state = system.state
        if arguments.as_json:
            sys.stdout.write(state.model_dump_json(indent=2) + "\n")
        else:
            sys.stdout.write(
                f"medvl is ready at {state.endpoint} (checkpoint {state.checkpoint}); stop it with Ctrl-C\n"
            )
        sys.stdout.flush()
        await system.serve()


def _say(line: str) -> None:
    sys.stderr.write(f"medvl: {line}\n")
    sys.stderr.flush()


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError("a port is 0 to 65535")
    return port
