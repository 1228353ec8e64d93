"""Where this user's data lies."""

from __future__ import annotations

import os
from pathlib import Path

HOME_VARIABLE = "MEDVL_HOME"


def data_folder() -> Path:
    """Return the folder for what is made once and kept: checkpoints, repositories, the server's runtime.

    ``MEDVL_HOME`` names it; otherwise it is ``medvl`` in the data home of the XDG base directory specification.
    """
    if home := os.environ.get(HOME_VARIABLE):
        return Path(home).expanduser().resolve()
    data_home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data_home) / "medvl"
