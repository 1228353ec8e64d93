"""The reference as a subject is the torch reference, and what it keeps of a volume changes no answer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medvl.contracts.errors import InvalidRequest
from medvl.embedded.preset import write_untrained
from medvl.embedded.scanner import Protocol
from medvl.evaluation.cases import Case
from medvl.evaluation.clicks import Click, VoxelBox
from medvl.evaluation.subjects import ReferenceSubject, ServedSubject
from medvl.network.model import ReferenceModel

TINY = Protocol(slices=(4, 4), side=32, spacing_mm=(40.0, 90.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom checkpoint with random weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_untrained(folder, 5)
    return folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> ReferenceSubject:
    return ReferenceSubject(folder)


def test_the_reference_answers_as_the_model_does(folder: Path, reference: ReferenceSubject):
    """For a volume, another one, and the first again: nothing of one gets into the answers about the other."""
    model, question, text = ReferenceModel.load(folder), "Is the liver normal?", "the cyst in the liver"
    first, second = (Case.make(seed, TINY).volume for seed in (2, 4))
    assert reference.report(first) == model.report(first).text
    answers = {volume: model.ask(volume, question).text for volume in (first, second)}
    masks = {volume: model.segment_text(volume, text).mask for volume in (first, second)}
    assert answers[first] != answers[second]
    assert np.array_equal(reference.segment_label(first, "liver"), model.segment_label(first, "liver").mask)
    for volume in (first, second, first):
        assert reference.ask(volume, question) == answers[volume]
        assert np.array_equal(reference.segment_text(volume, text), masks[volume])


def test_points_and_boxes_reach_the_slices_that_they_name(reference: ReferenceSubject):
    """A box keeps to its slices; another click gives another mask; masks lie on the canonical grid."""
    volume = Case.make(2, TINY).volume
    boxed = reference.segment_box(volume, VoxelBox((1, 9.5, 9.5), (2, 20.5, 20.5)))
    assert boxed.shape == volume.geometry.shape
    assert set(np.flatnonzero(boxed.any((1, 2)))) <= {1, 2}
    one = reference.segment_points(volume, [Click((1, 10, 10))])
    two = reference.segment_points(volume, [Click((1, 10, 10)), Click((3, 25, 25), negative=True)])
    assert not np.array_equal(one, two)


def test_a_service_with_another_checkpoint_is_refused():
    """Its figures would bear the wrong name."""
    provenance = SimpleNamespace(
        checkpoint_digest="a" * 64, software="medvl-sam2 0", triton_version="2", quantisation=None
    )
    client = SimpleNamespace(describe=lambda: SimpleNamespace(provenance=provenance))
    assert ServedSubject(client, "a" * 64).software == "medvl-sam2 0"
    with pytest.raises(InvalidRequest, match="aaaaaaaaaaaa"):
        ServedSubject(client, "b" * 64)
