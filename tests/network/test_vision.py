"""The vision path of the phantom preset: shapes, windows, axes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from medvl.contracts.checkpoint import Checkpoint, load_checkpoint
from medvl.embedded.preset import enliven
from medvl.network.modules import Modules
from medvl.network.vision import VisionEncoder


@pytest.fixture(scope="module")
def checkpoint(preset: Path) -> Checkpoint:
    return load_checkpoint(preset)


@pytest.fixture(scope="module")
def networks(checkpoint: Checkpoint) -> Modules:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        modules = Modules.build(checkpoint)
        enliven(modules)
    return modules


@pytest.fixture(scope="module")
def volume(checkpoint: Checkpoint) -> Tensor:
    """HU FP32 [1, d, h, w] between -200 and 200."""
    shape = (1, *checkpoint.vision.grid)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 400 - 200


def tokens(networks: Modules, volume: Tensor, window: tuple[float, float]) -> Tensor:
    low, high = networks.networks["vision_encoder"](volume, torch.tensor([window]))
    projected: Tensor = networks.networks["projector"](low, high)
    return projected


@torch.inference_mode()
def test_a_volume_becomes_so_many_tokens(networks: Modules, checkpoint: Checkpoint, volume: Tensor):
    """As many and as wide as the checkpoint says, and not all the same."""
    found = tokens(networks, volume, (-200.0, 200.0))
    assert found.shape == (1, checkpoint.projector.tokens, checkpoint.language.hidden_size)
    assert found.dtype == torch.float32
    assert found.std() > 0.01


@torch.inference_mode()
def test_a_window_is_a_linear_map_that_clips(networks: Modules, volume: Tensor):
    """HU and window shifted and scaled together change nothing; what lies outside is all the same."""
    expected = tokens(networks, volume, (-100.0, 100.0))
    assert torch.allclose(tokens(networks, volume * 2 + 50, (-150.0, 250.0)), expected, atol=1e-4)
    assert torch.allclose(tokens(networks, volume.clamp(-100, 100), (-100.0, 100.0)), expected, atol=1e-5)
    assert not torch.allclose(tokens(networks, volume, (-200.0, 200.0)), expected, atol=1e-3)


@pytest.mark.parametrize("axis", [1, 2, 3], ids=["slices", "rows", "columns"])
@torch.inference_mode()
def test_no_axis_is_symmetric(networks: Modules, volume: Tensor, axis: int):
    """A flipped volume is another volume: a network that cannot tell them apart could not tell left from right."""
    window = (-200.0, 200.0)
    assert not torch.allclose(tokens(networks, volume, window), tokens(networks, volume.flip(axis), window), atol=1e-3)


def test_a_full_stem_sees_every_voxel(checkpoint: Checkpoint):
    """The public one, of lines along the axes, passes most of them."""
    seen = {}
    for stem in ("full", "decomposed"):
        spec = checkpoint.vision.model_copy(update={"grid": (32, 32, 32), "stem": stem})
        encoder = VisionEncoder(spec).eval()
        volume = torch.rand(1, 32, 32, 32, requires_grad=True)
        encoder.levels(volume, torch.tensor([[0.0, 1.0]]))[0].square().sum().backward()
        seen[stem] = (volume.grad != 0).float().mean().item()
    assert seen["full"] == 1.0
    assert seen["decomposed"] < 0.5


@torch.inference_mode()
def test_features_lie_where_their_voxels_do(networks: Modules, checkpoint: Checkpoint, volume: Tensor):
    """A change in one corner changes the token of that corner most, in C order of slices, rows, columns."""
    depth, height, width = checkpoint.vision.grid
    window = torch.tensor([[-200.0, 200.0]])
    encoder = networks.networks["vision_encoder"]
    changed = volume.clone()
    changed[:, -depth // 4 :, : height // 4, -width // 4 :] = 200
    before, after = encoder(volume, window)[1], encoder(changed, window)[1]
    stride = 2 ** (checkpoint.vision.feature_stages[1] + 2)
    grid = (depth // stride, height // stride, width // stride)
    difference = (after - before).abs().sum(-1).reshape(grid)
    most = torch.unravel_index(difference.argmax(), grid)
    assert most[0] >= grid[0] // 2
    assert most[1] < max(grid[1] // 2, 1)
    assert most[2] >= grid[2] // 2
