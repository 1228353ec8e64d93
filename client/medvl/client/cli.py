"""``medvl``: the command line of the system."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from medvl.client.exits import EXIT_HELP, Exit, exit_of
from medvl.client.parser import Parser
from medvl.client.plugins import missing_package, register_commands
from medvl.client.terminal import printable
from medvl.contracts.errors import InternalError, MedvlError, SetupError

DESCRIPTION = """\
Reports, answers and 3D masks for CT series, by a MedVL-SAM2 service.
A demonstration and a test instrument, not for clinical use.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every command that is installed."""
    parser: argparse.ArgumentParser = Parser(prog="medvl", description=DESCRIPTION, epilog=EXIT_HELP)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    register_commands(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every failure is one sentence on standard error.

    With ``--json`` a failure is also the one document on standard output: ``{"error": {"reason", "message"}}``.

    Parameters
    ----------
    argv
        Arguments without the program's name; None takes those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    try:
        namespace = build_parser().parse_args(arguments)
        as_json = getattr(namespace, "as_json", False)
        return int(namespace.run(namespace))
    except KeyboardInterrupt:
        sys.stderr.write("medvl: Interrupted.\n")
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away; what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except Exception as error:  # a person at a shell gets a sentence, never a traceback
        return _fail(_told(error, arguments), as_json=as_json)


def _told(error: Exception, arguments: Sequence[str]) -> MedvlError:
    """Return the error of the tree that says what went wrong."""
    if isinstance(error, MedvlError):
        return error
    if isinstance(error, ModuleNotFoundError):
        command = next((a for a in arguments if not a.startswith("-")), "medvl")
        return missing_package(command, __name__, error)
    # An OSError without words of the system is some library's own.
    if isinstance(error, OSError) and error.strerror is not None:
        where = "" if error.filename is None else f"{error.filename}: "
        return SetupError(f"{where}{error.strerror}.")
    return _defect(error)


def _defect(error: Exception) -> InternalError:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    return InternalError(f"A defect of this program ({type(error).__name__} at {place}): please report it.")


def _fail(error: MedvlError, *, as_json: bool) -> int:
    if as_json:
        sys.stdout.write(json.dumps({"error": {"reason": error.reason, "message": str(error)}}) + "\n")
    sys.stderr.write(f"medvl: {printable(str(error))}\n")
    return exit_of(error)


if __name__ == "__main__":
    sys.exit(main())
