"""The client's own commands; each ``register_*`` is an entry point of the group ``medvl.commands``.

Registration imports neither pydicom nor matplotlib nor rich: what a command needs is imported when it runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from medvl.client.commands.arguments import (
    add_call_arguments,
    add_segment_arguments,
    add_service_arguments,
    add_text_arguments,
)

if TYPE_CHECKING:
    from medvl.client.plugins import Subparsers

SEGMENT_EPILOG = """\
Points and boxes are DICOM patient coordinates (LPS) in millimetres. With --voxel they are indices of the source's own
grid as viewers show it, counted from 0: column, row, slice (NIfTI: i, j, k; DICOM: column and row of the stored image,
slice in the order of the mask that is written); a series that was resampled has none. Points and boxes together
describe one object; --label and --text describe one object each and may be repeated, with a folder or a .dcm file as
output. Each --correct is a click on the mask that everything before it makes: repeat the command with one more until
the mask is right.

examples:
  medvl segment ct/ --label liver -o liver.nii.gz
  medvl segment ct/ --point -12.5,3,40 --point -60,3,40,neg -o mask.dcm
  medvl segment ct/ --point -12.5,3,40 --correct -60,3,55,neg --correct -10,8,25 --local -o mask.dcm
  medvl segment ct.nii.gz --box 40,60,10,90,120,18 --voxel -o mask.nii.gz
"""


def register_report(subparsers: Subparsers) -> None:
    """Add ``medvl report``."""
    parser = subparsers.add_parser("report", help="write the report of a CT series")
    add_call_arguments(parser)
    add_text_arguments(parser)
    parser.set_defaults(run=_deferred(".text", "run_report"))


def register_ask(subparsers: Subparsers) -> None:
    """Add ``medvl ask``."""
    parser = subparsers.add_parser("ask", help="answer a question about a CT series")
    add_call_arguments(parser)
    add_text_arguments(parser)
    parser.add_argument("question", metavar="QUESTION", help="what to answer, in quotes")
    parser.set_defaults(run=_deferred(".text", "run_ask"))


def register_segment(subparsers: Subparsers) -> None:
    """Add ``medvl segment``."""
    parser = subparsers.add_parser("segment", help="segment objects in 3D", epilog=SEGMENT_EPILOG)
    add_call_arguments(parser)
    add_segment_arguments(parser)
    parser.set_defaults(run=_deferred(".segment", "run_segment"))


def register_describe(subparsers: Subparsers) -> None:
    """Add ``medvl describe``."""
    parser = subparsers.add_parser("describe", help="say what the service serves: checkpoint, classes, limits")
    add_service_arguments(parser)
    parser.set_defaults(run=_deferred(".describe", "run_describe"))


def _deferred(module: str, name: str) -> Callable[[argparse.Namespace], int]:
    """Return a function that imports the one that does the work when it is called."""

    def run(arguments: argparse.Namespace) -> int:
        carry_out: Callable[[argparse.Namespace], int] = getattr(import_module(module, __name__), name)
        return carry_out(arguments)

    return run
