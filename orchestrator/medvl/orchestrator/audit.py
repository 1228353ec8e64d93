"""Structured logs: one JSON object a line, and only fields of an allow-list, so that no patient's data can slip in."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import structlog

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
        "checkpoint",
        "trained",
        "triton_version",
    }
)
"""Everything that a log line may hold. Texts of requests, digests and sentences of errors are not among it."""

_LOGGER = "medvl.orchestrator"


def _allow_listed(_: object, __: str, fields: MutableMapping[str, Any]) -> Mapping[str, Any]:
    return {name: value for name, value in fields.items() if name in FIELDS}


def configure(stream: TextIO = sys.stderr) -> None:
    """Send the orchestrator's log lines to a stream; whatever other libraries log below WARNING is dropped."""
    logging.basicConfig(stream=stream, level=logging.WARNING, format="%(message)s", force=True)
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
    frames = traceback.extract_tb(error.__traceback__)
    return {"error_type": type(error).__name__, "frames": [f"{f.name}:{f.lineno}" for f in frames]}
