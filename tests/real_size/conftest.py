"""What the networks cost at full size: every step is measured, and the table of them printed at the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from . import random_checkpoint
from .random_checkpoint import SIZES, Size

FOLDER = Path(__file__).parents[2] / "build" / "real-size"
STEPS_FILE = FOLDER / "steps.json"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here takes gigabytes and minutes."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.real_size)


class Steps:
    """Time and memory of steps, by size, subject and step; kept in a file, so that a run may do a part of them."""

    def add(self, size: Size, subject: str, step: str, elapsed_s: float, peak_bytes: int | None = None) -> None:
        """Keep one; ``peak_bytes`` is above the imports."""
        known = self.all()
        known[f"{size.name} {subject} {step}"] = {"elapsed_s": elapsed_s, "peak_bytes": peak_bytes}
        STEPS_FILE.write_text(json.dumps(known, indent=2) + "\n", "utf-8")

    @staticmethod
    def all() -> dict[str, dict[str, float]]:
        """Return what is known."""
        return json.loads(STEPS_FILE.read_text("utf-8")) if STEPS_FILE.is_file() else {}


@pytest.fixture(scope="session")
def steps() -> Steps:
    """Where measurements go."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    return Steps()


@pytest.fixture(scope="session", params=SIZES, ids=lambda size: size.name)
def size(request: pytest.FixtureRequest) -> Size:
    """Every size, one after another."""
    return request.param


@pytest.fixture(scope="session")
def checkpoint(size: Size) -> Path:
    """The folder of its checkpoint, written once."""
    language, folder = FOLDER / "language", FOLDER / f"checkpoint-{size.name}"
    for target, write in (
        (language, random_checkpoint.write_language),
        (folder, lambda f: random_checkpoint.write_networks(f, size, language)),
    ):
        if not target.is_dir():
            staging = target.with_name(f"{target.name}.new")
            staging.mkdir(parents=True)
            write(staging)
            staging.rename(target)
    return folder


@pytest.fixture(scope="session")
def repository(size: Size) -> Path:
    """Where its repository is, or will be."""
    return FOLDER / f"repository-{size.name}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table, where these tests were asked for."""
    if config.getoption("markexpr") == "real_size" and (known := Steps.all()):
        terminalreporter.write_sep("=", f"full size: time and memory above the imports ({STEPS_FILE.name})")
        for name, cost in known.items():
            memory = "" if cost["peak_bytes"] is None else f"{cost['peak_bytes'] / 1e6:8.0f} MB"
            terminalreporter.write_line(f"{name:48} {cost['elapsed_s']:8.1f} s {memory}")
