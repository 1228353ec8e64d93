"""``medvl pacs``: run the gateway until it is told to stop."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medvl.client.plugins import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add ``medvl pacs``."""
    parser = subparsers.add_parser("pacs", help="take CT series from a PACS, send back reports, masks, measurements")
    parser.add_argument("--aet", default="MEDVL", metavar="TITLE", help="our AE title (MEDVL)")
    parser.add_argument("--host", default="0.0.0.0", metavar="HOST", help="address to listen on (all)")  # noqa: S104
    parser.add_argument("--port", type=int, default=11112, help="port of C-STORE and C-ECHO (11112)")
    parser.add_argument("--endpoint", metavar="HOST:PORT", help="the service (as for medvl report)")
    parser.add_argument("--destination", required=True, metavar="AET@HOST:PORT", help="where results are sent")
    parser.add_argument("--labels", default="", metavar="L,L", help="classes to segment, beside findings (none)")
    parser.add_argument(
        "--geometry-policy",
        choices=("reject", "resample", "warn"),
        default="reject",
        help="what to do about gantry tilt, gaps and uneven spacing (reject)",
    )
    parser.add_argument("--spool", required=True, type=Path, metavar="DIR", help="folder that survives restarts")
    parser.add_argument("--quiet-s", type=float, default=15.0, metavar="S", help="a series is complete after (15)")
    parser.add_argument("--keep-h", type=float, default=24.0, metavar="H", help="delete delivered series after (24)")
    parser.add_argument(
        "--keep-refused-h", type=float, default=72.0, metavar="H", help="delete series that cannot be read after (72)"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from medvl.pacs.run import run  # noqa: PLC0415 - pydicom and pynetdicom are needed only when it runs

    return run(arguments)
