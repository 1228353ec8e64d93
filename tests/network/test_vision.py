"""The vision path of the phantom preset: shapes, windows, axes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from medvl.contracts.checkpoint import Checkpoint, RegionSpec, load_checkpoint
from medvl.contracts.errors import CheckpointError
from medvl.embedded.preset import enliven
from medvl.network.modules import Modules
from medvl.network.regions import Regions
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
    low, high, _ = networks.networks["vision_encoder"](volume, torch.tensor([window]))
    projected: Tensor = networks.networks["projector"](low, high)
    return projected


@torch.inference_mode()
def test_a_volume_becomes_so_many_tokens(networks: Modules, checkpoint: Checkpoint, volume: Tensor):
    """As many and as wide as the checkpoint says, and not all the same."""
    found = tokens(networks, volume, (-200.0, 200.0))
    assert found.shape == (1, checkpoint.vision_tokens, checkpoint.language.hidden_size)
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


@pytest.fixture
def regions() -> Regions:
    """Regions of which a cell's first channel is the score of the first kind, the second that of the other."""
    found = Regions(RegionSpec(tokens=3, kinds=2, channels=4), ((4, 4, 6), 3), ((2, 2, 3), 8)).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.zero_()
        found.embed.weight[:7].copy_(torch.eye(10)[3:])
    return found


@torch.inference_mode()
def test_a_region_is_a_cell_that_stands_out(regions: Regions, monkeypatch: pytest.MonkeyPatch):
    """The best first, whatever its kind; none beside a better one; each tells its scores and where it lies.

    To the language model it tells the cell, to the segmenter its middle and how far it reaches.
    """
    scores = torch.zeros(1, 4, 4, 6, 2)
    for (d, h, w), kind, score in (((0, 0, 0), 0, 3.0), ((1, 1, 1), 1, 2.0), ((3, 2, 5), 1, 5.0), ((0, 3, 3), 0, 1.0)):
        scores[0, d, h, w, kind] = score
    outlines = torch.zeros(1, 4, 4, 6, 6)
    outlines[0, 3, 2, 5] = torch.tensor([0.5, -0.5, 0.25, math.log(2.0), 0.0, math.log(3.0)])
    monkeypatch.setattr(regions, "read", lambda *_: (scores.flatten(1, 3), outlines.flatten(1, 3)))
    fine, low = torch.rand(1, 96, 3), torch.rand(1, 12, 8)
    told, found = (each[0] for each in regions(fine, low))
    told = told[:, :7]
    places = torch.tensor([[3.5 / 4, 2.5 / 4, 5.5 / 6], [0.5 / 4, 0.5 / 4, 0.5 / 6], [0.5 / 4, 3.5 / 4, 3.5 / 6]])
    expected = torch.tensor([[0.0, 5.0], [3.0, 0.0], [1.0, 0.0]])
    assert torch.allclose(told, torch.cat([expected, (2.0 * expected).sigmoid(), places], 1))
    assert torch.equal(found[:, 6:], expected)
    assert torch.allclose(found[0, :6], torch.tensor([4.0 / 4, 2.0 / 4, 5.75 / 6, 2.0 / 4, 1.0 / 4, 3.0 / 6]))
    assert torch.allclose(found[1:, :3], places[1:])
    assert torch.allclose(found[1:, 3:6], 1.0 / torch.tensor([4.0, 4.0, 6.0]))


@torch.inference_mode()
def test_regions_come_before_the_other_tokens(networks: Modules, checkpoint: Checkpoint, volume: Tensor):
    """Without them the others are the same, as those of a checkpoint that finds none."""
    window, count = (-200.0, 200.0), checkpoint.vision_tokens - 225
    spec = checkpoint.model_copy(update={"vision": checkpoint.vision.model_copy(update={"regions": None})})
    plain = Modules.build(spec)
    for name in ("vision_encoder", "projector"):
        weights = networks.parts[name].state_dict()
        plain.parts[name].load_state_dict({k: v for k, v in weights.items() if "region" not in k})
    assert spec.vision_tokens == 225
    assert torch.allclose(tokens(plain, volume, window), tokens(networks, volume, window)[:, count:], atol=1e-3)
    for modules, regions in ((networks, count), (plain, 1)):
        found = modules.networks["vision_encoder"](volume, torch.tensor([window]))[2]
        assert found.shape == (1, modules.axes["G"], modules.axes["n_region"])
        assert len(found[0]) == regions
    assert found[0, 0].sigmoid()[-1] < 1e-9, "the one region of an encoder that finds none is nothing"


def test_more_regions_than_cells_are_refused(checkpoint: Checkpoint):
    """With both numbers."""
    regions = RegionSpec(tokens=65, kinds=1, channels=4)
    spec = checkpoint.vision.model_copy(update={"grid": (32, 32, 32), "regions": regions})
    with pytest.raises(CheckpointError, match="65 tokens cannot be found in 64 cells"):
        VisionEncoder(spec)


def test_regions_leave_the_dice_of_everything_else_alone(checkpoint: Checkpoint):
    """What is built behind them keeps its weights: an untrained checkpoint is the same with and without regions."""
    plain = checkpoint.model_copy(update={"vision": checkpoint.vision.model_copy(update={"regions": None})})
    built = []
    for each in (checkpoint, plain):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            built.append(Modules.build(each))
    for with_regions, without in zip(*(modules.parts.values() for modules in built), strict=True):
        weights = with_regions.state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in without.state_dict().items())
