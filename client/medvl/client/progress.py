"""Progress on standard error while a series is sent and masks grow; silent where no person watches."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Display

from medvl.client.events import Progress, Stage
from medvl.client.upload import UploadProgress

_WORDS = {
    Stage.ENCODE: "encoding slices",
    Stage.SEGMENT: "segmenting slices",
    Stage.OTHER: "working",
}


class ProgressView:
    """Bars that vanish when they are done; a context manager."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
        self._display = Display(
            *columns,
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bars away, for instance before text is written."""
        self._display.stop()

    def upload(self, progress: UploadProgress) -> None:
        """Show how much of a series has left."""
        self._show("sending", progress.sent_bytes, progress.total_bytes)

    def stage(self, progress: Progress) -> None:
        """Show how far the service is."""
        self._show(_WORDS[progress.stage], progress.done, progress.total)

    def _show(self, words: str, done: int, total: int) -> None:
        if words not in self._tasks:
            self._tasks[words] = self._display.add_task(words)
        self._display.update(self._tasks[words], completed=done, total=total)
