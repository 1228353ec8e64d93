"""Arguments that commands share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medvl.client.coordinates import parse_box, parse_mask, parse_point
from medvl.contracts.errors import InvalidRequest

POLICIES = ("reject", "resample", "warn")


def add_service_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every call to a service takes."""
    parser.add_argument(
        "--endpoint",
        metavar="HOST:PORT",
        help="the service (default: MEDVL_ENDPOINT, else the running `medvl up` of this user)",
    )
    parser.add_argument("--json", dest="as_json", action="store_true", help="print one JSON document and nothing else")
    parser.add_argument("--deadline", metavar="S", type=_seconds, help="give up after this many seconds")


def add_call_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every call about a series takes."""
    parser.add_argument("series", metavar="SERIES", type=Path, help="a folder of DICOM files, one file, or .nii[.gz]")
    parser.add_argument(
        "--geometry-policy",
        choices=POLICIES,
        default="reject",
        help="what to do about gantry tilt, gaps and uneven spacing (default: reject)",
    )
    add_service_arguments(parser)


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the output of ``medvl report`` and ``medvl ask``."""
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help="write the masks of what the text names: a folder for one NIfTI file each, or mask.dcm (DICOM SEG)",
    )


def add_segment_arguments(parser: argparse.ArgumentParser) -> None:
    """Add prompts and output of ``medvl segment``."""
    parser.add_argument("--label", action="append", default=[], metavar="L", help="a class that the checkpoint knows")
    parser.add_argument("--text", action="append", default=[], metavar="T", help="the object in words")
    parser.add_argument(
        "--point", action="append", default=[], metavar="X,Y,Z[,neg]", type=_argument(parse_point), help="a click"
    )
    parser.add_argument(
        "--correct",
        action="append",
        default=[],
        metavar="X,Y,Z[,neg]",
        type=_argument(parse_point),
        help="a click on the mask that all prompts before it make; repeat it for one correction after the other",
    )
    parser.add_argument(
        "--box",
        action="append",
        default=[],
        metavar="X0,Y0,Z0,X1,Y1,Z1",
        type=_argument(parse_box),
        help="a box around the object, by two opposite corners",
    )
    parser.add_argument(
        "--mask",
        type=_argument(parse_mask),
        metavar="FILE[,N]",
        help="a mask to go on from: NIfTI, or a DICOM SEG of the series; of it only value or segment N when given",
    )
    parser.add_argument(
        "--local",
        action="store_true",
        help="track the last --correct only until nothing changes any more, if the service knows what was before it",
    )
    parser.add_argument("--largest", action="store_true", help="keep the largest part of each mask only")
    parser.add_argument("--fill", action="store_true", help="fill what a mask encloses on all sides")
    parser.add_argument("--voxel", action="store_true", help="clicks and boxes are voxel indices of the source")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        type=Path,
        metavar="FILE",
        help="mask.nii.gz or mask.nii; mask.dcm (DICOM SEG); or a folder for one NIfTI file per object",
    )


def _argument(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a parser whose refusal argparse shows with the option's name."""

    def wrapped(text: str) -> Any:  # noqa: ANN401 - the parsed value, handed on
        try:
            return parse(text)
        except InvalidRequest as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return wrapped


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"a deadline is a positive number of seconds, not {text!r}")
    return value
