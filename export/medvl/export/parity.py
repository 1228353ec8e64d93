"""The parity gate: a built part against the torch reference, at several sizes."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from medvl.contracts.engines import Precision
from medvl.contracts.errors import ParityError
from medvl.contracts.manifest import PARITY_FILE, Target
from medvl.export.builders import Runner
from medvl.export.gates import GATES, Gate, OutputParity, broken, compare
from medvl.export.parts import Part
from medvl.export.samples import Samples


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

    def write(self, repository: Path) -> None:
        """Write ``parity.json``."""
        (repository / PARITY_FILE).write_text(self.model_dump_json(indent=2) + "\n", "utf-8")


def gate_part(part: Part, run: Runner, samples: Samples, precision: Precision) -> PartParity:
    """Compare a built part with the reference at every size; keep the reference's outputs as samples.

    The gate is that of the precision.

    Raises
    ------
    ParityError
        Naming the part, the output, the sizes and the number that breaks the gate.
    """
    cases = tuple(_gate_case(part, run, samples, GATES[precision], sizes) for sizes in part.cases)
    return PartParity(cases=cases, precision=precision)


def _gate_case(part: Part, run: Runner, samples: Samples, gate: Gate, sizes: dict[str, int]) -> CaseParity:
    inputs = samples.draw(part.model, sizes)
    reference, found = part.reference(inputs), run(inputs)
    dynamic = {axis: sizes[axis] for axis in part.ranges}
    outputs = {}
    for name, expected in reference.items():
        outputs[name] = compare(name, expected, found[name])
        if reason := broken(outputs[name], gate):
            at = ", ".join(f"{axis} {length}" for axis, length in dynamic.items())
            raise ParityError(
                f"The part {part.model.name} disagrees with the torch reference in {name} at {at}: {reason}; "
                "nothing was installed."
            )
    samples.keep(reference)
    return CaseParity(sizes=dynamic, outputs=outputs)
