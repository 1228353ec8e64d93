"""``medvl report`` and ``medvl ask``: text as it comes, then what its masks measure."""

from __future__ import annotations

import argparse

from medvl.client.commands.session import Session, in_session, read
from medvl.client.documents import answer_document
from medvl.client.exits import Exit
from medvl.client.stream import EventStream
from medvl.client.terminal import mask_line
from medvl.contracts.errors import InvalidRequest


def run_report(arguments: argparse.Namespace) -> int:
    """Carry out ``medvl report``."""

    async def report(session: Session) -> Exit:
        return await _show(session, session.client.report(session.loaded.volume, deadline_s=session.deadline_s))

    return in_session(arguments, read(arguments), report)


def run_ask(arguments: argparse.Namespace) -> int:
    """Carry out ``medvl ask``.

    Raises
    ------
    InvalidRequest
        When the question is empty.
    """
    if not arguments.question.strip():
        raise InvalidRequest("The question is empty: say what to answer.")

    async def ask(session: Session) -> Exit:
        stream = session.client.ask(session.loaded.volume, arguments.question, deadline_s=session.deadline_s)
        return await _show(session, stream)

    return in_session(arguments, read(arguments), ask)


async def _show(session: Session, stream: EventStream) -> Exit:
    answer = await session.follow(stream)
    session.output.line()
    for mask in answer.masks:
        session.output.line(mask_line(mask))
    session.output.line(answer.done.disclaimer)
    session.output.document(answer_document(session.loaded, answer))
    return Exit.OK
