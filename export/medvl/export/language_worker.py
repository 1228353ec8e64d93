"""Compares vLLM with the reference: ``python -m medvl.export.language_worker CHECKPOINT QUANTISED ANSWER``.

Started by :mod:`medvl.export.language_gate`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from medvl.contracts.checkpoint import load_checkpoint
from medvl.export.bounded import end_with_parent
from medvl.serving.engine_settings import prepare_process


def main() -> None:
    """Write the figures as JSON; whatever goes wrong ends on standard error."""
    end_with_parent()
    checkpoint, quantised, answer = map(Path, sys.argv[1:])
    prepare_process()
    # vLLM and torch read locale and environment when they are imported.
    from medvl.export.check_engine import engine_parity  # noqa: PLC0415

    parity = engine_parity(checkpoint, load_checkpoint(checkpoint), quantised)
    answer.write_text(parity.model_dump_json(), "utf-8")


if __name__ == "__main__":  # vLLM's processes import this module again
    main()
