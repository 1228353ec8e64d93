"""The language model as vLLM serves it against the torch reference, answer by answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medvl.contracts.checkpoint import Checkpoint
from medvl.export.fingerprint import engine_version
from medvl.export.gates import LANGUAGE_GATES, QUANTISED_GATE, AnswerParity, LanguageGate, LanguageParity, compare
from medvl.serving.language_parity import LanguageCase, compare_language


def engine_parity(folder: Path, checkpoint: Checkpoint, quantised: Path | None = None) -> LanguageParity:
    """Put every kind of prompt to vLLM and to the reference.

    Parameters
    ----------
    folder
        A checkpoint folder that holds the contract.
    quantised
        Folder with its language model in fewer bits, to be read in its place; the gate is a wider one.

    Raises
    ------
    SetupError
        When vLLM is not installed.
    """
    engine = engine_version()
    gate = QUANTISED_GATE if quantised else LANGUAGE_GATES[checkpoint.language.dtype]
    cases = compare_language(folder, checkpoint, quantised)
    return LanguageParity(engine=engine, gate=gate, answers=tuple(_answer(case, gate) for case in cases))


def case_mismatch(case: LanguageCase, gate: LanguageGate) -> str | None:
    """Return what is wrong with a served answer, or None."""
    served, reference = case.served, case.reference
    if served.text != reference.text:
        judged = gate.same_words or not case.free
        return f"expected {reference.text!r} as transformers says, found {served.text!r}" if judged else None
    if served.states.shape != reference.states.shape:
        return f"expected {len(reference.states)} states of [SEG], found {len(served.states)}"
    for cosine in _cosines(case):
        if not cosine >= gate.cosine:
            return f"expected a state of [SEG] of cosine {gate.cosine:g} to transformers', found {cosine:.6f}"
    return None


def _answer(case: LanguageCase, gate: LanguageGate) -> AnswerParity:
    return AnswerParity(
        prompt=case.prompt,
        free=case.free,
        same_words=case.served.text == case.reference.text,
        cosine=min(_cosines(case), default=None),
        broken=case_mismatch(case, gate),
    )


def _cosines(case: LanguageCase) -> list[float]:
    """Return one cosine for every [SEG] of an answer, none where the answers differ."""
    served, reference = case.served, case.reference
    if served.text != reference.text or served.states.shape != reference.states.shape:
        return []
    pairs = zip(reference.states, served.states, strict=True)
    return [compare("state", expected, np.asarray(found)).cosine for expected, found in pairs]
