"""Structured logs: one JSON object a line, and only fields of an allow-list, so that no patient's data can slip in.

What other libraries log, and warnings, come through the same allow-list: who said it, how grave it is, where in the
code, and the type of an exception. Their words may hold what they were given, so they are dropped.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, TextIO

import structlog

from medvl.contracts.defects import frames_of, hear_uncaught

FIELDS = frozenset(
    {
        "event",
        "level",
        "timestamp",
        "request_id",
        "method",
        "code",
        "reason",
        "stages_ms",
        "error_type",
        "frames",
        "address",
        "port",
        "serving",
        "model",
        "logger",
        "checkpoint",
        "trained",
        "triton_version",
    }
)
"""Everything that a log line may hold. Texts of requests, digests and sentences of errors are not among it."""

_LOGGER = "medvl.orchestrator"


def _allow_listed(_: object, __: str, fields: MutableMapping[str, Any]) -> Mapping[str, Any]:
    return {name: value for name, value in fields.items() if name in FIELDS}


class _WithoutWords(logging.Handler):
    """Logs what a library has logged, without its text."""

    def emit(self, record: logging.LogRecord) -> None:
        level = min(record.levelno // 10 * 10, logging.CRITICAL)
        fields: dict[str, Any] = {"frames": [f"{record.funcName}:{record.lineno}"]}
        if record.exc_info and record.exc_info[1] is not None:
            fields |= defect(record.exc_info[1])
        log().log(level, "library", logger=record.name, **fields)


def _warn(  # noqa: PLR0917  (as it is called)
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Log a warning in the place of :func:`warnings.showwarning`, without its text."""
    frames = [f"{Path(filename).name}:{lineno}"]
    log().warning("library", logger="warnings", error_type=category.__name__, frames=frames)


def configure(stream: TextIO = sys.stderr) -> None:
    """Send log lines to a stream: ours, those of libraries from WARNING on, and what nothing catches."""
    logging.basicConfig(level=logging.WARNING, handlers=[_WithoutWords(logging.WARNING)], force=True)
    warnings.showwarning = _warn
    hear_uncaught(lambda error: log().critical("uncaught", **defect(error)))
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _allow_listed,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )


def log() -> structlog.typing.FilteringBoundLogger:
    """Return the orchestrator's logger."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(_LOGGER)
    return logger


def defect(error: BaseException) -> dict[str, Any]:
    """Return the log fields of an unexpected exception: its type and where it came from, never its text."""
    return {"error_type": type(error).__name__, "frames": frames_of(error)}
