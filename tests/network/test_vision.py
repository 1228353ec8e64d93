"""The vision path of the phantom preset: shapes, windows, axes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medvl.contracts.checkpoint import Checkpoint, LookSpec, RegionSpec, ToldSpec, load_checkpoint
from medvl.contracts.errors import CheckpointError
from medvl.embedded.preset import enliven
from medvl.network.modules import Modules
from medvl.network.projector import Told
from medvl.network.regions import CUBE, Look, Regions
from medvl.network.vision import NormedConv, VisionEncoder


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
    projected: Tensor = networks.networks["projector"](
        *networks.networks["vision_encoder"](volume, torch.tensor([window]))
    )
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
        spec = checkpoint.vision.model_copy(update={"grid": (32, 32, 32), "stem": stem, "regions": None})
        encoder = VisionEncoder(spec).eval()
        volume = torch.rand(1, 32, 32, 32, requires_grad=True)
        encoder.levels(volume)[0].square().sum().backward()
        seen[stem] = (volume.grad != 0).float().mean().item()
    assert seen["full"] == 1.0
    assert seen["decomposed"] < 0.5


@pytest.mark.parametrize(("before", "groups"), [(1, 1), (6, 6), (6, 1)], ids=["one channel", "each channel", "all"])
def test_a_norm_within_its_convolution_learns_the_same(before: int, groups: int):
    """Output and gradients are those of the two after each other; there is no other way where statistics move."""
    torch.manual_seed(5)
    convolution = NormedConv(nn.Conv3d(before, 6, 3, groups=groups), nn.BatchNorm3d(6), nn.GELU())
    apart = nn.Sequential(*convolution)
    x = torch.randn(2, before, 5, 6, 7)
    for _ in range(3):
        assert torch.equal(convolution(x), apart(x))
    nn.init.normal_(apart[1].weight)
    apart.eval()
    found, wanted = (torch.autograd.grad(m(x).square().sum(), [*apart.parameters()]) for m in (convolution, apart))
    torch.testing.assert_close(convolution(x), apart(x))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


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
    """Three regions of two kinds among 4 x 4 x 6 cells of 8 voxels."""
    return Regions(RegionSpec(count=3, kinds=2, channels=4), ((4, 4, 6), 3), ((2, 2, 3), 8), 8).eval()


@torch.inference_mode()
def test_a_region_is_a_likely_cell_with_a_middle_of_its_own(regions: Regions, monkeypatch: pytest.MonkeyPatch):
    """The best first, whatever its kind; none that sees the middle of a better one; neighbours may be two."""
    scores = torch.full((1, 4, 4, 6, 2), -9.0)
    cells = (((0, 0, 0), 0, 3.0), ((1, 1, 1), 1, 2.0), ((3, 2, 5), 1, 5.0), ((3, 2, 4), 0, 4.0), ((0, 0, 1), 0, 2.5))
    for (d, h, w), kind, score in cells:
        scores[0, d, h, w, kind] = score
    outlines = torch.zeros(1, 4, 4, 6, 6)
    outlines[..., 3:] = math.log(0.5)
    outlines[0, 3, 2, 5] = torch.tensor([0.5, -0.5, 0.25, math.log(2.0), 0.0, math.log(3.0)])
    outlines[0, 3, 2, 4, :3] = torch.tensor([0.5, -0.5, 1.25])  # the same middle as its neighbour
    monkeypatch.setattr(regions, "read", lambda *_: (scores.flatten(1, 3), outlines.flatten(1, 3)))
    found = regions(torch.rand(1, 96, 3), torch.rand(1, 12, 8), torch.rand(1, 32, 32, 48))[0]
    assert torch.equal(found[:, 6:], torch.tensor([[-9.0, 5.0], [3.0, -9.0], [2.5, -9.0]]))
    assert torch.allclose(found[0, :6], torch.tensor([4.0 / 4, 2.0 / 4, 5.75 / 6, 2.0 / 4, 1.0 / 4, 3.0 / 6]))
    assert torch.allclose(found[1:, :3] * torch.tensor([4.0, 4.0, 6.0]), torch.tensor([[0.5] * 3, [0.5, 0.5, 1.5]]))
    assert torch.allclose(found[1:, 3:6] * torch.tensor([4.0, 4.0, 6.0]), torch.tensor(0.5))


@torch.inference_mode()
def test_where_fewer_middles_are_seen_the_other_regions_are_nothing(regions: Regions, monkeypatch: pytest.MonkeyPatch):
    """When all cells see the same one."""
    outlines = torch.cat([2.0 - regions.places * torch.tensor([4.0, 4.0, 6.0]), torch.zeros(96, 3)], 1)
    monkeypatch.setattr(regions, "read", lambda *_: (torch.rand(1, 96, 2), outlines[None]))
    found = regions(torch.rand(1, 96, 3), torch.rand(1, 12, 8), torch.rand(1, 32, 32, 48))[0]
    assert (found[0, 6:] > 0).all()
    assert (found[1:, 6:].sigmoid() < 1e-9).all()


LOOK = LookSpec(kinds=(1,), likely=2, spots=1, channels=(2, 2, 2, 2, 2), window=(0.5, 0.75))


@pytest.fixture
def look() -> Look:
    """Looks at three of 2 x 4 x 4 cells of 8 voxels for the second of two kinds."""
    torch.manual_seed(0)
    return Look(LOOK, (2, 4, 4), 8).eval()


@torch.inference_mode()
def test_likely_cells_are_looked_at_and_those_with_bright_spots(look: Look):
    """Spots in dark surroundings only; no cell twice."""
    scores, volume = torch.zeros(1, 32, 2), torch.zeros(1, 16, 32, 30)
    scores[0, 5, 1], scores[0, 9, 1], scores[0, 20, 0] = 3.0, 2.0, 9.0
    volume[0, 4, 12:14, 12:14] = 0.9  # cell 5, which is likely
    volume[0, 12, 26:28, 20:22] = 0.9  # cell 16 + 4 * 3 + 2
    volume[0, :8, :16, 16:] = 0.7
    volume[0, 4, 4:6, 26:28] = 1.0  # within tissue
    assert look.candidates(scores, volume)[0].tolist() == [5, 9, 30]


@torch.inference_mode()
def test_a_look_sees_the_voxels_about_a_cell(look: Look):
    """Its own eight along each axis in the middle, and air where the volume ends."""
    volume = torch.rand(1, 16, 32, 30) + 0.1
    at = torch.tensor([[16 + 4 * 1 + 2, 0, 31]])
    inner, first, last = look.cubes(volume, at)[0]
    assert torch.equal(inner[:14], volume[0, 2:, 2:22, 10:30])
    assert torch.equal(first[6:, 6:, 6:], volume[0, :14, :14, :14])
    assert not first[:6].any()
    assert torch.equal(last[6:14, 6:14, 6:12], volume[0, 8:, 24:, 24:])
    assert not last[:, :, 12:].any()


@torch.inference_mode()
def test_a_look_scores_its_own_kinds_anew(look: Look):
    """Before it has learnt anything as they were; where it does not look nothing of them is; others are left alone."""
    scores, volume = torch.randn(1, 32, 2), torch.rand(1, 16, 32, 30)
    at = look.candidates(scores, volume)
    anew = look(scores, volume)
    assert torch.allclose(anew[0, at[0], 0], scores[0, at[0], 1])
    assert (anew.sigmoid() > 1e-9).sum() == 3
    look.whether.bias.fill_(1.0)
    assert torch.allclose(look(scores, volume)[0, at[0], 0], scores[0, at[0], 1] + 1.0)
    look.whether.bias.fill_(-9.0)
    scores[0, at[0, 0], 1] = 2.0
    doubtful = look(scores, volume)[0, at[0], 0].sigmoid()
    assert 0.08 < doubtful[0] < 0.15, "what cells find likely stays doubtful, so that it can be told"
    assert (doubtful[1:] < 0.4).all()


@torch.inference_mode()
def test_what_is_seen_does_not_tell_one_kind_from_another():
    """It tells whether; scores and the place tell which, and of two kinds at most one is likely."""
    look = Look(LOOK.model_copy(update={"kinds": (0, 1)}), (2, 4, 4), 8).eval()
    look.whether.weight.copy_(torch.tensor([[1.0, 0.0]]))
    look.which.weight[0, -1] = 20.0
    at = torch.tensor([[4 * 1 + 3, 4 * 1]])
    seen = torch.tensor([[[3.0], [-3.0]]])
    scores = torch.zeros(1, 2, 2)
    likely = look.weighed(seen, scores, at).sigmoid()[0]
    assert likely[0, 0] > 0.9
    assert likely[0, 1] < 0.1
    assert (likely[1] < 0.1).all()
    certain = look.weighed(seen + 50.0, scores, at)[0, 0]
    assert certain[0] > 14.0
    assert certain[1] < -14.0, "however plain a lesion is, it is on one side"
    look.which.weight[0, -1] = 0.0
    likely = look.weighed(seen, scores, at).sigmoid()
    assert torch.allclose(likely.sum(-1), seen[..., 0].sigmoid())
    for far in (-500.0, 500.0):
        look.which.weight[0, -1] = far
        assert look.weighed(seen + far, scores, at).isfinite().all()


@torch.inference_mode()
def test_a_look_sees_small_differences_within_its_window(look: Look):
    """Voxels are seen twice; outside of the window only plainly."""
    look.convs[0].weight[:, 0] = 0.0
    cubes = torch.rand(1, 3, CUBE, CUBE, CUBE) * 0.25 + torch.tensor([0.0, 0.1, 0.5])[:, None, None, None]
    dark, darker, within = look.seen(cubes)[0, :, 0]
    assert dark == darker
    assert dark != within


@torch.inference_mode()
def test_each_look_scores_its_own_kinds():
    """And leaves the others alone."""
    first = LOOK.model_copy(update={"kinds": (0,), "spots": 0})
    spec = RegionSpec(count=1, kinds=3, channels=4, looks=(first, LOOK))
    regions = Regions(spec, ((2, 4, 4), 3), ((1, 2, 2), 8), 8).eval()
    scores, volume = torch.randn(1, 32, 3), torch.rand(1, 16, 32, 30)
    for look, bias in zip(regions.looks, (1.0, 2.0), strict=True):
        look.whether.bias.fill_(bias)
    anew = regions.looked_at(scores, volume)
    assert torch.equal(anew[..., 2], scores[..., 2])
    for kind, (look, bias) in enumerate(zip(regions.looks, (1.0, 2.0), strict=True)):
        at = look.candidates(scores, volume)[0]
        assert torch.allclose(anew[0, at, kind], scores[0, at, kind] + bias)


TOLD = ToldSpec(
    kinds=(0, 1), unsure=0.6, sure=0.9, doubtful=(0.1, 0.4), taken_away=0.5, low_cells=(1, 2, 2), high_cells=(1, 1, 2)
)


@torch.inference_mode()
def test_regions_are_told_in_the_tokens_of_their_place():
    """One of each level, as far as they are likely; those only doubtful are taken away, unlikely ones are nothing."""
    told = Told(TOLD, 3).eval()
    told.low.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    told.high.copy_(2.0 * told.low)
    likely, half, doubtful, unlikely = (math.log(p / (1 - p)) for p in (0.95, 0.75, 0.3, 0.05))
    regions = torch.zeros(1, 5, 8)
    right, left = [0.5, 0.6, 0.2], [0.9, 0.1, 1.2]
    regions[0, :, :3] = torch.tensor([right, left, right, left, right])
    kinds = [[likely, unlikely], [doubtful, unlikely], [unlikely, half], [doubtful, unlikely], [doubtful, unlikely]]
    regions[0, :, 6:] = torch.tensor(kinds)
    expected = torch.zeros(1, 6, 3)
    expected[0, 2] = torch.tensor([1.0, 0.5, 0.0])  # behind, on the right; a doubtful one beside a likely one is none
    expected[0, 1, 0] = -0.5  # in front, on the left, once; what lies outside is at the edge
    expected[0, 4], expected[0, 5] = 2.0 * expected[0, 2], 2.0 * expected[0, 1]
    nothing = torch.zeros(1, 6, 3)
    assert torch.allclose(told(regions, nothing), expected, atol=1e-6)


@torch.inference_mode()
def test_what_tokens_show_is_not_told_again():
    """Only what is missing is added; where they show all of it nothing is, and what is taken away is as it was."""
    told = Told(TOLD, 3).eval()
    told.low.copy_(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    told.high.copy_(3.0 * told.low)
    told.read.copy_(torch.tensor([[0.6, 0.2, 0.1], [0.0, 0.0, 0.0]]))
    regions = torch.full((1, 3, 8), -9.0)
    regions[0, :, :3] = torch.tensor([[0.5, 0.1, 0.1], [0.5, 0.9, 0.1], [0.5, 0.1, 0.9]])
    regions[0, :2, 6:], regions[0, 2, 6] = 9.0, math.log(0.3 / 0.7)
    tokens = torch.zeros(1, 6, 3)
    tokens[0, 0], tokens[0, 4] = 0.5 * told.low[0], 1.0 * told.high[0]  # half of one and a whole one
    tokens[0, 2] = 9.0 * told.low[0]
    low, high = told(regions, tokens)[0].split([4, 2])
    assert torch.allclose(low[0], (1 - 0.3 - 0.2 - 0.1) * told.low[0] + told.low[1], atol=1e-6)
    assert torch.allclose(low[2], told.low[1], atol=1e-6)
    assert torch.allclose(low[1], -0.5 * told.low[0], atol=1e-6)
    assert torch.allclose(high[0], 0.4 * told.high[0] + 2 * told.high[1], atol=1e-6), "two places in one token"


def without_regions(checkpoint: Checkpoint) -> Checkpoint:
    vision = checkpoint.vision.model_copy(update={"regions": None})
    projector = checkpoint.projector.model_copy(update={"told": None})
    return checkpoint.model_copy(update={"vision": vision, "projector": projector})


@torch.inference_mode()
def test_a_checkpoint_may_find_no_regions(networks: Modules, checkpoint: Checkpoint, volume: Tensor):
    """Then the tokens are those of one that has not learnt to tell any."""
    window = (-200.0, 200.0)
    plain = Modules.build(without_regions(checkpoint))
    for name in ("vision_encoder", "projector"):
        weights = networks.parts[name].state_dict()
        plain.parts[name].load_state_dict({k: v for k, v in weights.items() if not k.startswith(("regions.", "told."))})
    assert torch.allclose(tokens(plain, volume, window), tokens(networks, volume, window), atol=1e-3)
    for modules in (networks, plain):
        found = modules.networks["vision_encoder"](volume, torch.tensor([window]))[2]
        assert found.shape == (1, modules.axes["G"], modules.axes["n_region"])
    assert found[0, 0].sigmoid()[-1] < 1e-9, "the one region of an encoder that finds none is nothing"


def test_more_regions_than_cells_are_refused(checkpoint: Checkpoint):
    """With both numbers."""
    for count, looks in ((65, ()), (1, (LOOK.model_copy(update={"likely": 64}),))):
        regions = RegionSpec(count=count, kinds=2, channels=4, looks=looks)
        spec = checkpoint.vision.model_copy(update={"grid": (32, 32, 32), "regions": regions})
        with pytest.raises(CheckpointError, match="65 cannot be found in 64 cells"):
            VisionEncoder(spec)


def test_regions_leave_the_dice_of_everything_else_alone(checkpoint: Checkpoint):
    """What is built behind them keeps its weights: an untrained checkpoint is the same with and without regions."""
    built = []
    for each in (checkpoint, without_regions(checkpoint)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            built.append(Modules.build(each))
    for with_regions, without in zip(*(modules.parts.values() for modules in built), strict=True):
        weights = with_regions.state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in without.state_dict().items())
