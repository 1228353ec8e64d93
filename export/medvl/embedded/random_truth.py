"""Truths without phantoms: what tests and the tokenizer write sentences about."""

from __future__ import annotations

import numpy as np

from medvl.embedded.truth import Coverage, Finding, FindingKind, Truth
from medvl.embedded.words import KINDS, NOUNS, side_of

_SIZES_MM = {
    FindingKind.LUNG_NODULE: (6.0, 35.0),
    FindingKind.PLEURAL_EFFUSION: (8.0, 60.0),
    FindingKind.PNEUMOTHORAX: (8.0, 60.0),
    FindingKind.LIVER_CYST: (10.0, 70.0),
    FindingKind.LIVER_MASS: (15.0, 90.0),
    FindingKind.KIDNEY_STONE: (4.0, 20.0),
    FindingKind.KIDNEY_CYST: (8.0, 60.0),
    FindingKind.HYDRONEPHROSIS: (15.0, 50.0),
    FindingKind.AORTIC_ANEURYSM: (35.0, 90.0),
    FindingKind.SPLENOMEGALY: (130.0, 220.0),
    FindingKind.VERTEBRAL_FRACTURE: (5.0, 20.0),
}
_SEVERAL = {
    FindingKind.LUNG_NODULE,
    FindingKind.LIVER_CYST,
    FindingKind.LIVER_MASS,
    FindingKind.KIDNEY_STONE,
    FindingKind.KIDNEY_CYST,
    FindingKind.VERTEBRAL_FRACTURE,
}
"""Kinds of which an organ can have more than one."""
_FROM_HEAD_TO_FEET = (
    ("trachea",),
    ("lung_left", "lung_right", "heart"),
    ("aorta", "vertebral_column", "rib", "liver", "spleen", "stomach"),
    ("gallbladder", "kidney_left", "kidney_right"),
    ("urinary_bladder",),
)
_REMOVABLE = ("spleen", "gallbladder", "kidney_left", "kidney_right")
_NOTHING_FOUND = 0.15
"""Share of truths without any finding."""


def random_truth(rng: np.random.Generator) -> Truth:
    """Return a plausible truth: every kind occurs, in organs that the series shows, on any side."""
    organs = _covered(rng)
    findings: list[Finding] = []
    if rng.random() > _NOTHING_FOUND:
        kinds = list(KINDS)
        for index in rng.permutation(len(kinds))[: rng.integers(1, 5)]:
            findings.extend(_of_kind(kinds[index], organs, len(findings), rng))
    findings.extend(
        Finding(
            kind=FindingKind.MISSING_ORGAN,
            organ=organ,
            side=side_of(organ),
            size_mm=0.0,
            centre_lps_mm=_place(rng),
            value=None,
        )
        for organ, coverage in organs.items()
        if coverage is Coverage.REMOVED
    )
    names = dict(enumerate(organs, 1))
    names |= {f.value: f.kind.value for f in findings if f.value is not None}
    return Truth(seed=int(rng.integers(2**31)), organs=organs, findings=tuple(findings), names=names)


def _covered(rng: np.random.Generator) -> dict[str, Coverage]:
    """Return what a series shows that runs from one level of the trunk to another."""
    levels = len(_FROM_HEAD_TO_FEET)
    first, last = (0, levels - 1) if rng.random() < 0.5 else sorted(int(v) for v in rng.integers(levels, size=2))
    organs = {"body": Coverage.PARTIAL}
    for level, names in enumerate(_FROM_HEAD_TO_FEET):
        within = first <= level <= last
        cut = level in {first, last} and rng.random() < 0.3
        shown = Coverage.PARTIAL if cut else Coverage.WHOLE
        organs |= dict.fromkeys(names, shown if within else Coverage.OUTSIDE)
    removable = [o for o in _REMOVABLE if organs[o] is Coverage.WHOLE]
    if removable and rng.random() < 0.25:
        organs[str(rng.choice(removable))] = Coverage.REMOVED
    return {"body": organs["body"]} | {organ: organs[organ] for organ in NOUNS}


def _of_kind(kind: FindingKind, organs: dict[str, Coverage], before: int, rng: np.random.Generator) -> list[Finding]:
    places = [o for o in KINDS[kind].organs if organs[o] in {Coverage.WHOLE, Coverage.PARTIAL}]
    if not places:
        return []
    number = int(rng.integers(1, 4)) if kind in _SEVERAL else int(rng.integers(1, len(places) + 1))
    # What occurs once in an organ takes each organ once.
    chosen = rng.choice(places, size=number, replace=kind in _SEVERAL)
    has_voxels = kind is not FindingKind.SPLENOMEGALY
    return [
        Finding(
            kind=kind,
            organ=str(organ),
            side=side_of(str(organ)),
            size_mm=round(float(rng.uniform(*_SIZES_MM[kind])), 1),
            centre_lps_mm=_place(rng),
            value=len(NOUNS) + 2 + before + index if has_voxels else None,
        )
        for index, organ in enumerate(chosen)
    ]


def _place(rng: np.random.Generator) -> tuple[float, float, float]:
    x, y, z = rng.uniform(-150.0, 150.0, 3).round(1)
    return float(x), float(y), float(z)
