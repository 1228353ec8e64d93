"""A corrected mask does what its clicks say, where the checkpoint asks for that."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from medvl.contracts.checkpoint import SegmentationSpec
from medvl.network.heed import full, heeded, unstrayed
from medvl.network.memory_bank import Known
from medvl.network.prompts import BOX_FIRST, NEGATIVE, POSITIVE, ObjectPrompt, PromptPoint, SlicePrompt
from medvl.network.propagation import Propagation
from medvl.network.room import Room
from medvl.network.steps import Bank, Decoded, Remembered

SIDE, SIZE = 32, 4
NUMBER = 1

Mask = NDArray[np.bool_]


def mask(rows: slice, columns: slice) -> Mask:
    """Return a mask of the slice at a quarter of its side."""
    made = np.zeros((SIDE // SIZE, SIDE // SIZE), np.bool_)
    made[rows, columns] = True
    return made


NOTHING = mask(slice(0), slice(0))
LEFT, RIGHT, WHOLE = (mask(slice(2, 6), columns) for columns in (slice(0, 3), slice(5, 8), slice(0, 8)))


def click(column: int, label: int) -> PromptPoint:
    """Return a click into the middle of a place of the fourth row."""
    return PromptPoint(SIZE * (column + 0.5), SIZE * 3.5, label)


@pytest.mark.parametrize(
    ("column", "label", "within_px", "expected"),
    [
        (1, POSITIVE, 1.0, True),
        (4, POSITIVE, 8.0, True),
        (5, POSITIVE, 8.0, False),
        (2, NEGATIVE, 4.0, True),
        (0, NEGATIVE, 4.0, False),
        (7, NEGATIVE, 1.0, True),
        (7, BOX_FIRST, 1.0, True),
    ],
)
def test_a_click_is_heeded_where_it_is_near_its_side(column: int, label: int, within_px: float, expected: bool):
    """In pixels of the slice; the mask ends behind its third column."""
    assert heeded(LEFT, [click(column, label)], SIDE, within_px) is expected


def test_a_click_on_the_edge_of_the_slice_is_in_its_last_place():
    """Its pixel ends there."""
    corner = mask(slice(7, 8), slice(7, 8))
    assert heeded(corner, [PromptPoint(float(SIDE), float(SIDE), POSITIVE)], SIDE, 1.0)
    assert not heeded(corner, [PromptPoint(0.0, 0.0, POSITIVE)], SIDE, 1.0)


def test_an_empty_mask_heeds_no_positive_click_and_a_full_one_no_negative():
    """However far is near."""
    assert not heeded(NOTHING, [click(1, POSITIVE)], SIDE, 1e6)
    assert not heeded(~NOTHING, [click(1, NEGATIVE)], SIDE, 1e6)


def test_what_strays_is_cut():
    """What lies near the last mask stays; where there was none, nothing does."""
    assert np.array_equal(unstrayed(WHOLE, LEFT, SIDE, 4.0), mask(slice(2, 6), slice(0, 4)))
    assert not unstrayed(WHOLE, NOTHING, SIDE, 1e6).any()
    assert np.array_equal(full(LEFT, SIDE)[::SIZE, ::SIZE], LEFT)


@dataclass
class Stubborn:
    """Steps that find one mask with a prompt alone, and another one when they correct."""

    alone: Mask
    corrected: Mask
    taken: list[Mask] = field(default_factory=list)

    async def get(self, slices: Sequence[int]) -> Sequence[int]:
        return slices

    def expect(self, slices: Sequence[int]) -> None:
        pass

    async def decode(self, features: Sequence[int], prompts: Sequence[SlicePrompt]) -> Decoded[np.ndarray]:
        return self._decoded(LEFT if len(prompts[0].points) == 1 else self.alone)

    async def given(self, features: int, masks: Sequence[Mask]) -> Remembered[np.ndarray]:
        self.taken += masks
        return self._remembered(masks[0][::SIZE, ::SIZE])

    async def remember(self, features: int, mask_logits: np.ndarray, object_score: np.ndarray) -> np.ndarray:
        return mask_logits[:, 0]

    async def track(self, features: int, bank: Bank[np.ndarray]) -> Remembered[np.ndarray]:
        return self._remembered(LEFT)

    async def correct(
        self, features: int, bank: Bank[np.ndarray], points: Sequence[tuple[PromptPoint, ...]], mask_logits: np.ndarray
    ) -> Remembered[np.ndarray]:
        return self._remembered(self.corrected)

    def _remembered(self, found: Mask) -> Remembered[np.ndarray]:
        decoded = self._decoded(found)
        return Remembered(decoded, decoded.mask_logits[:, 0])

    @staticmethod
    def _decoded(found: Mask) -> Decoded[np.ndarray]:
        one = np.ones((1, 1), np.float32)
        return Decoded(np.where(found, 4.0, -4.0).astype(np.float32)[None, None], one, one, 4.0 * one)


class _Deaf:
    """Listens to nothing."""

    def prompted(self, *told: object) -> None: ...
    def worked_on(self, *told: object) -> None: ...
    def progress(self, *told: object) -> None: ...
    def ended(self, *told: object, **more: object) -> None: ...


def after(steps: Stubborn, spec: SegmentationSpec, number: int, point: PromptPoint) -> Mask:
    """Click into the left, correct a slice with another click, and return what conditions the tracking there."""
    prompt = ObjectPrompt(1, {NUMBER: (click(1, POSITIVE),)}, corrections=({number: (point,)},))
    kept: dict[int, Known[np.ndarray]] = {}
    propagation = Propagation(steps, steps, 3, spec, _Deaf(), Room(2**20))
    asyncio.run(propagation.run([prompt], keep=kept.__setitem__))
    (found,) = kept[1].conditioning[number].decoded.masks
    return found


@pytest.fixture
def spec(preset_spec: SegmentationSpec) -> SegmentationSpec:
    """The rules of the phantom checkpoint, for small slices."""
    return preset_spec.model_copy(update={"side": SIDE})


@pytest.mark.parametrize("corrected", [LEFT, NOTHING])
def test_a_positive_click_is_in_the_mask(spec: SegmentationSpec, corrected: Mask):
    """Where SAM2 holds on to what it had, the clicks alone are taken."""
    found = after(Stubborn(WHOLE, corrected), spec, NUMBER, click(7, POSITIVE))
    assert np.array_equal(found, WHOLE)


def test_what_heeds_no_better_is_not_taken(spec: SegmentationSpec):
    """SAM2's correction stays."""
    assert np.array_equal(after(Stubborn(NOTHING, LEFT), spec, NUMBER, click(7, POSITIVE)), LEFT)


def test_what_is_heeded_stays_as_sam2_makes_it(spec: SegmentationSpec):
    """No other mask is asked for."""
    assert np.array_equal(after(Stubborn(NOTHING, WHOLE), spec, NUMBER, click(7, POSITIVE)), WHOLE)


def test_negative_clicks_alone_add_nothing(spec: SegmentationSpec):
    """On a tracked slice, a mask that leaves for another object is cut to what it was."""
    steps = Stubborn(NOTHING, RIGHT)
    assert not after(steps, spec, NUMBER + 1, click(1, NEGATIVE)).any()
    assert len(steps.taken) == 1


def test_a_checkpoint_may_want_what_sam2_makes_of_it(spec: SegmentationSpec):
    """Nothing is changed then."""
    as_sam2 = spec.model_copy(update={"heed_clicks_px": None})
    assert np.array_equal(after(Stubborn(WHOLE, LEFT), as_sam2, NUMBER, click(7, POSITIVE)), LEFT)
    assert np.array_equal(after(Stubborn(WHOLE, RIGHT), as_sam2, NUMBER + 1, click(1, NEGATIVE)), RIGHT)
