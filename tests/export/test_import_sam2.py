"""SAM2 of 2024 is SAM2.1 with zeros: an imported checkpoint tracks as the original does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sam2.build_sam import build_sam2

from medvl.export.importing.importer import import_checkpoint
from medvl.network.modules import Modules
from medvl.network.sam2_build import sam_config

from . import public_files, public_layouts


def original(tensors):
    """SAM2 under its own configuration, at the sizes of these files."""
    config, overrides = sam_config(public_files.spec().segmentation)
    assert config == "configs/sam2.1/sam2.1_hiera_t.yaml"
    sam = build_sam2(
        "configs/sam2/sam2_hiera_t.yaml",
        device=None,
        mode="eval",
        hydra_overrides_extra=overrides,
        apply_postprocessing=False,
    )
    sam.load_state_dict(tensors, strict=True)
    return sam


@torch.inference_mode()
def track(sam, frames):
    """Click on the first frame, follow the object through the others; return logits and pointers."""
    outputs = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    found = []
    for i, frame in enumerate(frames):
        _, features, positions, sizes = sam._prepare_backbone_features(sam.forward_image(frame[None]))
        click = {"point_coords": torch.tensor([[[60.0, 50.0]]]), "point_labels": torch.ones(1, 1, dtype=torch.int32)}
        out = sam.track_step(i, i == 0, features, positions, sizes, None if i else click, None, outputs, len(frames))
        outputs["non_cond_frame_outputs" if i else "cond_frame_outputs"][i] = out
        found += [out["pred_masks"], out["obj_ptr"], out["maskmem_features"]]
    return found


@pytest.mark.parametrize("score", [5.0, -5.0], ids=["present", "absent"])
def test_imported_sam2_tracks_as_the_original(tmp_path, score):
    """Equal to the last bit but for sums in another order, where the object is there and where it is not."""
    sources = public_files.write_all(tmp_path / "disk")
    tensors = public_layouts.values(public_files.HIERA.layout_of_2_0(), 8)
    tensors["sam_mask_decoder.pred_obj_score_head.layers.2.bias"].fill_(score)
    torch.save({"model": tensors}, tmp_path / "sam2_hiera_tiny.pt")
    result = import_checkpoint(
        replace(sources, sam2=tmp_path / "sam2_hiera_tiny.pt"), public_files.spec(), tmp_path / "out", lambda _: None
    )
    frames = torch.randn(4, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    expected = track(original(tensors), frames)
    found = track(Modules.load(result.folder, result.checkpoint).sam2, frames)
    assert len(expected) == 12
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(expected, found, strict=True))
    assert not torch.allclose(expected[0], expected[3], atol=1e-3) or score < 0
