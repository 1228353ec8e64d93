"""What ``tritonserver`` needs around it: backends, caches, repository agents and an environment.

``python -m medvl.runtime.triton_home`` fetches and assembles the server ahead of the first ``medvl up``.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medvl.contracts.errors import SetupError
from medvl.contracts.paths import HOME_VARIABLE, data_folder
from medvl.runtime.triton_wheel import move_into_place, unpacked

RUNTIME_FOLDER = "runtime"
"""Where servers are kept in a data folder."""

ONNXRUNTIME_BACKEND = '''"""The python-based backend ``onnxruntime``: see medvl.serving.onnxruntime_backend."""

from medvl.serving.onnxruntime_backend import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True, slots=True)
class TritonHome:
    """A Triton server that can be started.

    Attributes
    ----------
    server
        The program.
    libraries
        Shared libraries that came with it.
    assembled
        Folder that holds ``backends``, ``caches`` and ``repoagents``.
    python_library
        Folder of the libpython that the Python backend's stub is to load.
    """

    server: Path
    libraries: Path
    assembled: Path
    python_library: Path

    def arguments(self) -> tuple[str, ...]:
        """Return the command line up to here: the program and its folders."""
        return (
            str(self.server),
            f"--backend-directory={self.assembled / 'backends'}",
            f"--cache-directory={self.assembled / 'caches'}",
            f"--repoagent-directory={self.assembled / 'repoagents'}",
        )

    def environment(self) -> dict[str, str]:
        """Return the environment: the stub finds this interpreter by PATH and its libpython by LD_LIBRARY_PATH."""
        libraries = [str(self.libraries), str(self.python_library), os.environ.get("LD_LIBRARY_PATH", "")]
        programs = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        return {
            **os.environ,
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
            "PATH": os.pathsep.join(programs),
        }


def install_triton(folder: Path) -> TritonHome:
    """Return a Triton server for the running interpreter, fetched and assembled when it is not there yet.

    Parameters
    ----------
    folder
        Where servers are kept; what it holds already is used again.

    Raises
    ------
    SetupError
        When this machine or this interpreter cannot run it, or when it cannot be fetched or written.
    """
    python_library = find_python_library(sysconfig.get_config_vars())
    try:
        content = unpacked(folder)
        assembled = _assembled(content)
    except OSError as error:
        # An error of shutil.copytree holds those of all files, and none of its own.
        raise SetupError(
            f"The Triton server cannot be written to the data folder ({error.strerror or 'not all of it'}): free some "
            f"space or choose another folder with --data or {HOME_VARIABLE}."
        ) from None
    return TritonHome(
        server=content / "pytriton" / "tritonserver" / "bin" / "tritonserver",
        libraries=content / "nvidia_pytriton.libs",
        assembled=assembled,
        python_library=python_library,
    )


def _assembled(content: Path) -> Path:
    """Return the folder of backends, caches and repository agents for this Python, made when it is not there yet."""
    assembled = content / f"python-{_minor()}"
    if not assembled.is_dir():
        with tempfile.TemporaryDirectory(dir=content, prefix="assembling-") as scratch:
            assemble(content / "pytriton" / "tritonserver", Path(scratch, "home"))
            move_into_place(Path(scratch, "home"), assembled)
    _write_onnxruntime_backend(assembled / "backends" / "onnxruntime")
    return assembled


def assemble(tritonserver: Path, home: Path) -> None:
    """Copy the Python backend, the stub of this Python's minor version, and the caches into a new folder.

    Raises
    ------
    SetupError
        When the server has no stub for this Python.
    """
    stub = tritonserver / "python_backend_stubs" / _minor() / "triton_python_backend_stub"
    if not stub.is_file():
        stubs = ", ".join(sorted((p.name for p in stub.parents[1].iterdir()), key=lambda n: int(n.split(".")[1])))
        raise SetupError(f"The embedded Triton server runs Python {stubs}, not {_minor()}: use one of those.")
    shutil.copytree(tritonserver / "backends" / "python", home / "backends" / "python")
    shutil.copy2(stub, home / "backends" / "python")
    shutil.copytree(tritonserver / "caches", home / "caches")
    (home / "repoagents").mkdir()


def find_python_library(config: Mapping[str, str | int | None]) -> Path:
    """Return the folder of this interpreter's own libpython.

    Another patch release of the same minor will not do: the standard library and libpython would not fit together.

    Parameters
    ----------
    config
        Variables of :mod:`sysconfig`.

    Raises
    ------
    SetupError
        When the interpreter comes without a shared libpython.
    """
    name = f"libpython{_minor()}.so.1.0"
    library = Path(str(config.get("LIBDIR") or sys.base_prefix))
    for folder in (library, library / str(config.get("MULTIARCH") or ""), Path(sys.base_prefix, "lib")):
        if (folder / name).is_file():
            return folder
    raise SetupError(
        f"This Python has no {name}, which the Triton server loads: install the package libpython{_minor()}, or build "
        "Python with --enable-shared."
    )


def _write_onnxruntime_backend(folder: Path) -> None:
    """Write the backend, which belongs to this version of the project and not to the server's."""
    model = folder / "model.py"
    if not model.is_file() or model.read_text("utf-8") != ONNXRUNTIME_BACKEND:
        folder.mkdir(exist_ok=True)
        draft = folder / f"model.{os.getpid()}.draft"
        draft.write_text(ONNXRUNTIME_BACKEND, "utf-8")
        draft.replace(model)


def _minor() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def main() -> int:
    """Install the server in the user's data folder; return the exit status."""
    try:
        install_triton(data_folder() / RUNTIME_FOLDER)
    except SetupError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
