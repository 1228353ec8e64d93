"""Every public tensor lands, nothing is left over, and what does not fit is named: at real size, from headers alone."""

from __future__ import annotations

import json
from math import prod

import pytest
import torch

from medvl.contracts.checkpoint import Checkpoint
from medvl.contracts.errors import CheckpointError, InvalidRequest
from medvl.export.importing.options import Sources
from medvl.export.importing.plan import make_plan
from medvl.export.presets import MED3DVLM_7B, resolve_spec

from . import public_layouts as public

SEG = public.seg_projector(3584, 256)
TINY = public.HIERA["sam2.1_hiera_t"].layout()


def spec(**segmentation: object) -> Checkpoint:
    fields = resolve_spec(MED3DVLM_7B).model_dump()
    fields["segmentation"] |= segmentation
    return Checkpoint.model_validate(fields)


def write(folder, *, model=public.MED3DVLM_7B, sam2=TINY, seg=SEG):
    """Write what somebody has: a folder in shards, and two files."""
    model_folder = folder / "Med3DVLM-Qwen-2.5-7B"
    model_folder.mkdir()
    (model_folder / "config.json").write_text(json.dumps(public.QWEN_7B.config()))
    public.write_sparse_shards(model_folder, model, 4)
    public.write_sparse(folder / "sam2.safetensors", sam2)
    public.write_sparse(folder / "text_hidden_fcs.safetensors", seg)
    return Sources(model_folder, folder / "sam2.safetensors", folder / "text_hidden_fcs.safetensors")


def landed(plan) -> int:
    return sum(len(tensors) for tensors in plan.parts.values())


def wrong_lines(sources, checkpoint=None) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        make_plan(sources, checkpoint or spec())
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("parameters", "layout"),
    [
        (38.96, public.HIERA["sam2.1_hiera_t"].layout()),
        (46.06, public.HIERA["sam2.1_hiera_s"].layout()),
        (80.85, public.HIERA["sam2.1_hiera_b+"].layout()),
        (224.45, public.HIERA["sam2.1_hiera_l"].layout()),
        (7615.62, public.Qwen(152_064, 3584, 18944, 28, 28, 4).layout()),
    ],
)
def test_the_fixtures_are_of_the_published_size(parameters, layout):
    """What was written down by hand has as many parameters (millions) as the public models."""
    assert public.parameters(layout) / 1e6 == pytest.approx(parameters, abs=0.006)


@pytest.mark.parametrize(
    ("architecture", "side"),
    [*((name, 1024) for name in public.HIERA), ("sam2.1_hiera_t", 512), ("sam2.1_hiera_l", 512)],
)
def test_every_public_tensor_lands(tmp_path, architecture, side):
    """Med3DVLM in shards, SAM2.1 of every size (MedSAM2 is the tiny one at 512), and a [SEG] projector."""
    sam2 = public.HIERA[architecture].layout()
    plan = make_plan(write(tmp_path, sam2=sam2), spec(architecture=architecture, side=side))
    assert landed(plan) == len(public.MED3DVLM_7B) + len(sam2) + len(SEG)
    assert set(plan.parts["sam2"]) == set(sam2)
    assert plan.parts["seg_projector"].keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert "encoder.s3.5.dwconv.c3.1.running_var" in plan.parts["vision_encoder"]
    assert "high_mixer.1.mlp2.mm_projector.1.1.weight" in plan.parts["projector"]
    assert plan.config.vocab_size == 151_667
    assert {t.header.dtype for t in plan.parts["llm"].values()} == {"BF16"}
    assert plan.notes == ()


@pytest.mark.parametrize("architecture", public.HIERA)
def test_sam2_of_2024_lands_in_sam2_1(tmp_path, architecture):
    """What SAM2 lacks is filled with zeros, and said."""
    sam2 = public.HIERA[architecture].layout_of_2_0()
    plan = make_plan(write(tmp_path, sam2=sam2), spec(architecture=architecture))
    assert landed(plan) == len(public.MED3DVLM_7B) + len(sam2) + 3 + len(SEG)
    assert [bool(plan.parts["sam2"][n].read().any()) for n in plan.parts["sam2"].keys() - sam2.keys()] == [False] * 3
    (note,) = plan.notes
    assert note.startswith("The weights are those of SAM2: ")


def test_unmerged_adapters_land(tmp_path):
    """The whole state dict of a PEFT model: 196 adapters are merged, and no name of PEFT's stays."""
    peft = public.with_adapters(public.QWEN_7B, public.MED3DVLM_7B, 16)
    files = write(tmp_path)
    public.write_sparse(tmp_path / "model_with_lora.safetensors", peft)
    sources = Sources(
        tmp_path / "model_with_lora.safetensors",
        files.sam2,
        files.seg_projector,
        language=files.med3dvlm,
        lora_alpha=32.0,
    )
    plan = make_plan(sources, spec())
    assert len(peft) == len(public.MED3DVLM_7B) + 2 * 28 * 7
    assert plan.parts["llm"].keys() == public.QWEN_7B.layout().keys()
    assert plan.notes == ("196 LoRA adapters were merged in FP32.",)


def test_adapters_without_alpha_are_refused(tmp_path):
    """A state dict does not say it, and a guess would be another model."""
    files = write(tmp_path)
    peft = public.with_adapters(public.QWEN_7B, public.MED3DVLM_7B, 16)
    public.write_sparse(tmp_path / "lora.safetensors", peft)
    sources = Sources(tmp_path / "lora.safetensors", files.sam2, files.seg_projector, language=files.med3dvlm)
    with pytest.raises(InvalidRequest, match=r"of rank 16, .* give --lora-alpha"):
        make_plan(sources, spec())


def test_a_checkpoint_in_one_piece_lands(tmp_path):
    """Language model, vision, [SEG] projector and SAM2 in one state dict, with Sa2VA's names for the last two."""
    sam2 = TINY
    whole = public.MED3DVLM_7B | SEG | public.of_sa2va(sam2)
    sources = write(tmp_path, model=whole)
    plan = make_plan(Sources(sources.med3dvlm), spec())
    assert landed(plan) == len(whole)
    assert set(plan.parts["sam2"]) == set(sam2)


def test_the_projector_of_a_list_lands(tmp_path):
    """LISA keeps ``text_hidden_fcs`` in a list of one."""
    seg = {name.replace("text_hidden_fcs.", "text_hidden_fcs.0."): tensor for name, tensor in SEG.items()}
    plan = make_plan(write(tmp_path, seg=seg), spec())
    assert plan.parts["seg_projector"].keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}


@pytest.mark.parametrize(
    ("where", "name", "lands"),
    [
        ("model", "model.vision_tower.vision_tower.encoder.s2.1.scale", "vision_encoder: encoder.s2.1.scale"),
        ("model", "model.mm_projector.low_mixer.0.ln1.bias", "projector: low_mixer.0.ln1.bias"),
        ("model", "model.layers.27.self_attn.k_proj.bias", "llm: model.layers.27.self_attn.k_proj.bias"),
        ("model", "lm_head.weight", "llm: lm_head.weight"),
        ("sam2", "memory_encoder.fuser.layers.1.gamma", "sam2: memory_encoder.fuser.layers.1.gamma"),
        ("sam2", "obj_ptr_tpos_proj.bias", "sam2: obj_ptr_tpos_proj.bias"),
        ("seg", "text_hidden_fcs.2.weight", "seg_projector: 2.weight"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, where, name, lands):
    """Missing, of another shape, of another type, renamed: one line each, what was expected, what was found."""
    layouts = {"model": public.MED3DVLM_7B, "sam2": TINY, "seg": SEG}
    layout, (dtype, shape) = layouts[where], layouts[where][name]
    damages = {
        "missing": {n: t for n, t in layout.items() if n != name},
        "shape": layout | {name: (dtype, (*shape[:-1], shape[-1] + 1))},
        "type": layout | {name: ("I64", shape)},
        "extra": layout | {f"{name}.stranger": (dtype, shape)},
    }
    lines = {}
    for damage, damaged in damages.items():
        (tmp_path / damage).mkdir()
        (lines[damage],) = wrong_lines(write(tmp_path / damage, **{where: damaged}))
    assert lines["missing"] == f"{lands}: expected, but missing"
    expected = f": {name}: expected {'BF16' if lands.startswith('llm') else 'F32'} {list(shape)}, found "
    assert lines["shape"].endswith(f"{expected}F32 {[*shape[:-1], shape[-1] + 1]}")
    assert lines["type"].endswith(f"{expected}I64 {list(shape)}")
    assert f": {name}.stranger: found, but " in lines["extra"]
    assert all(lines[damage].split(":")[0].endswith(".safetensors") for damage in ("shape", "type", "extra"))


def test_another_size_of_sam2_is_told_by_its_tensors(tmp_path):
    """Weights of ``large`` under the architecture of ``tiny`` are refused, tensor by tensor."""
    lines = wrong_lines(write(tmp_path, sam2=public.HIERA["sam2.1_hiera_l"].layout()))
    assert (
        "sam2.safetensors: image_encoder.trunk.patch_embed.proj.weight: expected F32 [96, 3, 7, 7], "
        "found F32 [144, 3, 7, 7]" in lines
    )


def test_a_part_that_nobody_gave_is_one_line(tmp_path):
    """The line names the option, not four hundred tensors."""
    sources = write(tmp_path)
    assert wrong_lines(Sources(sources.med3dvlm, seg_projector=sources.seg_projector)) == [
        "sam2: expected 471 tensors, found none: give --sam2"
    ]


def test_proposals_are_refused(tmp_path):
    """No public weights have them: one line says so, before any file is looked for."""
    checkpoint = spec(proposals={"min_score": 0.1, "min_share": 0.1})
    (line,) = wrong_lines(Sources(tmp_path / "nowhere"), checkpoint)
    assert line.startswith("segmentation.proposals: expected none")


def test_what_is_given_twice_is_refused_or_left_out(tmp_path):
    """Two sources of one tensor are both named; ``--leave`` decides."""
    sam2 = TINY
    sources = write(tmp_path, model=public.MED3DVLM_7B | public.of_sa2va(sam2))
    lines = wrong_lines(sources)
    assert len(lines) == len(sam2)
    assert lines[0].startswith("sam2.safetensors: image_encoder.neck.convs.0.conv.bias: found, but model-00004")
    left = Sources(sources.med3dvlm, sources.sam2, sources.seg_projector, leave=("grounding_encoder.*",))
    plan = make_plan(left, spec())
    assert len(plan.left) == len(sam2)
    assert plan.parts["sam2"]["maskmem_tpos_enc"].file == sources.sam2


def test_an_adapter_that_changes_nothing_known_is_named(tmp_path):
    """A factor without its partner, an adapter of another rank or of a layer that is not there."""
    good = public.adapters_alone(public.QWEN_7B, 8)
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    stranger = "base_model.model.model.layers.28.mlp.up_proj"
    damages = {
        "half": {n: t for n, t in good.items() if n != name},
        "rank": good | {name: ("F32", (18944, 4))},
        "layer": good | {f"{stranger}.lora_A.weight": ("F32", (8, 3584)), f"{stranger}.lora_B.weight": ("F32", (8, 8))},
    }
    sources = write(tmp_path)
    lines = {}
    for damage, layout in damages.items():
        folder = tmp_path / damage
        folder.mkdir()
        public.write_sparse(folder / "adapter_model.safetensors", layout)
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16}))
        given = Sources(sources.med3dvlm, sources.sam2, sources.seg_projector, lora=folder)
        (lines[damage],) = wrong_lines(given)
    assert lines["half"].endswith("up_proj.lora_A.weight: expected lora_A and lora_B, found one of them")
    assert lines["rank"].endswith("lora_B.weight: expected [18944, 8], found F32 [18944, 4]")
    assert lines["layer"].endswith("expected model.layers.28.mlp.up_proj.weight for it to change, but missing")


def test_nothing_of_that_is_read(tmp_path):
    """Thirty gigabytes are planned from headers: not one value is looked at."""
    sources = write(tmp_path)
    plan = make_plan(sources, spec())
    whole = sum(prod(t.header.shape) for tensors in plan.parts.values() for t in tensors.values())
    assert whole * 4 > 30e9
    on_disk = sum(f.stat().st_blocks * 512 for f in tmp_path.rglob("*") if f.is_file())
    assert on_disk < 1e6
    assert torch.equal(plan.parts["seg_projector"]["2.bias"].read(), torch.zeros(256))
