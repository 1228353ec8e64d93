"""An argument parser that refuses with the errors of the tree and takes ``-12.5,3,4`` for a value."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from medvl.contracts.errors import InvalidRequest

_NEGATIVE_VALUE = re.compile(r"-[.0-9]")


class Parser(argparse.ArgumentParser):
    """``argparse`` without abbreviations, and with one sentence in place of usage and exit."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - argparse's own
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """See :meth:`argparse.ArgumentParser.parse_known_args`; a negative number belongs to the option before it."""
        return super().parse_known_args(bind_negative_values(sys.argv[1:] if args is None else args), namespace)

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments.

        Raises
        ------
        InvalidRequest
            Always.
        """
        raise InvalidRequest(f"{message.rstrip('.')}; see {self.prog} --help.")


def bind_negative_values(arguments: Sequence[str]) -> list[str]:
    """Join ``--point -12.5,3,4`` to ``--point=-12.5,3,4``, which argparse does not take for two options."""
    bound: list[str] = []
    for argument in arguments:
        if bound and _NEGATIVE_VALUE.match(argument) and re.fullmatch(r"--[a-z][a-z-]*", bound[-1]):
            bound[-1] = f"{bound[-1]}={argument}"
        else:
            bound.append(argument)
    return bound
