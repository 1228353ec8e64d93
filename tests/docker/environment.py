"""Environments of images, made as their Dockerfiles make them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import venv
from pathlib import Path

from .dockerfile import FOLDER, ROOT, Instruction, read, run

LOCKS = ROOT / "requirements"


def make_tools(folder: Path) -> Path:
    """Make what the build has as ``/tools/venv``."""
    venv.create(folder, with_pip=False)
    _install(folder, "--only-binary=:all:", "--require-hashes", "-r", LOCKS / "lock-image-tools.txt")
    return folder


def make_wheel(tools: Path, folder: Path) -> Path:
    """Build the wheel of this tree in a folder."""
    _pip(tools, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def make_environment(image: str, wheel: Path, folder: Path) -> Path:
    """Make what an image has as ``/opt/medvl``."""
    venv.create(folder, with_pip=False)
    _install(folder, "--only-binary=:all:", "--require-hashes", "-r", LOCKS / f"lock-{image}.txt")
    _install(folder, wheel)
    return folder


def command(environment: Path, instruction: Instruction) -> list[str]:
    """A command of a Dockerfile, its files where they are here."""
    program, *arguments = instruction.arguments
    return [str(environment / "bin" / program), *(a.replace("/opt/medvl", str(FOLDER)) for a in arguments)]


def check_bill_of_materials(image: str, tools: Path, environment: Path, file: Path) -> None:
    """Run the Dockerfile's own command: what it writes names every package of the lock, with versions."""
    (stage,) = [s for s in read(image).stages if s.name == "sbom"]
    words = stage.one("RUN").rest.split()
    for place, here in {"/tools/venv": tools, "/opt/medvl": environment, "/sbom.cdx.json": file}.items():
        words = [word.replace(place, str(here)) for word in words]
    done = run(*words)
    assert done.returncode == 0, done.stderr
    components = json.loads(file.read_text("utf-8"))["components"]
    found = {re.sub(r"[-_.]+", "-", c["name"]).lower(): c["version"] for c in components}
    pins = re.findall(r"^(\S+)==(\S+) ", (LOCKS / f"lock-{image}.txt").read_text("utf-8"), re.MULTILINE)
    assert dict(pins).items() <= found.items()
    assert found.keys() - dict(pins).keys() == {"medvl-sam2"}


def _install(folder: Path, *arguments: str | Path) -> None:
    _pip(folder, "install", "--no-deps", *arguments)


def _pip(folder: Path, *arguments: str | Path) -> None:
    """Run pip on an environment that has none."""
    subprocess.run([sys.executable, "-m", "pip", "--python", folder / "bin" / "python", *arguments], check=True)
