"""Small phantoms, and subjects whose figures are known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
import pytest

from medvl.contracts.checkpoint import Checkpoint
from medvl.embedded.facts import seg_targets
from medvl.embedded.preset import phantom_checkpoint as phantom_contract
from medvl.embedded.questions import questions
from medvl.embedded.report import write_report
from medvl.embedded.requests import request_pool
from medvl.embedded.scanner import Protocol
from medvl.evaluation import language
from medvl.evaluation.cases import Case
from medvl.evaluation.masks import targets

SMALL = Protocol(slices=(16, 24), side=64, spacing_mm=(8.0, 24.0))


@cache
def small_case(seed: int) -> Case:
    return Case.make(seed, SMALL)


class PerfectSubject:
    """Answers from the truth about the volumes that it knows; about others it is silent."""

    name = "perfect"

    def __init__(self, cases: Iterable[Case]) -> None:
        self._cases = {case.volume.digest: case for case in cases}
        self.calls = 0

    def _case(self, volume):
        self.calls += 1
        return self._cases.get(volume.digest)

    def report(self, volume):
        case = self._case(volume)
        return write_report(case.truth, np.random.default_rng(0)) if case else ""

    def report_masks(self, volume):
        case = self._case(volume)
        return self.report(volume), [case.findings((n,)) for n in seg_targets(case.truth)] if case else []

    def ask(self, volume, question):
        if (case := self._case(volume)) is None:
            return ""
        rng = np.random.default_rng([case.seed, 1])
        return {one.question: one.answer for one in questions(case.truth, rng, language.QUESTIONS)}[question]

    def segment_label(self, volume, name):
        case = self._case(volume)
        return case.organ(name) if case else self._nothing(volume)

    def segment_text(self, volume, text):
        if (case := self._case(volume)) is None:
            return self._nothing(volume)
        known = (request for wanted in request_pool(case.truth) for request in wanted.phrasings())
        return case.findings(next(r.findings for r in known if r.text.lower() == text.lower()))

    def segment_points(self, volume, clicks):
        return self._at(volume, np.array(clicks[0].voxel))

    def segment_box(self, volume, box):
        if (case := self._case(volume)) is None:
            return self._nothing(volume)
        middle = np.array([(a + b) / 2 for a, b in zip(box.low, box.high, strict=True)])
        return min(self._masks(case), key=lambda m: np.abs(np.argwhere(m).mean(0) - middle).sum())

    def _at(self, volume, voxel):
        if (case := self._case(volume)) is None:
            return self._nothing(volume)
        return min((m for m in self._masks(case) if m[tuple(voxel)]), key=np.count_nonzero)

    def _masks(self, case):
        return [target.mask for target in targets(case, 1)]

    def _nothing(self, volume):
        return np.zeros(volume.geometry.shape, bool)


class SilentSubject(PerfectSubject):
    """Says nothing and finds nothing."""

    name = "silent"

    def __init__(self) -> None:
        super().__init__(())


@pytest.fixture
def case() -> Callable[[int], Case]:
    """Makes a small case from a seed."""
    return small_case


@pytest.fixture
def perfect() -> PerfectSubject:
    """Knows the small cases of the seeds 0 to 11."""
    return PerfectSubject(map(small_case, range(12)))


@pytest.fixture
def silent() -> SilentSubject:
    """Knows none."""
    return SilentSubject()


@pytest.fixture(scope="session")
def contract() -> Checkpoint:
    """What the phantom checkpoint says of itself."""
    return phantom_contract({}, training="Trained.")
