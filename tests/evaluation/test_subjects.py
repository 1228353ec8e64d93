"""The reference as a subject is the torch reference, whatever it keeps of a volume; a service is asked the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medvl.client import Box, Point, Quantisation
from medvl.client import ObjectPrompt as ServedPrompt
from medvl.contracts.errors import InvalidRequest
from medvl.embedded.preset import write_untrained
from medvl.embedded.scanner import Protocol
from medvl.evaluation.cases import Case
from medvl.evaluation.clicks import Click, VoxelBox
from medvl.evaluation.subjects import ReferenceSubject, ServedSubject
from medvl.imaging.geometry import Geometry
from medvl.imaging.volume import Volume
from medvl.network.model import ReferenceModel
from medvl.network.prompts import BOX_FIRST, BOX_SECOND, NEGATIVE, POSITIVE, ObjectPrompt

TINY = Protocol(slices=(4, 4), side=32, spacing_mm=(40.0, 90.0))
AXES = ((0, 0, 1), (0, 1, 0), (1, 0, 0))
VOLUME = Volume(np.zeros((4, 6, 8), np.int16), Geometry((4, 6, 8), (5.0, 1.0, 2.0), (10.0, 20.0, 30.0), AXES))


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


def test_clicks_and_boxes_prompt_the_model(folder: Path, reference: ReferenceSubject):
    """As corrections, from the mask of the clicks before or from the beginning; a box on its middle slice."""
    model, volume = ReferenceModel.load(folder), Case.make(2, TINY).volume
    clicks = [Click((1, 10, 10)), Click((3, 25, 25), negative=True), Click((2, 12, 8))]
    first, second, third = (
        {1: (model.point(volume, 10, 10, POSITIVE),)},
        {3: (model.point(volume, 25, 25, NEGATIVE),)},
        {2: (model.point(volume, 12, 8, POSITIVE),)},
    )
    for count in (1, 2, 3):
        wanted = model.segment(volume, ObjectPrompt(0, first, corrections=(second, third)[: count - 1])).mask
        assert np.array_equal(reference.segment_points(volume, clicks[:count]), wanted), count
    corners = (model.point(volume, 9.5, 8.5, BOX_FIRST), model.point(volume, 20.5, 22.5, BOX_SECOND))
    boxed = model.segment(volume, ObjectPrompt(0, {1: corners}, first_slice=0, last_slice=2)).mask
    assert np.array_equal(reference.segment_box(volume, VoxelBox((0, 9.5, 8.5), (2, 20.5, 22.5))), boxed)


def test_clicks_on_another_volume_begin_again(folder: Path, reference: ReferenceSubject):
    """The mask of the clicks before is that of its own volume."""
    model = ReferenceModel.load(folder)
    first, second = (Case.make(seed, TINY).volume for seed in (2, 4))
    reference.segment_points(first, [Click((1, 10, 10))])
    found = reference.segment_points(second, [Click((1, 10, 10)), Click((2, 12, 8))])
    at, further = (model.point(second, row, column, POSITIVE) for row, column in ((10, 10), (12, 8)))
    wanted = model.segment(second, ObjectPrompt(0, {1: (at,)}, corrections=({2: (further,)},))).mask
    assert np.array_equal(found, wanted)


def test_a_mask_of_what_is_not_found_is_empty(reference: ReferenceSubject, monkeypatch: pytest.MonkeyPatch):
    """Whatever voxels it has."""
    volume = Case.make(2, TINY).volume
    for found in (True, False):
        mask = SimpleNamespace(mask=np.ones(volume.hu.shape, bool), found=found, known=None)
        for name in ("segment", "segment_label", "segment_text"):
            monkeypatch.setattr(ReferenceModel, name, lambda *_, mask=mask, **__: mask)
        for masked in (
            reference.segment_label(volume, "liver"),
            reference.segment_text(volume, "the cyst"),
            reference.segment_points(volume, [Click((1, 10, 10))]),
            reference.segment_box(volume, VoxelBox((0, 9.5, 8.5), (2, 20.5, 22.5))),
        ):
            assert masked.all() == masked.any() == found


def test_each_seg_of_a_report_is_segmented(reference: ReferenceSubject, monkeypatch: pytest.MonkeyPatch):
    """By its own state, in the order of the text."""
    said = SimpleNamespace(text="A report.", seg_hidden=[np.full(4, n, np.float32) for n in (3, 1, 2)])

    def segment(_: ReferenceModel, volume: Volume, prompt: ObjectPrompt) -> SimpleNamespace:
        return SimpleNamespace(mask=np.full(volume.hu.shape, prompt.seg_hidden[0]), found=True)

    monkeypatch.setattr(ReferenceModel, "report", lambda *_: said)
    monkeypatch.setattr(ReferenceModel, "segment", segment)
    text, masks = reference.report_masks(VOLUME)
    assert (text, [mask.max() for mask in masks]) == ("A report.", [3, 1, 2])


@dataclass
class Service:
    """A service on a grid of 4 slices; notes what it is asked, and answers each object with its number."""

    quantisation: Quantisation | None = None
    asked: list[tuple[str, object]] = field(default_factory=list)

    def describe(self) -> SimpleNamespace:
        return SimpleNamespace(
            provenance=SimpleNamespace(
                checkpoint_digest="a" * 64, software="medvl-sam2 0", triton_version="2", quantisation=self.quantisation
            )
        )

    def segment(self, volume: Volume, prompts: list[ServedPrompt]) -> SimpleNamespace:
        (prompt,) = prompts
        self.asked.append(("segment", prompt))
        return self._answer("", 0)

    def report(self, volume: Volume) -> SimpleNamespace:
        self.asked.append(("report", None))
        return self._answer("A report.", 2, 0, 1)

    def ask(self, volume: Volume, question: str) -> SimpleNamespace:
        self.asked.append(("ask", question))
        return self._answer("An answer.")

    @staticmethod
    def _answer(text: str, *objects: int) -> SimpleNamespace:
        masks = [SimpleNamespace(object_index=n, array=np.full((4, 6, 8), n)) for n in objects]
        return SimpleNamespace(collect=lambda: SimpleNamespace(text=text, masks=masks))


def prompted(act: Callable[[ServedSubject], object]) -> ServedPrompt:
    service = Service()
    act(ServedSubject(service, "a" * 64))
    ((_, prompt),) = service.asked
    return prompt


def test_clicks_reach_the_service_as_corrections():
    """Slice, row and column in patient millimetres: the first tells the object, each other corrects what came back."""
    clicks = [Click((1, 2, 3)), Click((2, 3, 4), negative=True), Click((0, 0, 0))]
    prompt = prompted(lambda subject: subject.segment_points(VOLUME, clicks))
    assert prompt.points == (
        Point((10 + 3 * 2.0, 20 + 2 * 1.0, 30 + 1 * 5.0), negative=False, correction=0),
        Point((10 + 4 * 2.0, 20 + 3 * 1.0, 30 + 2 * 5.0), negative=True, correction=1),
        Point((10.0, 20.0, 30.0), negative=False, correction=2),
    )
    assert (prompt.label, prompt.text, prompt.boxes) == ("", "", ())


def test_a_box_reaches_the_service_by_its_corners():
    """Its edges between pixels are half a pixel beyond their centres."""
    prompt = prompted(lambda subject: subject.segment_box(VOLUME, VoxelBox((1, 0.5, 1.5), (3, 4.5, 6.5))))
    assert prompt.boxes == (Box((13.0, 20.5, 35.0), (23.0, 24.5, 45.0)),)
    assert (prompt.label, prompt.text, prompt.points) == ("", "", ())


def test_words_reach_the_service():
    """A class as a class, a text as a text."""
    by_label = prompted(lambda subject: subject.segment_label(VOLUME, "liver"))
    by_text = prompted(lambda subject: subject.segment_text(VOLUME, "the cyst"))
    assert [(p.label, p.text, p.points, p.boxes) for p in (by_label, by_text)] == [
        ("liver", "", (), ()),
        ("", "the cyst", (), ()),
    ]


def test_what_a_service_says_comes_back():
    """Texts as they are; masks of a report in the order of its [SEG], in whatever order they arrive."""
    subject = ServedSubject(Service(), "a" * 64)
    text, masks = subject.report_masks(VOLUME)
    assert (subject.report(VOLUME), text, subject.ask(VOLUME, "?")) == ("A report.", "A report.", "An answer.")
    assert [int(mask.max()) for mask in masks] == [0, 1, 2]


def test_a_quantised_service_is_another_software():
    """Figures that are kept of it are not taken for those of the checkpoint as it is."""
    fp8 = Quantisation("fp8", "float", 8, 8, "float16", "0123456789abcdef")
    assert ServedSubject(Service(), "a" * 64).software == "medvl-sam2 0"
    quantised = ServedSubject(Service(fp8), "a" * 64)
    assert quantised.software == f"medvl-sam2 0 with a language model of {fp8}, 0123456789ab"
    assert quantised.triton_version == "2"


def test_a_service_with_another_checkpoint_is_refused():
    """Its figures would bear the wrong name."""
    with pytest.raises(InvalidRequest, match="aaaaaaaaaaaa"):
        ServedSubject(Service(), "b" * 64)
