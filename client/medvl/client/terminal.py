"""What a command writes: text and results on standard output, warnings and progress on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from medvl.client.events import Mask


def printable(text: str) -> str:
    """Return text from elsewhere without the control characters by which it could steer a terminal."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


class Output:
    """Standard output of one command: either text as it comes, or one JSON document at the end."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def text(self, text: str) -> None:
        """Write text without a line break; nothing with ``--json``."""
        if not self._as_json:
            sys.stdout.write(printable(text))
            sys.stdout.flush()

    def line(self, text: str = "") -> None:
        """Write a line; nothing with ``--json``."""
        self.text(f"{text}\n")

    def document(self, document: Mapping[str, Any]) -> None:
        """Write the JSON document; nothing without ``--json``."""
        if self._as_json:
            sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def warn(sentence: str) -> None:
    """Write a warning on standard error."""
    sys.stderr.write(f"medvl: warning: {printable(sentence)}\n")


def mask_line(mask: Mask) -> str:
    """Return what a mask is in one line: its name, whether it was found, its size and score."""
    measured = mask.measurement
    if not mask.found or measured is None:
        return f"{mask.name}: not found (score {mask.score:.2f})"
    # An older server does not tell this one.
    through = f"{measured.diameter_3d_mm:.0f} mm in 3D, " if measured.diameter_3d_mm else ""
    return (
        f"{mask.name}: {measured.volume_mm3 / 1000:.1f} ml in {measured.voxels} voxels, "
        f"longest diameter {measured.diameter_mm:.0f} mm in a slice, {through}score {mask.score:.2f}"
    )
