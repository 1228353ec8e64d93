"""The parity gates: how far an exported part may be from the torch reference, and why these numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic import BaseModel, ConfigDict

from medvl.contracts.checkpoint import LANGUAGE_FOLDER
from medvl.contracts.engines import Precision
from medvl.contracts.models import ABSENT
from medvl.network.region_choice import NO_REGION_LOGIT, OUTLINE


class Gate(BaseModel):
    """What every output of a part must hold against the torch reference."""

    model_config = ConfigDict(frozen=True)

    max_abs: float | None
    """Largest absolute difference of any value; None where only direction counts."""
    cosine: float
    """Least cosine similarity of the flattened tensors; of mask logits, over the objects that are there; of regions, of
    their outlines and of what neither rules out."""
    dice: float
    """Least Dice of the masks (logits > 0), where the output is mask logits."""


FP32_GATE = Gate(max_abs=1e-4, cosine=0.99999, dice=0.999)
"""The gate of FP32 graphs.

- ``max_abs``: onnxruntime was measured at most 3.2e-5 from eager torch over 64 tracked slices. Kernels that sum in
  another order on another machine stay within a factor of three; a wrong axis, epsilon or interpolation rule is off by
  1e-2 and more.
- ``cosine``: the same error relative to the tensor, for outputs of small magnitude, where 1e-4 would be large.
- ``dice``: what the user sees. Only pixels whose logit is within ``max_abs`` of zero may flip, fewer than one in a
  thousand of a mask.
"""

FP16_GATE = Gate(max_abs=None, cosine=0.999, dice=0.99)
"""The gate of graphs in FP16, 11 bits of mantissa; a part that breaks it is built in FP32 instead.

- ``max_abs``: none. Rounding grows with the values: features of 100 are off by 0.05 without harm.
- ``cosine``: AutoCast's graphs of the phantom's networks were measured at 0.9999 and better. An overflow, or a sum that
  lost its small terms, turns a tensor by far more than the 2.6 degrees of 0.999.
- ``dice``: what the user sees: fewer than one pixel in fifty of a mask's and its counterpart's flips. Two readers of
  one CT differ by more.
"""

BF16_GATE = Gate(max_abs=None, cosine=0.999, dice=0.98)
"""The gate of graphs that a runtime computes in bfloat16, 8 bits of mantissa, such as OpenVINO on a CPU that has it.

- ``max_abs``: none, as in FP16.
- ``cosine``: as in FP16, because a cause of another kind turns a tensor as far; rounding alone was measured at 0.9997
  and better.
- ``dice``: twice FP16's allowance: three bits less, in the logits of pixels on the border of a mask only.
"""

GATES: Mapping[Precision, Gate] = {"fp32": FP32_GATE, "fp16": FP16_GATE}


class LanguageGate(BaseModel):
    """What vLLM's answers must hold against transformers'."""

    model_config = ConfigDict(frozen=True)

    same_words: bool
    """Whether greedy answers have to be equal."""
    cosine: float
    """Least cosine similarity of [SEG]'s states."""


LANGUAGE_GATES = {
    "float32": LanguageGate(same_words=True, cosine=0.99999),
    "bfloat16": LanguageGate(same_words=False, cosine=0.999),
    "float16": LanguageGate(same_words=False, cosine=0.999),
}
"""The gates of the language model, by the type in which it is served.

In FP32 the two engines differ by sums in another order, as the networks do (:data:`FP32_GATE`). In half precision they
round every layer elsewhere: of two words that are nearly as likely either may win, and all that follows differs, while
a state behind given words moves little. A wrong position or a lost vision token turns it by far more.
"""


class AnswerParity(BaseModel):
    """How one answer of vLLM compares with the reference's."""

    model_config = ConfigDict(frozen=True)

    prompt: str
    free: bool
    """Whether the model chose the words, greedily, or read the answer that segmentation forces."""
    same_words: bool
    cosine: float | None
    """Least of its [SEG]'s states; None without a state to compare."""
    broken: str | None
    """What breaks the gate."""


class LanguageParity(BaseModel):
    """How the language model as vLLM serves it compares."""

    model_config = ConfigDict(frozen=True)

    engine: str
    """``vllm 0.32.0``."""
    gate: LanguageGate
    answers: tuple[AnswerParity, ...]

    @property
    def cosine(self) -> float:
        """Least cosine of any state."""
        return min((a.cosine for a in self.answers if a.cosine is not None), default=1.0)

    @property
    def lines(self) -> list[str]:
        """One for every answer that breaks the gate."""
        return [
            f"{LANGUAGE_FOLDER}: {'free' if a.free else 'forced'} answer to {a.prompt!r:.60}: {a.broken}"
            for a in self.answers
            if a.broken
        ]


QUANTISED_GATE = LanguageGate(same_words=False, cosine=0.995)
"""The gate of a language model in fewer bits than the checkpoint has.

INT8 weights and activations of the phantom's language model were measured at 0.9993 and better; eight bits for each row
are off by 0.4 % of its largest value, and layers add it up. 0.995 is an angle of 5.7 degrees. Damage to that model was
measured at 0.859 (all scales one row off), 0.956 and 0.985 (one layer without its attention, without its MLP); one row
off in a single projection of one layer is 0.9992 and passes.
"""

MASK_LOGITS = "mask_logits"
"""The output that Dice is computed on."""
REGIONS = "regions"
"""The output whose rows come in the order of their scores: of two that are nearly equal either may be the first, or be
the last that is told. Those of the more likely half are sought among all rows of the other side."""


class OutputParity(BaseModel):
    """How one output compares with the torch reference."""

    model_config = ConfigDict(frozen=True)

    max_abs: float
    cosine: float
    dice: float | None = None
    foreground: int | None = None
    """Positive pixels of the reference, where Dice counts: an empty mask proves nothing."""


def compare(name: str, reference: np.ndarray, found: np.ndarray) -> OutputParity:
    """Compare one output of an exported part with the reference's.

    Parameters
    ----------
    name
        The output.
    reference, found
        Arrays of equal shape, floating point. A value that is not finite in either gives a difference of NaN.
    """
    a, b = reference.astype(np.float64), found.astype(np.float64)
    if name == REGIONS:
        a, b = _same_regions(a, b)
        (places, logits), (found_places, found_logits) = (np.split(rows, [OUTLINE], axis=1) for rows in (a, b))
        # What both rule out would count more than all else; outlines, all below 1, not at all beside logits.
        told = (logits != NO_REGION_LOGIT) | (found_logits != NO_REGION_LOGIT)
        cosine = min(_cosine(places, found_places), _cosine(logits[told], found_logits[told]))
        return OutputParity(max_abs=float(np.abs(a - b).max()), cosine=cosine)
    a, b = a.ravel(), b.ravel()
    max_abs = float(np.abs(a - b).max())
    if name != MASK_LOGITS:
        return OutputParity(max_abs=max_abs, cosine=_cosine(a, b))
    # Objects that both call absent agree; their logits are so large that those of the others would not count.
    there = ((a != ABSENT) | (b != ABSENT)).reshape(len(reference), -1).any(axis=1).repeat(a.size // len(reference))
    return OutputParity(
        max_abs=max_abs, cosine=_cosine(a[there], b[there]), dice=_dice(a > 0, b > 0), foreground=foreground(a)
    )


def _same_regions(reference: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of regions [B, G, n], those of each side's more likely half, with the nearest of the other side."""
    likely, pairs = np.arange((reference.shape[1] + 1) // 2), []
    for a, b in zip(reference, found, strict=True):
        apart = np.abs(a[:, None] - b).max(-1)
        pairs.append((a[likely], b[apart[likely].argmin(1)]))
        pairs.append((a[apart[:, likely].argmin(0)], b[likely]))
    of_reference, of_found = zip(*pairs, strict=True)
    return np.concatenate(of_reference), np.concatenate(of_found)


def foreground(mask_logits: np.ndarray) -> int:
    """Return how many pixels of masks are positive."""
    return int((mask_logits > 0).sum())


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if norms == 0.0:
        return float(not a.any() and not b.any())
    return float(np.vdot(a, b)) / norms


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    total = int(a.sum() + b.sum())
    return 2.0 * int((a & b).sum()) / total if total else 1.0


def broken(parity: OutputParity, gate: Gate) -> str | None:
    """Return which number breaks the gate and by what, or None; a NaN breaks it."""
    if gate.max_abs is not None and not parity.max_abs <= gate.max_abs:
        return f"largest difference {parity.max_abs:.3g}, allowed {gate.max_abs:g}"
    if not parity.cosine >= gate.cosine:
        return f"cosine {parity.cosine:.7f}, required {gate.cosine:g}"
    if parity.dice is not None and not parity.dice >= gate.dice:
        return f"Dice {parity.dice:.5f}, required {gate.dice:g}"
    return None
