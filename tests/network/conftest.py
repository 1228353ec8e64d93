"""The phantom preset's architecture with seeded weights, small slices, and SAM2 beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medvl.contracts.checkpoint import Checkpoint, SegmentationSpec, load_checkpoint
from medvl.embedded.preset import enliven, write_untrained
from medvl.network.modules import Modules

SIDE, DEPTH = 128, 22


@pytest.fixture(scope="session")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint folder of the phantom preset."""
    folder = tmp_path_factory.mktemp("preset")
    write_untrained(folder, seed=5)
    return folder


@pytest.fixture(scope="session")
def preset_spec(preset: Path) -> SegmentationSpec:
    """The rules of segmentation of the phantom preset."""
    return load_checkpoint(preset).segmentation


@pytest.fixture(scope="session")
def small(preset: Path) -> Checkpoint:
    """The same checkpoint with slices of 128 pixels, a narrow vision encoder, and tracking that never gives up."""
    checkpoint = load_checkpoint(preset)
    rules = {"side": SIDE, "stop_after_absent": DEPTH, "heed_clicks_px": None}
    spec = checkpoint.segmentation.model_copy(update=rules)
    vision = checkpoint.vision.model_copy(update={"dims": (32, 64, 160, 192, 192)})
    return checkpoint.model_copy(update={"segmentation": spec, "vision": vision})


@pytest.fixture
def modules(small: Checkpoint) -> Modules:
    """Networks of the small checkpoint; a test may change them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        modules = Modules.build(small)
        enliven(modules)
        # What SAM2 begins with zeros would hide a wrong use of it.
        for parameter in modules.sam2.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    return modules


@pytest.fixture(scope="session")
def slices() -> np.ndarray:
    """UINT8 [DEPTH, SIDE, SIDE]: two blobs that wander and change, on noise."""
    rng = np.random.default_rng(8)
    y, x = np.mgrid[:SIDE, :SIDE]
    volume = rng.normal(60, 15, (DEPTH, SIDE, SIDE))
    for number in range(DEPTH):
        for row, column, radius in ((40 + number, 50, 12 + number / 3), (90, 100 - 2 * number, 18 - number / 4)):
            volume[number][np.hypot(y - row, x - column) < radius] += 90
    return volume.clip(0, 255).astype(np.uint8)
