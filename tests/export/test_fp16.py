"""A part is in FP16 where that holds a gate of its own, and in FP32 where it does not."""

from __future__ import annotations

import numpy as np
import pytest

from medvl.contracts.errors import BuildError
from medvl.export.autocast import to_fp16
from medvl.export.gates import FP16_GATE, FP32_GATE
from medvl.export.onnx_builder import OnnxBuilder


class Fp16(OnnxBuilder):
    """Builds in FP16, behind which stands FP32."""

    precision = "fp16"
    fallback = OnnxBuilder()

    def build(self, part, samples, folder):
        """Convert what the FP32 builder exports."""
        path = super().build(part, samples, folder)
        return to_fp16(path, path, [samples.draw(part.model, part.cases[0])]).path


class Refusing(Fp16):
    """Cannot build anything."""

    def build(self, part, samples, folder):
        """Refuse, with half a file left."""
        (folder / "model.onnx").write_bytes(b"half")
        raise BuildError("The engine of toy cannot be built: operator Det (node d)")


class Overflowing(Fp16):
    """Builds a network that leaves the range of FP16."""

    def build(self, part, samples, folder):
        """Export FP32."""
        return OnnxBuilder.build(self, part, samples, folder)

    def load(self, part, path):
        """Return a runner with one infinite value."""
        run = super().load(part, path)
        return lambda inputs: {name: np.where(a == a.max(), np.inf, a) for name, a in run(inputs).items()}


def test_fp16_holds_a_gate_of_its_own(build_toy):
    """AutoCast's graph is not FP32's, takes the contract's types at every size, and is said to be FP16."""
    built, (line,) = build_toy(Fp16())
    report = built.report
    parity = report.parts["toy"]
    assert (parity.precision, parity.refused) == ("fp16", None)
    assert 1e-5 < parity.max_abs < 0.1
    assert report.gates == {"fp16": FP16_GATE}
    assert "fp16" in line


@pytest.mark.parametrize(
    ("builder", "reason"),
    [
        (Refusing(), "fp16: The engine of toy cannot be built: operator Det (node d)"),
        (Overflowing(), "fp16: The part toy disagrees with the torch reference in mask_logits at P 1, batch 1: cosine"),
    ],
)
def test_what_fp16_cannot_hold_is_built_in_fp32(build_toy, builder, reason):
    """The report and the line say why; the file is the FP32 one and held the FP32 gate."""
    built, (line,) = build_toy(builder)
    report = built.report
    parity = report.parts["toy"]
    assert parity.precision == "fp32"
    assert parity.refused.startswith(reason)
    assert report.gates == {"fp32": FP32_GATE}
    assert reason in line
