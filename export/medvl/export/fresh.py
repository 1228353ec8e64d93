"""A function in a process of its own, which ends with it: what a step has taken of memory, the next one has again."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any, Generic, TypeVar

from medvl.contracts.errors import MedvlError, SetupError

T = TypeVar("T")

_PRELOAD = [
    "medvl.export.steps",
    "networkx",
    "onnx.reference.op_run",
    "onnxscript.optimizer",
    "onnxscript.rewriter",
    "torch._dynamo",
    "torch._inductor",
]
"""What the processes have imported already when they begin, torch and onnxruntime with it: once for all of them. Those
behind our own are what exporters import on their way; one that is not there is passed over."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step took."""

    elapsed_s: float
    peak_bytes: int
    """Largest resident memory, above what the process had when it began: libraries that were imported by then."""


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """What a function returned."""

    value: T
    cost: Cost


def fresh(function: Callable[..., T], *arguments: object) -> Done[T]:
    """Run a function of a module in a process of its own.

    Parameters
    ----------
    function, arguments
        They, and what is returned, can be pickled.

    Raises
    ------
    MedvlError
        What the function raised.
    SetupError
        When the process died, as where memory is short, or raised anything else; the sentence says which.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        outcome = receiver.recv()
    except EOFError:
        process.join()
        raise SetupError(
            f"The process of {function.__name__} ended with status {process.exitcode} and without a word; "
            "-9 is what it says where memory was short."
        ) from None
    except BaseException:  # an interrupt must not leave the process at work
        process.terminate()
        raise
    finally:
        receiver.close()
        process.join()
    if isinstance(outcome, BaseException):
        raise outcome
    return Done(*outcome)


def here(function: Callable[..., T], *arguments: object) -> Done[T]:
    """Run a function in this process, as tests do that change what it calls; what it takes of memory is not known."""
    started_s = perf_counter()
    value = function(*arguments)
    return Done(value, Cost(perf_counter() - started_s, 0))


def _answer(sender: Connection, function: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    before, started_s = _resident("VmRSS"), perf_counter()
    try:
        value = function(*arguments)
        sender.send((value, Cost(perf_counter() - started_s, _resident("VmHWM") - before)))
    except MedvlError as error:
        sender.send(error)
    except Exception as error:
        sender.send(SetupError(f"{function.__name__} failed: {type(error).__name__}: {error}"))
    sender.close()


def _end_with_parent() -> None:
    """End this process when the one that asked is gone, however it went: nobody would take the answer."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _resident(field: str) -> int:
    """Return a field of this process's memory in bytes: ``VmRSS`` now, ``VmHWM`` at most since it was forked."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
