#!/opt/medvl/bin/python
"""``tritonserver`` of the CPU image: the embedded server with the folders and the environment that it needs."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from medvl.contracts.errors import SetupError
from medvl.contracts.paths import data_folder
from medvl.runtime.triton_home import RUNTIME_FOLDER, install_triton


def main(arguments: list[str]) -> NoReturn:
    """Become the server, or end with a sentence that says why not."""
    try:
        home = install_triton(data_folder() / RUNTIME_FOLDER)
    except SetupError as error:
        sys.exit(str(error))
    command = (*home.arguments(), *arguments)
    # The process is replaced, so that signals of the container's engine reach the server.
    os.execve(home.server, command, home.environment())  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main(sys.argv[1:])
