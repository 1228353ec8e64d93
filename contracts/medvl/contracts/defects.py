"""What may be said of an exception that is a defect: its type and where it was raised, never its text.

A text may hold what a caller sent, so a process that works on patients' data writes none: neither its own log lines nor
libraries' nor what Python writes of exceptions that nothing catches.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Callable
from types import TracebackType

from medvl.contracts.errors import MedvlError

_OURS = "medvl"


def frames_of(error: BaseException) -> list[str]:
    """Return where an exception passed through, outermost first, as ``function:line``."""
    return [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]


def cause_of(error: BaseException) -> str:
    """Return the reason of an error of the tree, else the type of an exception and where it was raised."""
    if isinstance(error, MedvlError):
        return error.reason
    frames = frames_of(error)
    return f"{type(error).__name__} in {frames[-1]}" if frames else type(error).__name__


def hear_uncaught(tell: Callable[[BaseException], None]) -> None:
    """Have what nothing catches told, in the main thread, in others and where objects are deleted.

    Parameters
    ----------
    tell
        Takes the exception in the place of what Python would write; it must not raise.
    """

    def in_main(_: type[BaseException], error: BaseException, __: TracebackType | None) -> None:
        tell(error)

    def in_thread(uncaught: threading.ExceptHookArgs) -> None:
        if not issubclass(uncaught.exc_type, SystemExit):
            tell(uncaught.exc_value or uncaught.exc_type())

    def in_deletion(uncaught: sys.UnraisableHookArgs) -> None:
        tell(uncaught.exc_value or uncaught.exc_type())

    sys.excepthook, threading.excepthook, sys.unraisablehook = in_main, in_thread, in_deletion


class WithoutWords(logging.Formatter):
    """Writes lines of ours with their message, those of libraries without it, and no text of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        ours = record.name.split(".")[0] == _OURS
        said = record.getMessage() if ours else f"{record.name} in {record.funcName}:{record.lineno}"
        error = record.exc_info[1] if record.exc_info else None
        told = f": {cause_of(error)}" if error is not None else ""
        return f"{self.formatTime(record)} {record.levelname} {said}{told}"


def log_without_words() -> None:
    """Send log lines from WARNING on to standard error as :class:`WithoutWords`, and what nothing catches with them."""
    handler = logging.StreamHandler()
    handler.setFormatter(WithoutWords())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    hear_uncaught(lambda error: logging.getLogger(_OURS).critical("an exception was not caught", exc_info=error))
