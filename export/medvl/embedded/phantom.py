"""A procedural CT of the trunk with known truth: everything follows from a seed and a protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from medvl.embedded.anatomy import ORGANS, Anatomy, draw_anatomy
from medvl.embedded.conditions import MAKERS
from medvl.embedded.findings import USUAL, Case, Draft, Illness, draw_findings
from medvl.embedded.frame import PIVOT, BodyFrame, draw_frame
from medvl.embedded.parts import AIR_HU, BODY
from medvl.embedded.render import Codes, paint, visible_share
from medvl.embedded.scanner import Acquisition, Kernel, Protocol, Region, add_table, draw_acquisition, image
from medvl.embedded.torso import draw_torso
from medvl.embedded.truth import Coverage, Finding, FindingKind, Truth
from medvl.imaging.geometry import Geometry

Scalar = TypeVar("Scalar", bound=np.generic)

FIRST_FINDING = 100
"""Least value of a finding in a label map."""
WHOLE_SHARE, PARTIAL_SHARE = 0.95, 0.10
"""From these shares of its volume on an organ counts as seen whole, or in part."""
_EVERYWHERE = {"body", "vertebral_column", "rib", "aorta"}
"""Never called outside when any of them is shown."""
_LEAST_VOXELS = 5
_ONLY_AIR, _BLANK_RADII, _BLANK_HU = 0.2, (0.2, 0.7), 40.0
"""Share of blank scans without a body; its half extents as shares of the volume's, and the spread of its density."""
_WIDTH_MM = 380.0
"""Of a field of view that is not drawn; within what :class:`Protocol` draws, for networks are trained on that."""
_HEIGHTS_MM = {
    Region.CHEST: 290.0,
    Region.ABDOMEN: 235.0,
    Region.ABDOMEN_PELVIS: 365.0,
    Region.CHEST_ABDOMEN: 320.0,
    Region.TRUNK: 620.0,
}
"""Likewise, of what is covered; networks are trained on 320 mm at most."""
_LATTICE = {"rib": 24, "vertebral_column": 14}
"""Points per axis of what fills little of its box."""
_MEASURED_BY = {"vertebral_column": ("discs", "sacrum"), "rib": ("ribs",), "body": ("skin",)}
"""Parts that stand for an organ when its visible share is taken; else the part of its name does."""


@dataclass(frozen=True, eq=False)
class Phantom:
    """A phantom and all that is known of it.

    Attributes
    ----------
    geometry
        The canonical grid (LPS millimetres).
    hu
        int16 [D, R, C], as stored.
    labels
        uint8 [D, R, C], 0 outside of the skin; values as in ``truth.names``: 1 to 15 organs, from 100 on findings,
        whose voxels no longer have the value of their organ.
    truth
        Organs, findings, names.
    acquisition
        How it was scanned.
    """

    geometry: Geometry
    hu: NDArray[np.int16]
    labels: NDArray[np.uint8]
    truth: Truth
    acquisition: Acquisition

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Return the voxels of an organ, or of a finding by its name in the label map, bool [D, R, C].

        An organ includes its lesions; fluid and gas about a lung are no part of it; ``body`` is all within the skin.

        Raises
        ------
        KeyError
            When there is neither such an organ nor such a finding.
        """
        if name == BODY:
            return np.asarray(self.labels > 0)
        value = next((v for v, n in self.truth.names.items() if n == name), None)
        if value is None:
            raise KeyError(name)
        return np.isin(self.labels, [value, *self.truth.values_of(name)])

    def finding_mask(self, finding: Finding) -> NDArray[np.bool_]:
        """Return the voxels of a finding, bool [D, R, C]; none where it has no voxels of its own."""
        if finding.value is None:
            return np.zeros(self.labels.shape, bool)
        return np.asarray(self.labels == finding.value)


def make_phantom(seed: int, protocol: Protocol | None = None, *, illness: Illness = USUAL) -> Phantom:
    """Return a phantom; the same bytes for the same arguments.

    Parameters
    ----------
    seed
        Of patient, findings, acquisition and noise, each with a stream of its own.
    protocol
        Ranges of the acquisition; the default is :class:`Protocol`'s.
    illness
        How many findings to draw.
    """
    body, scan, disease, noise = (np.random.default_rng([seed, stream]) for stream in range(4))
    torso = draw_torso(body)
    acquisition = draw_acquisition(scan, protocol or Protocol(), torso, float(PIVOT[2]))
    frame = draw_frame(scan, acquisition.tilt_deg, acquisition.place_mm)
    healthy = draw_anatomy(body, torso, acquisition.phase, frame)
    case = Case(disease, healthy, frame, acquisition.geometry)
    draw_findings(case, MAKERS, illness)
    painting = _painted(healthy, case.drafts, frame, acquisition.geometry)
    hu, labels = painting.looked_up(painting.densities()), painting.looked_up(painting.values())
    add_table(hu, labels == 0, acquisition.geometry, _back_mm(painting.codes, acquisition.geometry))
    found = image(noise, hu, acquisition)
    return Phantom(acquisition.geometry, found, labels, _truth(seed, painting), acquisition)


def make_blank(seed: int, protocol: Protocol | None = None) -> Phantom:
    """Return a scan of no patient: of air, or of a cylinder or block of one density; the same bytes for the same seed.

    Nothing can be said of any organ in it.
    """
    body, scan, what, noise = (np.random.default_rng([seed, stream]) for stream in range(4))
    acquisition = draw_acquisition(scan, protocol or Protocol(), draw_torso(body), float(PIVOT[2]))
    shape = acquisition.geometry.shape
    hu = np.full(shape, AIR_HU, np.float32)
    if what.random() > _ONLY_AIR:
        distance = [
            np.abs((np.arange(n) + 0.5) / n - what.uniform(0.45, 0.55)) / what.uniform(*_BLANK_RADII) for n in shape
        ]
        rows, columns = distance[1][:, None], distance[2]
        inside = np.hypot(rows, columns) < 1.0 if what.random() < 0.5 else np.maximum(rows, columns) < 1.0
        hu[(distance[0] < 1.0)[:, None, None] & inside] = what.normal(0.0, _BLANK_HU)
    truth = Truth(
        seed=seed,
        organs=dict.fromkeys(ORGANS, Coverage.OUTSIDE),
        findings=(),
        names=dict(enumerate(ORGANS, 1)),
    )
    found = image(noise, hu, acquisition)
    return Phantom(acquisition.geometry, found, np.zeros(shape, np.uint8), truth, acquisition)


def sized(slices: int, side: int, region: Region = Region.CHEST_ABDOMEN) -> Protocol:
    """Return the protocol of so many slices, rows and columns, as high as the region asks for and 380 mm wide."""
    height = _HEIGHTS_MM[region]
    pixel, spacing = round(_WIDTH_MM / side, 4), round(height / slices, 4)
    return Protocol(
        slices=(slices, slices), spacing_mm=(spacing, spacing), side=side, pixel_mm=(pixel, pixel),
        extent_mm=(height, height), regions=(region,),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Painting:
    """What was painted: the anatomy with findings, and the code of its parts at each voxel."""

    anatomy: Anatomy
    drafts: list[Draft]
    codes: Codes
    frame: BodyFrame
    geometry: Geometry

    @cached_property
    def counts(self) -> NDArray[np.float32]:
        """Voxels of each code, [256]; exact up to 16 million."""
        return np.ravel(cv2.calcHist([self._planes()], [0], None, [256], [0, 256])).astype(np.float32)

    def codes_of(self, draft: Draft) -> list[int]:
        """Return the codes that a finding's own parts have."""
        names = {p.name for p in draft.parts}
        return [code for code, part in enumerate(self.anatomy.parts, 1) if part.name in names]

    def values(self) -> NDArray[np.uint8]:
        """Return the value in the label map of each code."""
        values = np.zeros(256, np.uint8)
        values[1 : 1 + len(self.anatomy.parts)] = [1 + ORGANS.index(p.organ) for p in self.anatomy.parts]
        for number, draft in enumerate(self.drafts):
            values[self.codes_of(draft)] = FIRST_FINDING + number
        return values

    def densities(self) -> NDArray[np.float32]:
        """Return the HU of each code."""
        densities = np.full(256, AIR_HU, np.float32)
        densities[1 : 1 + len(self.anatomy.parts)] = [p.hu for p in self.anatomy.parts]
        return densities

    def looked_up(self, table: NDArray[Scalar]) -> NDArray[Scalar]:
        """Return the entry of a table [256] for the code of each voxel, [D, R, C]; the fast way to index it."""
        return cast(NDArray[Scalar], cv2.LUT(self._planes(), table)).reshape(self.codes.shape)

    def _planes(self) -> Codes:
        """Return the codes as the two-dimensional image that OpenCV wants."""
        return self.codes.reshape(-1, self.codes.shape[-1])


def _painted(healthy: Anatomy, drafts: Sequence[Draft], frame: BodyFrame, geometry: Geometry) -> _Painting:
    """Paint anatomy and findings; without those of which the grid shows next to nothing."""
    kept = list(drafts)
    while True:
        anatomy = healthy
        for draft in kept:
            anatomy = draft.applied(anatomy)
        painting = _Painting(anatomy, kept, paint(anatomy.parts, frame, geometry), frame, geometry)
        shown = [d for d in kept if not d.parts or painting.counts[painting.codes_of(d)].sum() >= _LEAST_VOXELS]
        if len(shown) == len(kept):
            return painting
        kept = shown


def _truth(seed: int, painting: _Painting) -> Truth:
    names, drafts = dict(enumerate(ORGANS, 1)), painting.drafts
    for number, draft in enumerate(drafts):
        if draft.parts:
            same = sum(d.kind is draft.kind for d in drafts[:number])
            names[FIRST_FINDING + number] = draft.kind.value + (f"_{same + 1}" if same else "")
    findings = tuple(_finding(painting, number) for number in range(len(drafts)))
    return Truth(seed=seed, organs=_organs(painting), findings=findings, names=names)


def _finding(painting: _Painting, number: int) -> Finding:
    draft = painting.drafts[number]
    if draft.parts:
        voxels = np.flatnonzero(np.isin(painting.codes, painting.codes_of(draft)))
        indices = np.unravel_index(voxels, painting.codes.shape)
        centre = painting.geometry.index_to_lps(np.array([i.mean() for i in indices]))
    else:
        centre = painting.frame.to_lps(np.array(draft.centre()))
    x, y, z = (round(float(v), 2) for v in centre)
    return Finding(
        kind=draft.kind,
        organ=draft.organ,
        side=draft.side,
        size_mm=round(draft.size_mm, 2),
        centre_lps_mm=(x, y, z),
        value=FIRST_FINDING + number if draft.parts else None,
    )


def _organs(painting: _Painting) -> dict[str, Coverage]:
    removed = {d.organ for d in painting.drafts if d.kind is FindingKind.MISSING_ORGAN}
    shown = {painting.anatomy.parts[code - 1].organ for code in np.flatnonzero(painting.counts) if code}
    coverage = dict.fromkeys(ORGANS, Coverage.OUTSIDE) | dict.fromkeys(removed, Coverage.REMOVED)
    return coverage | {organ: _coverage(organ, painting) for organ in shown}


def _coverage(organ: str, painting: _Painting) -> Coverage:
    pieces = [piece for name in _MEASURED_BY.get(organ, (organ,)) for piece in painting.anatomy.part(name).pieces]
    share = visible_share(pieces, painting.frame, painting.geometry, per_axis=_LATTICE.get(organ, 9))
    if share >= WHOLE_SHARE:
        return Coverage.WHOLE
    return Coverage.PARTIAL if share >= PARTIAL_SHARE or organ in _EVERYWHERE else Coverage.OUTSIDE


def _back_mm(codes: Codes, geometry: Geometry) -> float:
    """Return how far the patient's back reaches, LPS y."""
    rows = np.flatnonzero(codes.any(axis=(0, 2)))
    last = int(rows[-1]) if len(rows) else geometry.shape[1] // 2
    return geometry.origin_mm[1] + geometry.spacing_mm[1] * last


__all__ = ["ORGANS", "Kernel", "Phantom", "Protocol", "Region", "make_blank", "make_phantom", "sized"]
