"""What every command about a series does first: find the service, read the files, send the voxels."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from medvl.client.aio import AsyncClient
from medvl.client.documents import answer_document
from medvl.client.endpoint import find_endpoint
from medvl.client.events import Event, Progress, TextDelta
from medvl.client.exits import Exit
from medvl.client.progress import ProgressView
from medvl.client.results import Answer
from medvl.client.retry import Deadline
from medvl.client.stream import EventStream, collected
from medvl.client.terminal import Output, mask_line, warn
from medvl.contracts.disclaimer import CUT_OFF
from medvl.imaging.series import LoadedSeries, read_series


@dataclass(frozen=True, slots=True)
class Session:
    """A series that was read and sent, and the means to ask about it."""

    loaded: LoadedSeries
    client: AsyncClient
    view: ProgressView
    output: Output
    deadline: Deadline | None

    @property
    def deadline_s(self) -> float | None:
        """Seconds that are left of ``--deadline``, or None without one."""
        return None if self.deadline is None else self.deadline.remaining_s()

    async def follow(self, stream: EventStream) -> Answer:
        """Show text and progress as they come; return the whole answer."""
        events: list[Event] = []
        async with stream:
            async for event in stream:
                events.append(event)
                if isinstance(event, TextDelta):
                    # Bars and text would write over each other on one terminal.
                    self.view.stop()
                    self.output.text(event.text)
                elif isinstance(event, Progress):
                    self.view.stage(event)
        self.view.stop()
        return collected(events)

    def tell(self, answer: Answer, paths: Mapping[int, Path]) -> None:
        """Say what masks measure and where they were written; or print the document of the whole answer.

        That a text was cut off goes to standard error.
        """
        if answer.done.cut_off:
            warn(CUT_OFF)
        for mask in answer.masks:
            self.output.line(mask_line(mask))
        for path in dict.fromkeys(paths.values()):
            self.output.line(f"written: {path}")
        self.output.line(answer.done.disclaimer)
        self.output.document(answer_document(self.loaded, answer, paths))


def read(arguments: argparse.Namespace) -> LoadedSeries:
    """Read the series; findings of its geometry go to standard error as warnings."""
    loaded = read_series(arguments.series, arguments.geometry_policy)
    for finding in loaded.findings:
        warn(str(finding))
    return loaded


def in_session(arguments: argparse.Namespace, loaded: LoadedSeries, use: Callable[[Session], Awaitable[Exit]]) -> Exit:
    """Send a series and run ``use`` on it, in an event loop of its own; returns what ``use`` does.

    Parameters
    ----------
    arguments
        As parsed; see :func:`medvl.client.commands.arguments.add_call_arguments`.
    loaded
        The series.
    use
        What to do with it.
    """
    endpoint = find_endpoint(arguments.endpoint)
    deadline = None if arguments.deadline is None else Deadline.after(arguments.deadline)

    async def run() -> Exit:
        async with AsyncClient(endpoint) as client:
            with ProgressView() as view:
                session = Session(loaded, client, view, Output(as_json=arguments.as_json), deadline)
                await client.put_series(loaded.volume, on_progress=view.upload, deadline_s=session.deadline_s)
                return await use(session)

    return asyncio.run(run())
