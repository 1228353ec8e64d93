"""What a step of each stage teaches, and what it leaves alone."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from medvl.contracts.errors import InvalidRequest, SetupError
from medvl.embedded.anatomy import ORGANS
from medvl.embedded.facts import findings_named
from medvl.embedded.findings import ILL
from medvl.embedded.phantom import make_phantom
from medvl.embedded.preset import TOLD, WINDOW, phantom_checkpoint
from medvl.embedded.report_reader import parse_report
from medvl.embedded.requests import request_pool
from medvl.embedded.truth import FindingKind, Truth
from medvl.export.presets import resolve_checkpoint
from medvl.imaging.resample import to_grid
from medvl.imaging.windows import Window, to_uint8
from medvl.network.model import ReferenceModel
from medvl.network.projector import Told
from medvl.network.proposals import FEATURES
from medvl.network.region_choice import OUTLINE, features_of_regions
from medvl.network.regions import CUBE
from medvl.training import train
from medvl.training.cases import FIRST_SEED, Case, CaseStore
from medvl.training.clips import clip_slices
from medvl.training.descriptors import LENGTH, Place, absent, descriptor, places, targets
from medvl.training.language import utterances
from medvl.training.looks import Looked, LookLearner, cubes_at, erased, misread, right_of, with_nodule
from medvl.training.loop import averaged, on_device
from medvl.training.perception import READ, Cells, Grids, Parts, by_kind, read_cells
from medvl.training.proposals import Example, ProposalLearner, examples
from medvl.training.regions import LESIONS, lesions, padded, region_loss
from medvl.training.reports import ReportLearner, shown_by
from medvl.training.segmentation import SegmentationLearner
from medvl.training.words import Listening

WIDE = Window(*phantom_checkpoint({}).windows[WINDOW])


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run whose stages are all done, with no step to do."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(train.RECIPES, "cpu", tuple(replace(stage, steps=0) for stage in train.RECIPES["cpu"]))
        assert train.train(folder, list(train.stages_on("cpu")), 1.0, lambda _: None)
        yield folder


@pytest.fixture(autouse=True)
def one_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """One phantom is enough."""
    monkeypatch.setitem(train.CASES, "cpu", range(1))


def taught(learner: train.Learner, step: int = 1) -> set[str]:
    """Return the modules, two names deep, that one step gives a gradient."""
    loss, shown = learner.loss(step, learner.draw(step, np.random.default_rng(3)))
    assert torch.isfinite(loss)
    assert shown
    loss.backward()
    found = {name for name, p in learner.module.named_parameters() if p.grad is not None and p.grad.any()}
    return {".".join(name.split(".")[:2]) for name in found}


def test_perception_teaches_the_encoder_to_see(out: Path):
    """Encoder and heads; batch statistics stand still once they are gathered."""
    learner = train.learner("perception", out, "cpu")
    found = taught(learner)
    assert {name.split(".")[0] for name in found} == {"encoder", "heads"}
    assert "encoder.regions" in found
    learner.loss(10_000, learner.draw(0, np.random.default_rng(0)))
    norms = [m for m in learner.module.modules() if isinstance(m, nn.BatchNorm3d)]
    assert norms
    assert not any(m.training for m in norms)


def test_slices_teach_everything_but_the_memory(out: Path):
    """At either side: image encoder, prompts, masks, the teacher of words and the dense head."""
    for name in ("coarse", "slices"):
        found = taught(train.learner(name, out, "cpu"))
        assert {
            "sam.image_encoder",
            "sam.sam_mask_decoder",
            "sam.sam_prompt_encoder",
            "teacher.0",
            "places.weight",
        } <= found
        assert not {"sam.memory_attention", "sam.memory_encoder"} & found


def test_clips_teach_the_memory(out: Path):
    """Attention, encoder and object pointers, through the slices that are tracked."""
    learner = train.learner("clips", out, "cpu")
    with torch.no_grad():
        learner.module.sam.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(5.0)
    found = taught(learner, step=1)
    assert {"sam.memory_attention", "sam.memory_encoder", "sam.obj_ptr_proj", "sam.image_encoder"} <= found


def test_words_teach_sam2_what_the_language_model_says(out: Path, case: Case):
    """All of SAM2; what makes tokens of [SEG] states stands still, and what was said is that of the reference."""
    learner = train.learner("words", out, "cpu")
    assert isinstance(learner, SegmentationLearner)
    with torch.no_grad():
        learner.module.sam.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(5.0)
    found = taught(learner)
    assert {"sam.memory_attention", "sam.memory_encoder", "sam.obj_ptr_proj", "sam.image_encoder"} <= found
    assert all(name.split(".")[0] in {"sam", "places"} for name in found)
    (kept,) = out.glob("words-*/said/*.npz")
    (reference,) = out.glob("words-*/checkpoint")
    store = CaseStore(out / "cases", range(FIRST_SEED, FIRST_SEED + 1), WIDE)
    shown, words = Listening(reference, kept.parent).draw(store, np.random.default_rng(0), 0)
    model, rng = ReferenceModel.load(reference), np.random.default_rng(0)
    prompts = model.checkpoint.language.prompts
    prompt = prompts.for_label("liver", shown.geometry.extent_mm)
    said = model.language.seg_state(model.encode(shown.volume(WIDE)).tokens, prompt, prompts.segment_answer)
    liver = next(t for t in targets(case.truth, shown.places) if t.kind == "liver")
    assert any(np.allclose(words.say(liver, rng), said, atol=1e-4) for _ in range(50))
    assert words.can_say(absent("kidney_cyst")) == (
        FindingKind.KIDNEY_CYST not in {f.kind for f in case.truth.findings}
    )


def test_language_is_taught_on_what_the_encoder_sees(out: Path):
    """The encoder is left alone until the joint stage; the teacher is never changed."""
    alone, joint = (
        {name.split(".")[0] for name in taught(train.learner(name, out, "cpu"))} for name in ("language", "joint")
    )
    assert alone == {"projector", "seg_projector", "language", "state_head", "token_head"}
    assert joint == alone | {"encoder", "heads"}


def test_looks_teach_to_see_closer_and_to_tell(out: Path):
    """From what was seen once; the encoder has not learnt from the case."""
    learner = train.learner("looks", out, "cpu")
    assert isinstance(learner, LookLearner)
    named = {f"looks.{place}" for place in range(2)} | {"told.low", "told.high"}
    assert taught(learner) == named
    drawn, again = (learner.draw(1, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(drawn.cubes, again.cubes)
    assert torch.equal(drawn.pasted, again.pasted)
    regions = phantom_checkpoint({}).vision.regions
    assert regions is not None
    cells = sum(look.likely + look.spots for look in regions.looks)
    assert drawn.cubes.shape == (train.stages_on("cpu")["looks"].batch, cells, CUBE, CUBE, CUBE)
    assert 0.3 < drawn.moved.float().mean() < 0.7
    assert [path.stem for path in out.glob("looks-*/seen/*.npz")] == [str(FIRST_SEED + 1_000_000)]


def test_how_much_tokens_show_is_learnt_with_lesions_and_without():
    """Of their own kind; what is read of others does not matter."""
    told = Told(TOLD.model_copy(update={"kinds": (0, 1)}), 4)
    with torch.no_grad():
        told.low.copy_(torch.eye(4)[:2] * 3.0)
        told.high.copy_(torch.eye(4)[:2] * 5.0)
        told.read.copy_(torch.tensor([[0.5, 0.5, 0.0], [7.0, 7.0, 7.0]]))
    more = torch.tensor([0.2, 1.0, 1.7])
    changed = more[:, None, None] * torch.stack([told.low[0], told.high[0]])
    unlike = torch.rand(3, 2, 4) * torch.tensor([0.0, 1.0, 1.0, 1.0])
    nothing = torch.zeros(0)
    drawn = Looked(
        cubes=nothing,
        pasted=nothing,
        scores=nothing,
        cells=nothing,
        moved=nothing,
        right=nothing,
        kinds=torch.zeros(3, dtype=torch.int64),
        changed=changed,
        tokens=unlike + changed,
    )
    assert misread(told, drawn) < 1e-9
    with torch.no_grad():
        told.read[0, 2] = 0.1
    off = misread(told, drawn)
    unit = (3.0**2 + 5.0**2) / 8
    assert off.item() == pytest.approx(0.01 * unit)
    off.backward()
    assert told.low.grad is None, "what is told is learnt from what changes alone"
    assert told.read.grad is not None
    assert told.read.grad[0].all()
    assert not told.read.grad[1].any()


def test_cubes_are_cut_anywhere():
    """Also beside the volume, where there is air."""
    volume = np.random.default_rng(0).integers(1, 255, (16, 24, 32)).astype(np.uint8)
    corners = np.array([[-6, -6, -6], [2, 1, 7], [6, 14, 20]])
    first, within, last = cubes_at(volume, corners)
    assert np.array_equal(first[6:, 6:, 6:], volume[:14, :14, :14])
    assert not first[:6].any()
    assert np.array_equal(within[:14], volume[2:, 1:21, 7:27])
    assert np.array_equal(last[:10, :10, :12], volume[6:, 14:, 20:])
    assert not last[:, :, 12:].any()


def test_cells_beside_a_lesion_are_neither_right_nor_wrong():
    """Only the cell of its middle is right, and only for its kind."""
    places = (np.array([[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3]], np.float32) + 0.5) / 4
    lesion = np.array([[1, 0.125, 0.125, 0.2, 0.05, 0.05, 0.05]], np.float32)
    right = right_of(places, lesion, (4, 4, 4), (0, 1))
    assert not right[:, 0].any()
    assert right[0, 1] == 1
    assert np.isnan(right[1, 1])
    assert not right[2:, 1].any()


def test_a_lesion_is_erased_with_what_lies_about_it():
    """And nothing else is; where only tissue lies about a nodule, nothing fills it."""
    rng = np.random.default_rng(0)
    volume = rng.normal(0.1, 0.01, (32, 32, 32)).astype(np.float32)
    volume[14:18, 14:18, 14:18] = 0.75
    volume[14:18, 14:18, 20:] = 0.7  # tissue beside it
    nodule = np.array([0, 0.5, 0.5, 0.5, 2 / 32, 2 / 32, 2 / 32], np.float32)
    without = erased(volume, nodule, rng)
    assert without is not None
    assert without[13:19, 13:19, 13:19].max() < 0.2
    assert np.array_equal(without[:, :, 20:], volume[:, :, 20:])
    assert erased(np.full_like(volume, 0.7), nodule, rng) is None


def test_a_nodule_is_pasted_into_the_middle_cell():
    """Bright in the middle, and as it was at the corners; what is brighter stays."""
    cube = np.full((CUBE, CUBE, CUBE), 20, np.uint8)
    cube[0, 0, 0] = 250
    for seed in range(20):
        pasted = with_nodule(cube, np.array([4.0, 2.0, 2.0]), np.random.default_rng(seed))
        assert pasted is not None
        middle = pasted[6:14, 6:14, 6:14]
        assert middle.max() > 90
        assert pasted[0, 0, 0] == 250
        assert (pasted[:2, :2, :2].ravel()[1:] == 20).all()
    cube[:, :, ::4] = 200
    drawn = [with_nodule(cube, np.array([4.0, 2.0, 2.0]), np.random.default_rng(seed)) for seed in range(20)]
    assert drawn == [None] * 20, "none is put among vessels"


def test_reports_teach_what_regions_show(out: Path):
    """The language model alone; before a step nothing has moved."""
    learner = train.learner("reports", out, "cpu")
    assert isinstance(learner, ReportLearner)
    assert taught(learner) == {"language.model"}
    drawn = learner.draw(1, np.random.default_rng(3))
    _, shown = learner.loss(1, drawn)
    assert shown["moved"] < 1e-6
    assert drawn.tokens.shape[1] == phantom_checkpoint({}).vision_tokens
    with torch.no_grad():
        learner.module.language.model.norm.weight.add_(1.0)
    assert learner.loss(1, drawn)[1]["moved"] > shown["moved"]
    assert set(drawn.spoken.seeds) == {FIRST_SEED + 2_000_000}, "encoder and looks have learnt from those before"


def test_reports_are_taught_from_the_tokens_that_are_served(out: Path, monkeypatch: pytest.MonkeyPatch):
    """What regions tell is in them."""
    untold = train.learner("reports", out, "cpu").draw(1, np.random.default_rng(3))
    _forget(out)
    monkeypatch.setattr(Told, "forward", lambda _self, _regions, tokens: torch.ones_like(tokens))
    told = train.learner("reports", out, "cpu").draw(1, np.random.default_rng(3))
    _forget(out)
    assert torch.allclose(told.tokens, untold.tokens + 1.0, atol=0.01)


def _forget(out: Path) -> None:
    for seen in out.glob("reports-*/seen/*.npz"):
        seen.unlink()


def test_a_report_leaves_out_lesions_that_no_region_shows(case: Case):
    """A likely region of their kind whose middle they reach, or nearly; all else is told, seen or not."""
    cells, kinds = (12, 20, 20), len(LESIONS)
    told = [f for f in case.truth.findings if (f.kind, f.organ) in LESIONS]
    others = [f for f in case.truth.findings if (f.kind, f.organ) not in LESIONS]
    assert told
    assert others
    one = told[0]
    place, kind = case.places[one.value or 0], LESIONS.index((one.kind, one.organ))

    def region(score: float, kind: int, away: float = 0.0) -> np.ndarray:
        row = np.full(OUTLINE + kinds, -9.0, np.float32)
        row[:3] = np.array(place.centre) + away * (np.array(place.half_extent) + 1.0 / np.array(cells))
        row[OUTLINE + kind] = score
        return row[None]

    shown = shown_by(region(1.0, kind, 0.9), case, cells).findings
    assert one in shown
    for unlike in (region(-1.0, kind), region(1.0, (kind + 1) % kinds), region(1.0, kind, 1.1)):
        assert one not in shown_by(unlike, case, cells).findings
    for found in (shown, shown_by(region(-1.0, kind), case, cells).findings):
        assert [f for f in found if f in others] == others


def test_proposals_teach_a_state_what_it_means(out: Path):
    """From what was seen once: a state that says "the smaller" comes to choose it, and nothing else changes."""
    learner = train.learner("proposals", out, "cpu")
    assert isinstance(learner, ProposalLearner)
    hidden, small = phantom_checkpoint({}).language.hidden_size, FEATURES.index("log_volume")
    features = np.zeros((2, len(FEATURES)), np.float32)
    features[:, small] = -4.0, -8.0
    states = np.random.default_rng(0).normal(0.0, 0.3, (3, hidden)).astype(np.float32)
    regions = features_of_regions(np.array([[0.5] * 3 + [size] * 3 + [2.0] * len(LESIONS) for size in (0.1, 0.2)]))
    meant = np.eye(3, dtype=np.float32)
    said = [Example(states[i], features, np.eye(2, dtype=np.float32)[i], regions, meant[i], 1.0) for i in range(2)]
    unseen = Example(states[2], features, np.zeros(2, np.float32), regions, meant[2], 1.0)
    learner.keep(FIRST_SEED + 3_000_000, [*said, unseen])
    drawn = learner.draw(0, np.random.default_rng(0))
    batch = train.stages_on("cpu")["proposals"].batch
    assert [len(among.states) for among in (drawn.proposals, drawn.regions)] == [2 * batch, 3 * batch]
    assert torch.equal(on_device(drawn).regions.worth, drawn.regions.worth)
    optimiser = torch.optim.SGD(learner.module.parameters(), 0.1)
    before, _ = learner.loss(0, drawn)
    for _ in range(50):
        optimiser.zero_grad()
        learner.loss(0, drawn)[0].backward()
        optimiser.step()
    after, shown = learner.loss(0, drawn)
    assert after < 0.2 < before
    assert shown["dice"] == shown["best"] == shown["regions"] == 1.0


def test_proposals_are_those_of_the_reference(case: Case):
    """Every request for one of several is looked for, what reports name, too; what is seen of an organ is the organ."""
    reference = ReferenceModel.load(resolve_checkpoint("phantom"))
    volume = case.volume(WIDE)
    named = findings_named(case.truth, parse_report(reference.report(volume).text))
    findings = [case.truth.findings[number] for _, _, number in named if number is not None]
    assert findings
    found = list(examples(case, reference, np.random.default_rng(0)))
    several = [w for w in request_pool(case.truth) if w.one_of_several]
    named_of_several = [f for f in findings if len(case.truth.of(f.kind, f.organ)) > 1]
    assert sum(e.weight == 2.0 for e in found) == len(several) + len(named_of_several) > len(several) > 0
    assert all(e.features.shape == (len(e.dice), len(FEATURES)) for e in found)
    assert np.median([e.dice.max() for e in found if e.weight == 0.3]) > 0.8
    assert all(len(e.regions) == len(e.meant) and e.meant.any() for e in found)
    assert all(e.meant[-1] for e in found if e.weight == 0.3), "an organ is no region"
    assert any(e.meant[:-1].any() for e in found if e.weight == 2.0)


def test_proposals_need_something_that_is_seen(out: Path):
    """A checkpoint that has not learnt to see is told so."""
    learner = train.learner("proposals", out, "cpu")
    assert isinstance(learner, ProposalLearner)
    learner.keep(FIRST_SEED + 3_000_000, [])
    with pytest.raises(InvalidRequest, match="trained checkpoint"):
        learner.draw(0, np.random.default_rng(0))


def test_a_stage_without_the_one_before_is_refused(tmp_path: Path):
    """With the stage to run first."""
    with pytest.raises(InvalidRequest, match="slices has not begun"):
        train.learner("clips", tmp_path, "cpu")
    with pytest.raises(InvalidRequest, match="coarse has not begun"):
        train.learner("language", tmp_path, "cpu")


def test_a_stage_waits_for_those_that_it_goes_on_from(tmp_path: Path):
    """It would learn what is not so any more."""
    with pytest.raises(InvalidRequest, match="perception is not done"):
        train.train(tmp_path, ["language"], 1.0, lambda _: None)


def test_a_stage_that_is_done_in_pieces_is_that_done_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """To the bit, though SAM2's side has gone on in between: what it teaches words with stands still."""

    def go_on(folder: Path, name: str, steps: int) -> dict[str, torch.Tensor]:
        recipe = tuple(replace(stage, steps=steps if stage.name == name else 2) for stage in train.RECIPES["cpu"])
        monkeypatch.setitem(train.RECIPES, "cpu", recipe)
        assert train.train(folder, [name], 10.0, lambda _: None)
        return averaged(folder, name)

    for folder in (tmp_path / "pieces", tmp_path / "once"):
        for name in ("perception", "coarse"):
            go_on(folder, name, 2)
    go_on(tmp_path / "pieces", "language", 1)
    go_on(tmp_path / "pieces", "slices", 1)
    pieces, once = (go_on(folder, "language", 2) for folder in (tmp_path / "pieces", tmp_path / "once"))
    assert all(torch.equal(once[name], value) for name, value in pieces.items())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_stages_go_on_from_stages_of_their_device(device: str):
    """Those that it leaves out are passed by; words come when both sides are done, proposals when all else is."""
    before = {name: train._before(name, device) for name in train.stages_on(device)}
    assert before["joint"] == (("perception" if device == "cuda" else "language"), "slices")
    assert before["slices"] == (() if device == "cuda" else ("coarse",))
    assert before["words"] == ("clips", "reports")
    known: set[str] = set()
    for name in train.stages_on(device):
        assert set(before[name]) <= known
        known.add(name)


def test_weights_that_do_not_fit_each_other_make_no_checkpoint(out: Path, tmp_path: Path):
    """Where a stage was done anew, what came after it fits nothing any more; nor does it on another device."""
    for path in out.glob("*.pt"):
        shutil.copy(path, tmp_path)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    train.finish(tmp_path, folder)
    (tmp_path / "joint.pt").unlink()
    assert train.train(tmp_path, ["joint"], 1.0, lambda _: None)
    with pytest.raises(InvalidRequest, match=r"looks was begun .* from other weights .* remove looks\.pt"):
        train.finish(tmp_path, folder)
    (tmp_path / "looks.pt").unlink()
    with pytest.raises(InvalidRequest, match=r"remove reports\.pt"):
        train.train(tmp_path, ["looks", "reports"], 1.0, lambda _: None)
    with pytest.raises(InvalidRequest, match="for another device"):
        train.finish(out, folder, "cuda")


def test_what_is_done_needs_nothing(out: Path, tmp_path: Path):
    """Neither time nor what it has seen."""
    for path in out.glob("*.pt"):
        (tmp_path / path.name).symlink_to(path)
    assert train.train(tmp_path, list(train.stages_on("cpu")), 0.0, lambda _: None)
    assert not list(tmp_path.glob("*/"))


def test_numbers_of_phantoms_do_not_reach_those_of_other_stages(tmp_path: Path):
    """What looks has learnt from is not what an encoder may be taught with."""
    with pytest.raises(InvalidRequest, match="below 1,000,000"):
        train.train(tmp_path, ["cases"], 0.0, lambda _: None, cases=range(999_999, 1_000_001))


def test_no_time_begins_no_stage(tmp_path: Path):
    """A stage that has not begun leaves no state that would pass for learnt."""
    assert not train.train(tmp_path, ["perception"], 0.0, lambda _: None)
    assert not list(tmp_path.glob("*.pt"))


def test_what_was_learnt_becomes_a_checkpoint(out: Path, tmp_path: Path):
    """It keeps the contract, says that it is trained, and how far, and holds of each stage what that taught."""
    from medvl.contracts.checkpoint import load_checkpoint
    from medvl.export.check import mismatches

    names = list(train.stages_on("cpu"))
    for name in names:
        state = torch.load(out / f"{name}.pt", weights_only=True)
        for value in state["average"].values():
            value.fill_(names.index(name) + 1)
        torch.save(state, tmp_path / f"{name}.pt")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    train.finish(tmp_path, folder)
    assert mismatches(folder) == []
    checkpoint = load_checkpoint(folder)
    assert checkpoint.trained
    assert "perception 0, coarse 0, slices 0," in checkpoint.provenance
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) <= 48_000_000
    looks, joint = names.index("looks") + 1, names.index("joint") + 1
    expected = {"proposals": "proposals", "sam2": "words", "model": "reports", "projector": "joint"}
    for path in folder.rglob("*.safetensors"):
        for key, value in load_file(path).items():
            if path.stem == "vision_encoder":
                wanted = looks if ".looks." in key else joint
            elif ".told." in f".{key}":
                wanted = looks
            else:
                wanted = names.index(expected.get(path.stem, "joint")) + 1
            assert (value == wanted).all(), (path.name, key)


@pytest.fixture
def case(out: Path) -> Case:
    """A case as it comes back from disk."""
    return CaseStore(out / "cases", range(FIRST_SEED, FIRST_SEED + 1), WIDE).get(FIRST_SEED)


def test_a_case_is_the_phantom_of_its_seed(case: Case):
    """Windowed voxels, labels, geometry and truth survive the way to disk."""
    phantom = make_phantom(FIRST_SEED, illness=ILL)
    assert np.array_equal(case.voxels.grey, to_uint8(phantom.hu, WIDE))
    assert np.array_equal(case.voxels.labels, phantom.labels)
    assert (case.geometry, case.truth) == (phantom.geometry, phantom.truth)
    assert case.places == places(phantom.labels)
    assert len(case.truth.findings) >= 4


@pytest.mark.parametrize("seed", range(3))
def test_a_wider_field_of_view_moves_nothing_in_the_patient(case: Case, seed: int):
    """Every voxel stays where it was in millimetres, what is told of places is true, and the rest is air."""
    wide = case.widened(np.random.default_rng(seed))
    assert wide.geometry.extent_mm[1] == wide.geometry.extent_mm[2] > case.geometry.extent_mm[1]
    assert wide.geometry.extent_mm[0] == case.geometry.extent_mm[0]
    first, _, _ = at = np.rint(wide.geometry.lps_to_index(case.geometry.index_to_lps(np.array([10, 0, 0])))).astype(int)
    every = np.arange(wide.geometry.shape[0])
    spec = phantom_checkpoint({}).segmentation.model_copy(update={"side": wide.geometry.shape[1]})
    slices, planes = wide.slices(every, spec), wide.planes(every, spec)
    rows, columns = (slice(begin, begin + n) for begin, n in zip(at[1:], case.voxels.shape[1:], strict=True))
    assert first == 10
    assert np.array_equal(slices[:, rows, columns], case.voxels.grey)
    assert np.array_equal(planes[:, rows, columns], case.voxels.labels)
    assert (slices == 0).sum() >= slices.size - case.voxels.grey.size
    told = places(planes)
    assert told.keys() == wide.places.keys()
    for value, place in told.items():
        assert wide.places[value].centre == pytest.approx(place.centre)
        assert wide.places[value].half_extent == pytest.approx(place.half_extent)


def test_the_vision_grid_is_that_of_the_runtime(case: Case):
    """Whole, wider and cut: what the service's resampling makes of the same voxels, to the rounding of grey values."""
    checkpoint = phantom_checkpoint({})
    grids = Grids(checkpoint, CaseStore(case.voxels.path.parent, range(FIRST_SEED, FIRST_SEED + 1), WIDE))
    wide = case.widened(np.random.default_rng(1))
    cut = np.array([[3, 30], [10, 200], [40, 250]])
    parts = Parts.of([case, wide, case], [np.array([(0, n) for n in c.geometry.shape]) for c in (case, wide)] + [cut])
    views = grids.views(parts.seeds, parts.edges)
    phantom = make_phantom(FIRST_SEED, illness=ILL)
    shown = [
        (phantom.hu, phantom.labels),
        tuple(
            np.pad(array, ((0, 0), *wide.air), constant_values=air)
            for array, air in ((phantom.hu, -1024), (phantom.labels, 0))
        ),
        tuple(array[3:30, 10:200, 40:250] for array in (phantom.hu, phantom.labels)),
    ]
    for (hu, labels), seen, kinds in zip(shown, views.hu, views.kinds, strict=True):
        expected = to_grid(np.ascontiguousarray(hu).clip(-1000, 400), checkpoint.vision.grid)
        assert np.abs(seen.numpy() - expected).max() < 5.0
        at = [(np.arange(n) + 0.5) * (m / n) for n, m in zip(checkpoint.vision.grid, labels.shape, strict=True)]
        d, r, c = (a.astype(int) for a in at)
        assert np.array_equal(kinds.numpy(), by_kind(case.truth)[labels[d][:, r][:, :, c]])


def test_a_tracked_slice_is_corrected_behind_the_one_before_it():
    """On either side of the prompted slice; then two slices in a row are tracked, neither of which conditions."""
    rng = np.random.default_rng(0)
    clips = [clip_slices(rng) for _ in range(400)]
    assert {corrected for _, corrected in clips} == {-1, 0, 2}
    tracked = [numbers for numbers, corrected in clips if corrected == 2]
    for _, before, far, *behind in tracked:
        assert abs(far) - abs(before) == 1
        assert before * far > 0
        assert len(set(behind) - {0, far}) == 2
        assert min(0, far) < behind[0] <= max(0, far) + 2
    assert all(numbers == (0, 1, 2, 3, 4) for numbers, corrected in clips if corrected < 2)
    assert 0.4 < np.mean([numbers[2] < 0 for numbers in tracked]) < 0.6


def test_an_object_is_mistaken_for_what_lies_on_the_corrected_slice(out: Path):
    """For another one, alone or beside itself; never where nothing is corrected."""
    learner = train.learner("clips", out, "cpu")
    drawn = [learner.draw(step, np.random.default_rng(step)) for step in range(1, 24)]
    assert not any(d.mistaken.any() for d in drawn if int(d.corrected) < 0)
    mistaken = 0
    for clip in (d for d in drawn if int(d.corrected) >= 0):
        at = int(clip.corrected)
        which = clip.mistaken.any(1)
        mistaken += int(which.sum())
        assert torch.equal(clip.mistakes(at).flatten(1).any(1), which)
    assert mistaken > 3


def test_findings_count_by_the_cells_that_have_them():
    """One cell of thousands teaches as much as one of ten; what is right already teaches next to nothing."""

    def loss(cells: int, said: float) -> float:
        there = torch.zeros(1, cells, len(FindingKind))
        there[0, 0, 0] = 1.0
        read = torch.full((1, cells, READ), -12.0)
        read[0, 0, len(ORGANS)] = said
        held = Cells(torch.zeros(1, cells, len(ORGANS)), there, torch.zeros_like(there))
        return float(read_cells(read, held)[0] - read_cells(torch.full_like(read, -12.0), held)[0])

    assert loss(4000, 0.0) == pytest.approx(loss(10, 0.0), rel=1e-3)
    assert loss(10, 6.0) < loss(10, 0.0) < 0.0


def test_lesions_lie_where_a_part_shows_them(case: Case):
    """In its own shares, however it is cut or widened; those whose middle is cut off are left out."""
    shape = np.array(case.geometry.shape)
    whole = np.stack([np.zeros(3, int), shape], 1)
    found = lesions(case, whole, whole)
    known = [f for f in case.truth.findings if (f.kind, f.organ) in LESIONS]
    assert len(found) == len(known) > 0
    for row, finding in zip(found, known, strict=True):
        at = np.argwhere(case.voxels.labels == finding.value)
        assert LESIONS[int(row[0])] == (finding.kind, finding.organ)
        assert np.abs(row[1:4] * shape - (at.min(0) + at.max(0) + 1) / 2).max() < 1e-3
    half = whole.copy()
    half[0, 1] = int(found[0, 1] * shape[0]) + 1
    part = lesions(case, whole, half)
    assert len(part) == sum(row[1] * shape[0] < half[0, 1] for row in found)
    assert part[0, 1] * half[0, 1] == pytest.approx(found[0, 1] * shape[0])
    assert part[0, 4] * half[0, 1] == pytest.approx(found[0, 4] * shape[0])
    widened = Parts.of([case.widened(np.random.default_rng(0)), case]).lesions
    assert torch.equal(widened[1], padded([found])[0])
    assert torch.allclose(widened[0, :, :2], widened[1, :, :2])


def test_a_lesion_is_found_in_the_cell_of_its_middle():
    """Not in those beside it, unless that is where another one is; nothing that fills up a batch is looked for."""
    cells, kinds = (4, 4, 4), len(LESIONS)
    size = [0.2, 0.2, 0.2]
    drawn = padded(
        [np.array([[0, 0.4, 0.4, 0.4, *size], [0, 0.4, 0.4, 0.9, *size]], np.float32), np.zeros((0, 7), np.float32)]
    )
    right = torch.full((2, 4, 4, 4, kinds), -9.0)
    right[0, 1, 1, [1, 3], 0] = 9.0
    middles = torch.cartesian_prod(*[torch.arange(4) + 0.5] * 3)
    nearest = torch.full((64, 3), 1.6)
    nearest[middles[:, 2] > 3, 2] = 3.6
    outlines = torch.full((2, 64, 6), math.log(0.2 * 4))
    outlines[0, :, :3] = nearest - middles
    least, shown = region_loss(right.flatten(1, 3), outlines, drawn, cells)
    assert least < 1e-3
    assert (shown["regions"], shown["beside"]) == (1.0, 0.0)
    for at, kind in (((0, 1, 1, 1), 1), ((1, 1, 1, 1), 0), ((0, 3, 3, 3), 0)):
        wrong = right.clone()
        wrong[(*at, kind)] = 9.0
        loss, shown = region_loss(wrong.flatten(1, 3), outlines, drawn, cells)
        assert loss > 1.0
        assert shown["beside"] == 0.5
    assert shown["off"] < 1e-6
    elsewhere = outlines.clone()
    elsewhere[0, :, 0] += 0.3
    assert region_loss(right.flatten(1, 3), elsewhere, drawn, cells)[0] > 10 * least
    beside = right.clone()
    beside[0, 1, 1, 0, 0] = 9.0
    assert least < region_loss(beside.flatten(1, 3), outlines, drawn, cells)[0] < loss


def test_every_fiftieth_case_shows_no_patient(tmp_path: Path):
    """Nothing is in it, and it says so."""
    seed = FIRST_SEED + 49
    case = CaseStore(tmp_path, range(seed, seed + 1), WIDE).get(seed)
    assert not case.voxels.labels.any()
    assert case.places == {}
    said = utterances(case, phantom_checkpoint({}).language.prompts, np.random.default_rng(0))
    assert "The study cannot be assessed." in said[0].answer
    assert not any(target.place for one in said for target in one.targets)


def test_a_case_that_is_looked_at_once_keeps_no_voxels(tmp_path: Path):
    """They are the same as those that are kept, when it is new and when it is made anew."""
    kept = CaseStore(tmp_path / "kept", range(FIRST_SEED, FIRST_SEED + 1), WIDE)
    once = replace(kept, folder=tmp_path / "once", once=True)
    case, *others = kept.get(FIRST_SEED), once.get(FIRST_SEED), once.get(FIRST_SEED)
    for other in others:
        assert np.array_equal(other.voxels.grey, case.voxels.grey)
        assert np.array_equal(other.voxels.labels, case.voxels.labels)
        assert (other.voxels.shape, other.truth, other.places) == (case.voxels.shape, case.truth, case.places)
    (path,) = (tmp_path / "once").iterdir()
    assert path.suffix == ".json"
    path.write_text(path.read_text("utf-8").replace(f'"seed": {FIRST_SEED}', '"seed": 1'), "utf-8")
    with pytest.raises(SetupError, match="does not draw the phantom"):
        once.get(FIRST_SEED).voxels.labels.any()


def test_places_are_shares_of_the_volume():
    """Half-open boxes of every value, whatever their shape."""
    labels = np.zeros((4, 8, 16), np.uint8)
    labels[1, 2:4, 3] = 7
    labels[2, 5, 9:11] = 7
    assert places(labels) == {7: Place((0.5, 0.5, 7 / 16), (0.25, 0.25, 4 / 16))}


def test_a_descriptor_says_kind_presence_and_place():
    """An organ's place is about its lesions too; nobody asks for the body."""
    truth = Truth(seed=0, organs={}, findings=(), names={1: "body", 7: "liver"})
    (liver,) = targets(truth, {1: Place((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), 7: Place((0.4, 0.3, 0.2), (0.1, 0.1, 0.1))})
    told, untold = (descriptor(liver, None, placed=placed) for placed in (True, False))
    assert told[:-8].sum() == untold[:-8].sum() == 1
    assert told[-8:].tolist() == pytest.approx([1, 1, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1])
    assert untold[-8:].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert len(told) == LENGTH
