"""Subcommands of ``medvl``: whatever the installed distributions register under ``medvl.commands``.

An entry point names a function that adds one subparser and sets its default ``run``, a function from the parsed
arguments to an exit code. What fails to load stays visible and says what it lacks when it is called.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from medvl.contracts.errors import SetupError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

GROUP = "medvl.commands"
_EXTRAS = {
    "medvl.client": "client",
    "medvl.export": "export",
    "medvl.loadtest": "client",
    "medvl.pacs": "pacs",
    "medvl.runtime": "orchestrator",
}
"""The extra that brings what a package's commands need."""


def register_commands(subparsers: Subparsers, found: Iterable[EntryPoint] | None = None) -> None:
    """Add every registered command, in alphabetical order; the first of two with one name wins.

    Parameters
    ----------
    subparsers
        Where the commands go.
    found
        Entry points; None takes those of the group :data:`GROUP`.
    """
    points = entry_points(group=GROUP) if found is None else found
    for point in sorted(points, key=lambda p: p.name):
        if point.name not in subparsers.choices:
            _register(point, subparsers)


def _register(point: EntryPoint, subparsers: Subparsers) -> None:
    try:
        register: Callable[[Subparsers], None] = point.load()
        register(subparsers)
    except Exception as error:  # a stranger's defect must not take the other commands away
        refused = subparsers.choices.get(point.name)
        if refused is None:
            refused = subparsers.add_parser(point.name, help="not available here", add_help=False, prefix_chars="\0")
            refused.add_argument("rest", nargs="*")
        refused.set_defaults(run=_refusal(point, error))


def _refusal(point: EntryPoint, error: Exception) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        raise missing_package(point.name, point.module, error)

    return run


def missing_package(command: str, module: str, error: Exception) -> SetupError:
    """Return the error that says why a command is not available and, where an extra brings it, how to get it."""
    if not isinstance(error, ImportError):
        return SetupError(f"The command {command} does not load ({type(error).__name__}): reinstall its package.")
    lacking = f"the module {error.name}" if error.name else "a module"
    extra = next((e for package, e in _EXTRAS.items() if f"{module}.".startswith(f"{package}.")), None)
    remedy = f"pip install '.[{extra}]' in a checkout of medvl-sam2" if extra else "install the extra that brings it"
    return SetupError(f"The command {command} needs {lacking}, which is not installed here: {remedy}.")
