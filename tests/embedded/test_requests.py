"""Requests for masks mean one thing, and say whether it is there."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvl.embedded.preset import _LABELS
from medvl.embedded.random_truth import random_truth
from medvl.embedded.requests import SegmentRequest, all_requests, request_pool, requests
from medvl.embedded.truth import Coverage, Finding, FindingKind, Truth
from medvl.embedded.words import NOUNS, side_of

_SEEDS = st.integers(0, 2**32 - 1)


def _truth(*found: tuple[FindingKind, str, float], **coverage: Coverage) -> Truth:
    findings = tuple(
        Finding(
            kind=kind,
            organ=organ,
            side=side_of(organ),
            size_mm=mm,
            centre_lps_mm=(0, 0, 0),
            value=None if kind is FindingKind.SPLENOMEGALY else 20 + index,
        )
        for index, (kind, organ, mm) in enumerate(found)
    )
    organs = {"body": Coverage.WHOLE} | dict.fromkeys(NOUNS, Coverage.WHOLE) | coverage
    return Truth(seed=0, organs=organs, findings=findings, names={})


_TWO_CYSTS = _truth(
    (FindingKind.KIDNEY_CYST, "kidney_right", 20.0),
    (FindingKind.KIDNEY_CYST, "kidney_right", 40.0),
    (FindingKind.LUNG_NODULE, "lung_left", 12.0),
    (FindingKind.SPLENOMEGALY, "spleen", 150.0),
    liver=Coverage.OUTSIDE,
    gallbladder=Coverage.REMOVED,
)


def _request(text: str) -> SegmentRequest | None:
    return next((r for r in all_requests(_TWO_CYSTS) if r.text == text), None)


@pytest.mark.parametrize(
    ("text", "findings", "organ"),
    [
        ("the larger cyst in the right kidney", (1,), "kidney_right"),
        ("the smaller renal cyst", (0,), "kidney_right"),
        ("the pulmonary nodule", (2,), "lung_left"),
        ("the nodule in the left lung", (2,), "lung_left"),
        ("left-sided lung nodule", (2,), "lung_left"),
        ("the left kidney", (), "kidney_left"),
        ("the kidney on the left", (), "kidney_left"),
        ("the enlarged spleen", (), "spleen"),
        ("kidney_left", (), "kidney_left"),
    ],
)
def test_what_is_there(text: str, findings: tuple[int, ...], organ: str):
    """Organs and findings by expressions that single them out."""
    request = _request(text)
    assert request is not None
    assert request.present
    assert (request.findings, request.organ) == (findings, organ)
    assert request.by_class is ("_" in text)


@pytest.mark.parametrize(
    "text", ["the liver", "liver", "gallbladder", "the cyst in the left kidney", "the nodule in the right lung"]
)
def test_what_is_not_there(text: str):
    """Outside the field of view, removed, or never found."""
    request = _request(text)
    assert request is not None
    assert not request.present
    assert not request.findings


@pytest.mark.parametrize("text", ["the cyst in the right kidney", "the renal cyst", "the cyst on the right"])
def test_what_could_be_two_things_is_not_asked(text: str):
    assert _request(text) is None


def test_classes_are_those_of_the_checkpoint():
    """Every label can be asked for by its name, and nothing else is a class."""
    assert {r.text for r in all_requests(_TWO_CYSTS) if r.by_class} == {label[0] for label in _LABELS}


@given(_SEEDS)
@settings(max_examples=30)
def test_an_expression_means_one_thing(seed: int):
    """No two targets of one truth share an expression; what is present has a mask, what is absent has no target."""
    truth = random_truth(np.random.default_rng(seed))
    meant: dict[tuple[str, bool], tuple[object, ...]] = {}
    for request in all_requests(truth):
        target = (request.findings or request.organ, request.present)
        if request.findings or not request.kind:
            assert meant.setdefault((request.text, request.by_class), target) == target, request
        assert len(request.findings) <= 1
        for index in request.findings:
            assert request.present
            assert truth.findings[index].value is not None
            assert truth.findings[index].organ == request.organ


def test_kinds_of_requests_are_balanced():
    """Classes, organs and findings, there and not there: each occurs, and most is there."""
    rng = np.random.default_rng(2)
    drawn = [r for _ in range(300) for r in requests(random_truth(rng), rng)]
    counts = Counter((r.by_class, bool(r.findings), r.present) for r in drawn)
    assert set(counts) == {(True, False, True), (True, False, False), (False, False, True)} | {
        (False, False, False),
        (False, True, True),
    }
    assert 0.6 <= sum(r.present for r in drawn) / len(drawn) <= 0.9


@given(_SEEDS, st.integers(1, 12))
@settings(max_examples=25)
def test_samples_are_different_things(seed: int, count: int):
    truth = random_truth(np.random.default_rng(seed))
    assert len(requests(truth, np.random.default_rng(0), count)) == min(count, len(request_pool(truth)))
