"""``medvl report`` and ``medvl ask``: text as it comes, then what its masks measure."""

from __future__ import annotations

import argparse

from medvl.client.commands.session import Session, in_session, read
from medvl.client.exits import Exit
from medvl.client.maskfiles import MaskTarget, write_masks
from medvl.client.stream import EventStream
from medvl.contracts.errors import InvalidRequest
from medvl.imaging.series import LoadedSeries


def run_report(arguments: argparse.Namespace) -> int:
    """Carry out ``medvl report``.

    Raises
    ------
    InvalidRequest
        When the output does not fit to masks of a text or to the source.
    """
    loaded, target = _read(arguments)

    async def report(session: Session) -> Exit:
        return await _follow(session, session.client.report(loaded.volume, deadline_s=session.deadline_s), target)

    return in_session(arguments, loaded, report)


def run_ask(arguments: argparse.Namespace) -> int:
    """Carry out ``medvl ask``.

    Raises
    ------
    InvalidRequest
        When the question is empty, or the output does not fit to masks of a text or to the source.
    """
    if not arguments.question.strip():
        raise InvalidRequest("The question is empty: say what to answer.")

    loaded, target = _read(arguments)

    async def ask(session: Session) -> Exit:
        stream = session.client.ask(loaded.volume, arguments.question, deadline_s=session.deadline_s)
        return await _follow(session, stream, target)

    return in_session(arguments, loaded, ask)


def _read(arguments: argparse.Namespace) -> tuple[LoadedSeries, MaskTarget | None]:
    target = None if arguments.output is None else MaskTarget.of(arguments.output, objects=None)
    loaded = read(arguments)
    if target is not None:
        target.check_source(loaded)
        target.check_writable()
    return loaded, target


async def _follow(session: Session, stream: EventStream, target: MaskTarget | None) -> Exit:
    answer = await session.follow(stream)
    session.output.line()
    paths = {} if target is None else write_masks(target, session.loaded, answer)
    session.tell(answer, paths)
    return Exit.OK
