"""A part is installed only when it agrees with the torch reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from medvl.contracts.errors import ParityError
from medvl.contracts.models import ABSENT
from medvl.export.onnx_builder import OPSET, WEIGHTS_FILE, OnnxBuilder
from medvl.export.parity import references
from medvl.export.samples import Samples


class Tampering(OnnxBuilder):
    """Changes one weight after the export, by a thousandth of it."""

    def build(self, part, samples, folder):
        """Build, then tamper."""
        path = super().build(part, samples, folder)
        graph = onnx.load(path)
        weight = max(graph.graph.initializer, key=lambda t: len(t.raw_data))
        values = numpy_helper.to_array(weight).copy()
        values.flat[0] += 0.001
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        onnx.save(graph, path)
        return path


def test_a_part_that_agrees_passes(build_toy):
    """The report holds every output at every size, and one line tells the numbers."""
    built, (line,) = build_toy(OnnxBuilder())
    report = built.report
    cases = report.parts["toy"].cases
    assert [c.sizes for c in cases] == [{"P": 1, "batch": 1}, {"P": 4, "batch": 2}, {"P": 5, "batch": 3}]
    assert all(c.outputs.keys() == {"mask_logits", "score"} for c in cases)
    assert all(c.outputs["mask_logits"].dice == 1.0 for c in cases)
    assert all(0 < c.outputs["mask_logits"].foreground < 3 * 24 for c in cases)
    assert line.startswith("toy")


def test_one_changed_weight_is_refused(build_toy):
    """The sentence names the part, the output, the sizes and the number."""
    with pytest.raises(ParityError, match=r"toy disagrees .* in mask_logits at P 1, batch 1: largest difference 0\.00"):
        build_toy(Tampering())


def test_weights_stand_beside_the_graph(build_toy, tmp_path):
    """What is served is the two files, and nothing else of what a build keeps."""
    build_toy(OnnxBuilder())
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"model.onnx", WEIGHTS_FILE}


def test_the_graph_speaks_the_contract(toy_part, tmp_path):
    """Names, dtypes and dynamic axes are the contract's; fixed lengths are constants."""
    path = OnnxBuilder().build(toy_part, Samples(0), tmp_path)
    model = onnx.load(path)
    described = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*model.graph.input, *model.graph.output)
    }
    assert described == {
        "f2": ["batch", 3, 8],
        "points": ["batch", "P", 2],
        "mask_logits": ["batch", 3, 8],
        "score": ["batch", "P"],
    }
    assert [o.version for o in model.opset_import if o.domain == ""] == [OPSET]


def test_an_export_is_reproducible(toy_part, tmp_path):
    """The same part twice gives the same bytes, and no path of this machine is among them."""
    first = OnnxBuilder().build(toy_part, Samples(0), tmp_path).read_bytes()
    second = OnnxBuilder().build(toy_part, Samples(0), tmp_path).read_bytes()
    assert first == second
    assert b".py" not in first


def test_another_name_is_refused(toy_part, tmp_path):
    """A graph whose tensors are not the contract's is not loaded."""
    path = OnnxBuilder().build(toy_part, Samples(0), tmp_path)
    model = onnx.load(path)
    model.graph.input[0].name = "features"
    onnx.save(model, path)
    with pytest.raises(ParityError, match=r"should have the tensors f2 FP32 \[batch, 3, 8\]; .* but it has features"):
        OnnxBuilder().load(toy_part, path)


def test_parts_are_fed_what_parts_made(toy_part):
    """An input that another part puts out is drawn from what it put out, whatever the sizes."""
    samples = Samples(0)
    made = np.arange(5 * 24, dtype=np.float32).reshape(5, 3, 8)
    samples.keep({"f2": made})
    for sizes in toy_part.cases:
        drawn = samples.draw(toy_part.model, sizes)["f2"]
        assert drawn.shape == (sizes["batch"], 3, 8)
        assert all(any((row == m).all() for m in made) for row in drawn)


class Blind(torch.nn.Module):
    """Sees no object in the first calls."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def forward(self, features, points):
        """Return logits, absent at first, and scores."""
        self.calls -= 1
        return torch.full_like(features, ABSENT if self.calls >= 0 else 1.0), points[..., 0]


def test_empty_masks_are_drawn_again_and_then_refused(toy_part):
    """Constants would be compared with constants; only random weights may see nothing."""
    samples = Samples(0)
    first, second = (references(replace(toy_part, module=Blind(calls)), samples) for calls in (0, 3))
    assert second[0].outputs["mask_logits"].min() == 1.0
    assert (first[0].inputs["points"] != second[0].inputs["points"]).any()
    assert samples.made["mask_logits"].min() == 1.0
    never = replace(toy_part, module=Blind(1000))
    with pytest.raises(ParityError, match=r"reference of toy sees no object in 8 draws .* nothing was installed"):
        references(never, samples)
    assert len(references(replace(never, trained=False), samples)) == 3
