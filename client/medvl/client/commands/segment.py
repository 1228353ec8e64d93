"""``medvl segment``: prompts to masks in files on the source's own grid."""

from __future__ import annotations

import argparse
from typing import Any

from medvl.client.commands.session import Session, in_session, read
from medvl.client.coordinates import TypedBox, TypedPoint
from medvl.client.exits import Exit
from medvl.client.maskfiles import MaskFormat, MaskTarget, read_mask, write_masks
from medvl.client.prompts import Box, ObjectPrompt, Point
from medvl.contracts.errors import InvalidRequest
from medvl.imaging.cleanup import Cleanup
from medvl.imaging.series import LoadedSeries, source_to_lps


def run_segment(arguments: argparse.Namespace) -> int:
    """Carry out ``medvl segment``.

    Raises
    ------
    InvalidRequest
        When the prompts or the output do not fit together or to the source.
    OSError
        When the output cannot be written.
    """
    target = MaskTarget.of(arguments.output, objects=_count(arguments))
    loaded = read(arguments)
    target.check_source(loaded)
    target.check_writable()
    objects = _objects(arguments, loaded)

    async def segment(session: Session) -> Exit:
        cleanup = Cleanup(largest_component=arguments.largest, fill_holes=arguments.fill)
        stream = session.client.segment(
            loaded.volume, objects, local=arguments.local, cleanup=cleanup, deadline_s=session.deadline_s
        )
        answer = await session.follow(stream)
        # Only a DICOM SEG holds the codes of classes.
        labels = (await session.client.describe()).labels if target.format is MaskFormat.SEG else ()
        paths = write_masks(target, loaded, answer, labels)
        session.tell(answer, paths)
        return Exit.OK if paths else Exit.NOT_FOUND

    return in_session(arguments, loaded, segment)


def _count(arguments: argparse.Namespace) -> int:
    """Return how many objects are asked for."""
    named = len(arguments.label) + len(arguments.text)
    spatial = bool(arguments.point or arguments.box or arguments.mask)
    if arguments.correct and not (named or spatial):
        raise InvalidRequest("--correct needs something to correct: --label, --text, --point, --box or --mask.")
    if named > 1 and (spatial or arguments.correct):
        raise InvalidRequest("Points, boxes and a mask go with one --label or --text: give that one, or none.")
    if not named and not spatial:
        raise InvalidRequest("Say what to segment: --label, --text, --point, --box or --mask.")
    if arguments.voxel and not (arguments.point or arguments.box or arguments.correct):
        raise InvalidRequest("--voxel is about --point, --correct and --box: give one of them, or leave it out.")
    return named or 1


def _objects(arguments: argparse.Namespace, loaded: LoadedSeries) -> list[ObjectPrompt]:
    voxel: bool = arguments.voxel
    clicks = [(p, 0) for p in arguments.point] + [(p, i) for i, p in enumerate(arguments.correct, 1)]
    shown: dict[str, Any] = {
        "points": tuple(_point(p, loaded, correction, voxel=voxel) for p, correction in clicks),
        "boxes": tuple(_box(b, loaded, voxel=voxel) for b in arguments.box),
    }
    if arguments.mask:
        shown["mask"] = read_mask(arguments.mask.path, loaded, arguments.mask.segment)
    words = [{"label": label} for label in arguments.label] + [{"text": text} for text in arguments.text]
    return [ObjectPrompt(**described, **shown) for described in words or [{}]]


def _point(typed: TypedPoint, loaded: LoadedSeries, correction: int, *, voxel: bool) -> Point:
    return Point(source_to_lps(loaded, typed.xyz) if voxel else typed.xyz, typed.negative, correction)


def _box(typed: TypedBox, loaded: LoadedSeries, *, voxel: bool) -> Box:
    corners = (typed.corner, typed.opposite)
    first, second = (source_to_lps(loaded, c) if voxel else c for c in corners)
    return Box(first, second)
