"""``medvl loadtest``: how much load a service carries, and whether its answers stay right under it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medvl.client.plugins import Subparsers

TASKS = ("report", "ask", "segment-label", "segment-point")

EPILOG = """\
An open loop (--request-rate) sends at the times of a Poisson process and never waits for answers; its latencies count
from the scheduled time. A closed loop (--concurrency) sends the next request when the last one is answered.

exit codes: 0 passed; 1 a wrong answer, a failure, a service that was away, or too few requests within --goodput; others
as in medvl --help.

example:
  medvl loadtest ct/ --endpoint localhost:8500 --request-rate 2 --task ask --duration 60 --goodput ttft:500
"""


def register(subparsers: Subparsers) -> None:
    """Add ``medvl loadtest``."""
    parser = subparsers.add_parser("loadtest", help="put a service under load and measure it", epilog=EPILOG)
    parser.add_argument("series", metavar="SERIES", type=Path, help="a folder of DICOM files, one file, or .nii[.gz]")
    parser.add_argument("--endpoint", metavar="HOST:PORT", required=True, help="the service; nothing else is called")
    load = parser.add_mutually_exclusive_group(required=True)
    load.add_argument("--request-rate", metavar="R", type=_positive, help="open loop: mean requests per second")
    load.add_argument("--concurrency", metavar="C", type=_count, help="closed loop: clients at once")
    parser.add_argument("--task", choices=TASKS, default="report", help="what every request asks for (report)")
    parser.add_argument("--question", action="append", default=[], metavar="Q", help="for ask; may be repeated")
    parser.add_argument(
        "--label", action="append", default=[], metavar="L", help="for segment-label (the first served)"
    )
    parser.add_argument("--duration", metavar="S", type=_positive, default=30.0, help="seconds of sending (30)")
    parser.add_argument("--deadline", metavar="S", type=_positive, default=60.0, help="seconds for each request (60)")
    parser.add_argument("--max-requests", metavar="N", type=_count, default=10_000, help="send no more (10000)")
    parser.add_argument("--warmup", metavar="N", type=_natural, default=1, help="requests before the measured ones (1)")
    parser.add_argument("--seed", metavar="N", type=_natural, default=0, help="of arrivals, points and order (0)")
    parser.add_argument(
        "--goodput",
        action="append",
        default=[],
        metavar="ttft|e2e:MS",
        type=_objective,
        help="milliseconds from the scheduled time within which a request counts as good",
    )
    parser.add_argument("--min-goodput", metavar="SHARE", type=_share, default=0.0, help="pass from this share on (0)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write every figure there")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from medvl.loadtest.run import run  # noqa: PLC0415 - the reader's imports cost --help a second

    return run(arguments)


def _number(text: str, accept: Callable[[float], bool], what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and accept(value)):
        raise argparse.ArgumentTypeError(f"must be {what}, not {text!r}")
    return value


def _positive(text: str) -> float:
    return _number(text, lambda v: v > 0, "a positive number")


def _share(text: str) -> float:
    return _number(text, lambda v: 0 <= v <= 1, "between 0 and 1")


def _count(text: str) -> int:
    return int(_number(text, lambda v: v >= 1 and v.is_integer(), "a positive whole number"))


def _natural(text: str) -> int:
    return int(_number(text, lambda v: v >= 0 and v.is_integer(), "a whole number"))


def _objective(text: str) -> tuple[str, float]:
    name, _, limit = text.partition(":")
    if name not in ("ttft", "e2e"):
        raise argparse.ArgumentTypeError(f"must be ttft:MS or e2e:MS, not {text!r}")
    return f"{name}_ms", _positive(limit)
