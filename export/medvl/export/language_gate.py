"""The gate of a language model in fewer bits, in a process of its own: vLLM sets up, and starts, more than its own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

from pydantic import ValidationError

from medvl.contracts.errors import BuildError, ParityError
from medvl.export.gates import LanguageParity
from medvl.export.quantised import QuantisedLanguage

_ERROR = re.compile(r"^(?:\(\w+ pid=\d+\) [^\]]*\] )?(?:\w+\.)*(\w*(?:Error|Exception)\b.*)$", re.MULTILINE)
"""The last line of a traceback, of a process of vLLM's or of its parent."""
LIMIT_S = 3600.0
"""Of one comparison. Seven billion weights take minutes on a CPU; of formats without a kernel there vLLM multiplies so
slowly that it seems to hang."""
_SEE_ABOVE = "Engine core initialization failed"
"""What the parent says of the error of its process, which stands above."""


def gated_language(
    checkpoint: Path, language: QuantisedLanguage, kept: Path, progress: Callable[[str], None]
) -> LanguageParity:
    """Return how a quantised language model compares: by an earlier build, or by :func:`gate_language`.

    Parameters
    ----------
    checkpoint
        A checkpoint folder that holds the contract.
    language
        What is served in the place of its language model.
    kept
        File of the figures, for a build that goes on behind this one.
    progress
        Receives one line.
    """
    parity, when = _kept(kept), "was compared before"
    if parity is None:
        started_s = perf_counter()
        parity = gate_language(checkpoint, language.folder)
        draft = kept.with_suffix(".draft")
        draft.write_text(parity.model_dump_json(), "utf-8")
        draft.replace(kept)
        when = f"compare {perf_counter() - started_s:.1f} s"
    same = sum(answer.same_words for answer in parity.answers)
    progress(
        f"{'llm':20} {language.quantisation.weight_bits} bits, {same} of {len(parity.answers)} answers in the same "
        f"words, cosine {parity.cosine:.7f}; {when}"
    )
    return parity


def _kept(path: Path) -> LanguageParity | None:
    """Return what an earlier build has left; None where that is nothing, or cannot be read."""
    try:
        return LanguageParity.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def gate_language(checkpoint: Path, quantised: Path) -> LanguageParity:
    """Compare what vLLM says from a quantised folder with what the torch reference says from the checkpoint.

    Parameters
    ----------
    checkpoint
        A checkpoint folder that holds the contract.
    quantised
        Its language model, checked by :func:`medvl.export.check_quantised.require_quantised`.

    Raises
    ------
    ParityError
        With one line for every answer that breaks the gate.
    BuildError
        When vLLM does not serve the folder, or not within :data:`LIMIT_S`; the sentence holds its words.
    """
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch, "parity.json")
        command = [sys.executable, "-m", "medvl.export.language_worker", str(checkpoint), str(quantised), str(answer)]
        said = _run(command)
        if not answer.is_file():
            raise BuildError(f"vLLM does not serve the language model of {quantised.name}: {said}")
        parity = LanguageParity.model_validate_json(answer.read_bytes())
    if lines := parity.lines:
        raise ParityError("\n".join([*lines, "The quantised language model breaks its gate; nothing was installed."]))
    return parity


def _run(command: Sequence[str]) -> str:
    """Run a command; return what it died of, if it did."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it has not answered within {LIMIT_S:g} s"
    if done.returncode < 0:
        return f"its process was killed by {signal.Signals(-done.returncode).name}"
    return last_error(done.stderr.decode(errors="replace"))


def last_error(log: str) -> str:
    """Return what a process died of by what it wrote to standard error."""
    errors = [line for line in _ERROR.findall(log) if _SEE_ABOVE not in line]
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return str((errors or lines or ["it died without a word"])[-1])
