"""The language model as vLLM serves it against the torch reference: one line for every answer that differs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medvl.contracts.checkpoint import LANGUAGE_FOLDER, Checkpoint
from medvl.export.gates import LANGUAGE_GATES, QUANTISED_GATE, LanguageGate, compare
from medvl.serving.language_parity import LanguageCase, compare_language


def engine_mismatches(folder: Path, checkpoint: Checkpoint, quantised: Path | None = None) -> Iterator[str]:
    """Yield a line for every prompt whose served answer is not the reference's.

    Parameters
    ----------
    folder
        A checkpoint folder that holds the contract.
    quantised
        Folder with its language model in fewer bits, to be read in its place; the gate is a wider one.
    """
    gate = QUANTISED_GATE if quantised else LANGUAGE_GATES[checkpoint.language.dtype]
    for case in compare_language(folder, checkpoint, quantised):
        if reason := case_mismatch(case, gate):
            kind = "free" if case.free else "forced"
            yield f"{LANGUAGE_FOLDER}: {kind} answer to {case.prompt!r:.60}: {reason}"


def case_mismatch(case: LanguageCase, gate: LanguageGate) -> str | None:
    """Return what is wrong with a served answer, or None."""
    served, reference = case.served, case.reference
    if served.text != reference.text:
        judged = gate.same_words or not case.free
        return f"expected {reference.text!r} as transformers says, found {served.text!r}" if judged else None
    if served.states.shape != reference.states.shape:
        return f"expected {len(reference.states)} states of [SEG], found {len(served.states)}"
    for expected, found in zip(reference.states, served.states, strict=True):
        cosine = compare("state", expected, np.asarray(found)).cosine
        if not cosine >= gate.cosine:
            return f"expected a state of [SEG] of cosine {gate.cosine:g} to transformers', found {cosine:.6f}"
    return None
