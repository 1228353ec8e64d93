"""A network small enough to export in a second."""

from __future__ import annotations

import pytest
import torch

from medvl.contracts.models import Kind, ModelSpec
from medvl.contracts.tensors import DType, TensorSpec
from medvl.export import builders, networks, parts
from medvl.export.engine_options import EngineOptions
from medvl.export.fresh import here
from medvl.export.networks import build_networks
from medvl.export.parts import Part
from medvl.export.steps import Making

TOY = ModelSpec(
    "toy",
    Kind.NETWORK,
    "scores points on an image",
    (
        TensorSpec("f2", DType.FP32, ("C", "f_4"), "features"),
        TensorSpec("points", DType.FP32, ("P", 2), "points"),
    ),
    (
        TensorSpec("mask_logits", DType.FP32, ("C", "f_4"), "logits"),
        TensorSpec("score", DType.FP32, ("P",), "a score of every point"),
    ),
    max_batch_size=4,
)


class Toy(torch.nn.Module):
    """Arithmetic that mixes every axis."""

    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Linear(8, 8)
        self.score = torch.nn.Linear(2, 1)

    def forward(self, features, points):
        """Return logits and scores."""
        logits = self.mix(features) + (points.mean(dim=(1, 2))[:, None, None] - 16) / 100
        return logits, self.score(points)[..., 0] * features.mean(dim=(1, 2))[:, None]


@pytest.fixture(scope="session")
def toy_part() -> Part:
    """A part of the toy model with seeded weights."""
    torch.manual_seed(0)
    return Part(TOY, Toy().eval(), {"C": 3, "f_4": 8})


@pytest.fixture
def build_toy(monkeypatch, toy_part, tmp_path):
    """Builds the toy network with a builder, in this process; returns what was built and the lines that told of it."""

    def run(builder):
        monkeypatch.setattr(networks, "fresh", here)
        monkeypatch.setattr(parts, "load_parts", lambda _: [toy_part])
        monkeypatch.setattr(builders, "builder_for", lambda *_: builder)
        work, out, lines = tmp_path / "work", tmp_path / "out", []
        work.mkdir(exist_ok=True)
        out.mkdir()
        making = Making(tmp_path, "cpu", EngineOptions(), tmp_path / "cache")
        return build_networks(making, work, lambda _: out, lines.append), lines

    return run
