"""Dockerfiles, read as far as these tests need."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker"
NAMES = ("orchestrator", "gateway", "triton-cpu", "triton-gpu")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its word in capitals, and the rest with continuations joined."""

    word: str
    rest: str

    @property
    def arguments(self) -> list[str]:
        """The exec form of ENTRYPOINT, CMD and of what follows HEALTHCHECK's options."""
        return json.loads(self.rest[self.rest.index("[") :])


@dataclass(frozen=True)
class Stage:
    """From one FROM to the next."""

    base: str
    name: str
    instructions: tuple[Instruction, ...]

    def all(self, word: str) -> list[Instruction]:
        """Its instructions of one kind."""
        return [i for i in self.instructions if i.word == word]

    def one(self, word: str) -> Instruction:
        """Its only instruction of a kind."""
        (instruction,) = self.all(word)
        return instruction


@dataclass(frozen=True)
class Dockerfile:
    """A Dockerfile's stages, and the ARGs that stand before the first."""

    arguments: dict[str, str | None]
    stages: tuple[Stage, ...]

    @property
    def final(self) -> Stage:
        """What becomes the image."""
        return self.stages[-1]


def read(name: str) -> Dockerfile:
    """Read ``docker/<name>.Dockerfile``."""
    text = (FOLDER / f"{name}.Dockerfile").read_text("utf-8")
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    instructions = [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]
    starts = [i for i, instruction in enumerate(instructions) if instruction.word == "FROM"]
    stages = []
    for begin, end in zip(starts, [*starts[1:], len(instructions)], strict=True):
        base, _, stage = instructions[begin].rest.partition(" AS ")
        stages.append(Stage(base, stage, tuple(instructions[begin + 1 : end])))
    arguments = [i.rest.partition("=") for i in instructions[: starts[0]] if i.word == "ARG"]
    return Dockerfile({name: value if equals else None for name, equals, value in arguments}, tuple(stages))


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command with no other variables than these and a bare PATH."""
    environment = {"PATH": os.defpath, "HOME": "/tmp"} | variables
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd="/")
