"""The parity gate: a built part against the torch reference, at several sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from medvl.contracts.engines import Precision
from medvl.contracts.errors import ParityError
from medvl.contracts.manifest import PARITY_FILE, Target
from medvl.export.builders import Runner
from medvl.export.gates import GATES, MASK_LOGITS, Gate, LanguageParity, OutputParity, broken, compare, foreground
from medvl.export.parts import Part
from medvl.export.samples import Arrays, Samples

_DRAWS = 8
"""How often samples are drawn until the reference sees an object in them."""


class CaseParity(BaseModel):
    """How a part compares at one set of sizes."""

    model_config = ConfigDict(frozen=True)

    sizes: dict[str, int]
    """Lengths of the dynamic axes."""
    outputs: dict[str, OutputParity]


class PartParity(BaseModel):
    """How a part compares at all sizes."""

    model_config = ConfigDict(frozen=True)

    cases: tuple[CaseParity, ...]
    precision: Precision = "fp32"
    """What the file computes in."""
    refused: str | None = None
    """Why it is not in the precision that was asked for."""

    @property
    def max_abs(self) -> float:
        """Largest difference of any output at any size."""
        return max(o.max_abs for c in self.cases for o in c.outputs.values())

    @property
    def cosine(self) -> float:
        """Least cosine of any output at any size."""
        return min(o.cosine for c in self.cases for o in c.outputs.values())


class ParityReport(BaseModel):
    """``parity.json``: every part passed, and by how much."""

    model_config = ConfigDict(frozen=True)

    target: Target
    gates: dict[Precision, Gate]
    """What parts of a precision had to hold."""
    parts: dict[str, PartParity]
    language: LanguageParity | None = None
    """Of a language model in fewer bits; None where it is the checkpoint's own."""

    def write(self, repository: Path) -> None:
        """Write ``parity.json``."""
        (repository / PARITY_FILE).write_text(self.model_dump_json(indent=2) + "\n", "utf-8")


@dataclass(frozen=True, slots=True)
class ReferenceCase:
    """What the torch reference says at one set of sizes."""

    sizes: dict[str, int]
    inputs: Arrays
    outputs: Arrays


def references(part: Part, samples: Samples) -> list[ReferenceCase]:
    """Run the reference at every size that a part is compared at; keep its outputs as samples.

    Where its masks are all empty, samples are drawn again: constants would be compared.

    Raises
    ------
    ParityError
        When the masks of a trained checkpoint stay empty.
    """
    for draw in range(_DRAWS):
        # The copy shares what was made.
        cases = _references(part, replace(samples, seed=samples.seed + draw))
        masks = [case.outputs[MASK_LOGITS] for case in cases if MASK_LOGITS in case.outputs]
        if not masks or any(foreground(mask) for mask in masks) or not part.trained:
            return cases
    raise ParityError(
        f"The torch reference of {part.model.name} sees no object in {_DRAWS} draws of samples, and empty masks prove "
        "nothing: see whether the checkpoint's sam2.safetensors is the one that was trained (random weights say "
        '"trained": false in checkpoint.json); nothing was installed.'
    )


def _references(part: Part, samples: Samples) -> list[ReferenceCase]:
    cases = []
    for sizes in part.cases:
        inputs = samples.draw(part.model, sizes)
        outputs = part.reference(inputs)
        samples.keep(outputs)
        cases.append(ReferenceCase({axis: sizes[axis] for axis in part.ranges}, inputs, outputs))
    return cases


def gate_part(part: Part, run: Runner, cases: Sequence[ReferenceCase], precision: Precision) -> PartParity:
    """Compare a built part with the reference at every size; the gate is that of the precision.

    Raises
    ------
    ParityError
        Naming the part, the output, the sizes and the number that breaks the gate.
    """
    gate = GATES[precision]
    return PartParity(cases=tuple(_gate_case(part, run, case, gate) for case in cases), precision=precision)


def _gate_case(part: Part, run: Runner, case: ReferenceCase, gate: Gate) -> CaseParity:
    found, outputs = run(case.inputs), {}
    for name, expected in case.outputs.items():
        outputs[name] = compare(name, expected, found[name])
        if reason := broken(outputs[name], gate):
            at = ", ".join(f"{axis} {length}" for axis, length in case.sizes.items())
            raise ParityError(
                f"The part {part.model.name} disagrees with the torch reference in {name} at {at}: {reason}; "
                "nothing was installed."
            )
    return CaseParity(sizes=case.sizes, outputs=outputs)
