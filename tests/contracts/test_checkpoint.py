"""``checkpoint.json`` is refused with a line for everything that is wrong with it."""

from __future__ import annotations

import json

import pytest

from medvl.contracts.checkpoint import PromptTemplates, load_checkpoint, parse_checkpoint
from medvl.contracts.errors import CheckpointError, UnknownLabel

REGIONS = {"count": 4, "kinds": 2, "channels": 8}
LOOK = {"kinds": [0], "likely": 4, "spots": 0, "channels": [2, 2, 2, 2, 2], "window": [0.5, 0.9]}
TOLD = {
    "kinds": [0, 1],
    "unsure": 0.5,
    "sure": 0.8,
    "doubtful": [0.1, 0.4],
    "taken_away": 0.7,
    "low_cells": [2, 2, 2],
    "high_cells": [1, 2, 2],
}
CHOOSING_REGIONS = {"min_score": 0.1, "min_share": 0.1, "regions": {"min_score": 0.3, "reach": 1.5}}


def test_a_good_checkpoint_is_read(checkpoint_fields):
    """Fields come back as frozen values, and derived ones follow."""
    checkpoint = parse_checkpoint(json.dumps(checkpoint_fields))
    assert checkpoint.vision_tokens == 12
    assert checkpoint.label("lung_left").window == "lung"


def test_the_digest_depends_on_the_content_alone(checkpoint_fields):
    """Key order and white space do not change the digest; any value does."""
    shuffled = json.dumps(dict(reversed(checkpoint_fields.items())), indent=3)
    digest = parse_checkpoint(json.dumps(checkpoint_fields)).digest
    assert parse_checkpoint(shuffled).digest == digest
    checkpoint_fields["files"]["sam2.safetensors"] = "1" * 64
    assert parse_checkpoint(json.dumps(checkpoint_fields)).digest != digest


@pytest.mark.parametrize(
    ("break_it", "line"),
    [
        (lambda c: c.update(colour="red"), "colour: Extra inputs are not permitted (found 'red')"),
        (lambda c: c.pop("vision"), "vision: Field required"),
        (
            lambda c: c["segmentation"].update(side=250),
            "segmentation.side: Input should be a multiple of 32",
        ),
        (
            lambda c: c["segmentation"].update(max_conditioning_slices=11),
            "segmentation.max_conditioning_slices: Input should be less than or equal to 10",
        ),
        (lambda c: c["vision"].update(window="bone"), "windows ['bone'] are named but not defined"),
        (
            lambda c: c["windows"].update(bad=[3.0, 3.0]),
            "windows ['bad'] have a lower bound that is not below",
        ),
        (lambda c: c["labels"].append({"name": "liver"}), "a label is listed twice"),
        (lambda c: c.update(name="n" * 65), "name: String should have at most 64 characters"),
        (
            lambda c: c["labels"][0]["snomed"].update(meaning="m" * 65),
            "labels.0.snomed.meaning: String should have at most 64 characters",
        ),
        (
            lambda c: c["labels"][0]["snomed"].update(code="1" * 17),
            "labels.0.snomed.code: String should match pattern '^[0-9]{6,16}$'",
        ),
        (
            lambda c: c["labels"][0]["snomed"].update(meaning=""),
            "labels.0.snomed.meaning: String should have at least 1 character",
        ),
        (lambda c: c["language"]["prompts"].update(ask="?"), "prompt ask lacks {question}"),
        (lambda c: c["language"]["prompts"].update(segment_answer="no"), "prompt segment_answer must hold [SEG] once"),
        (lambda c: c["files"].update(x="short"), "files.x: String should match pattern"),
        (lambda c: c["segmentation"].update(proposals=CHOOSING_REGIONS), "proposals.regions needs vision.regions"),
        (
            lambda c: c["vision"].update(regions=REGIONS | {"looks": [LOOK | {"kinds": [0, 2]}]}),
            "looks: kinds [0, 2] are not different ones of 2",
        ),
        (lambda c: c["vision"].update(regions=REGIONS | {"looks": [LOOK, LOOK]}), "looks: kinds [0, 0] are not"),
        (
            lambda c: c["vision"].update(regions=REGIONS | {"looks": [LOOK | {"window": [0.5, 1.1]}]}),
            "window (0.5, 1.1) is not a part of 0 to 1",
        ),
        (lambda c: c["projector"].update(told=TOLD), "projector.told needs vision.regions"),
        (
            lambda c: (c["projector"].update(told=TOLD | {"kinds": [2]}), c["vision"].update(regions=REGIONS)),
            "told.kinds (2,) are not among 2",
        ),
        (lambda c: c["projector"].update(told=TOLD | {"high_cells": [2, 1, 1]}), "told: (2, 1, 1) are not 4 tokens"),
        (lambda c: c["projector"].update(told=TOLD | {"sure": 0.4}), "told needs doubtful <= unsure < sure"),
    ],
)
def test_a_broken_field_is_named(checkpoint_fields, break_it, line):
    """Each mismatch is one line: the field, what was expected, what was found."""
    break_it(checkpoint_fields)
    with pytest.raises(CheckpointError) as caught:
        parse_checkpoint(json.dumps(checkpoint_fields))
    assert line in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_every_mismatch_is_told_at_once(checkpoint_fields):
    """Two broken fields are two lines."""
    checkpoint_fields["trained"] = "perhaps"
    checkpoint_fields["format"] = 2
    with pytest.raises(CheckpointError) as caught:
        parse_checkpoint(json.dumps(checkpoint_fields))
    assert len(str(caught.value).splitlines()) == 2


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    """A folder that is no checkpoint is refused, not read."""
    with pytest.raises(CheckpointError, match=r"holds no checkpoint\.json: it is not a checkpoint"):
        load_checkpoint(tmp_path)


def test_an_unknown_label_lists_the_known_ones(checkpoint_fields):
    """The caller learns which classes there are."""
    with pytest.raises(UnknownLabel, match=r"knows no class 'spleen'; it knows liver, lung_left\."):
        parse_checkpoint(json.dumps(checkpoint_fields)).label("spleen")


def test_prompts_tell_the_extent_of_the_series_and_take_words_as_they_are():
    """Rounded to 10 mm; a caller who writes a placeholder gets it back."""
    prompts = PromptTemplates(
        report="{extent}.",
        ask="{extent}: {question}?",
        segment_label="{label}",
        segment_text="{extent}; {text}",
        segment_answer="[SEG]",
    )
    extent_mm = (318.0, 384.0, 405.1)
    assert prompts.for_report(extent_mm) == "320 x 380 x 410 mm."
    assert prompts.for_question("{extent}", extent_mm) == "320 x 380 x 410 mm: {extent}?"
    assert prompts.for_text("{text} {label}", extent_mm) == "320 x 380 x 410 mm; {text} {label}"
    assert prompts.for_label("liver", extent_mm) == "liver"
