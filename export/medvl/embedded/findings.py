"""What may be wrong with a phantom: each kind is drawn where it fits and is seen, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from medvl.embedded.anatomy import ADDED, Anatomy
from medvl.embedded.frame import BodyFrame
from medvl.embedded.parts import Part
from medvl.embedded.render import in_view, visible_share
from medvl.embedded.shapes import Shape, Vector, directions, longest_diameter, samples, surface
from medvl.embedded.truth import PLEURAL, FindingKind, Side
from medvl.imaging.geometry import Geometry

LEAST_SEEN = 0.6
"""Share of a finding that must lie within the field of view; otherwise it is not drawn."""
MOST_HIDDEN = 1 / 8
"""Share of its surface that may lie where a lesion is not told from what is there: in vessels, or water in water."""
_SOLID = (FindingKind.LUNG_NODULE, FindingKind.LIVER_CYST, FindingKind.LIVER_MASS, FindingKind.KIDNEY_CYST)
SIDES: tuple[Side, Side] = ("left", "right")
_CANDIDATES, _PROBES, _LATTICE = 3000, 22, 14


@dataclass(frozen=True, eq=False)
class Draft:
    """A finding before it is painted.

    Attributes
    ----------
    size_mm
        In patient millimetres, as :class:`medvl.embedded.truth.Finding` says.
    parts
        What is painted with the finding's own value; empty when it has none.
    after
        Name of the part that they follow in painting order, behind findings that follow it already.
    beneath
        Whether they are painted before those.
    background
        Painted before ``parts``, with the value of its organ.
    removed
        Names of parts that are gone.
    exchanged
        A part that takes the place of that of its name.
    place
        The region whose visible share counts.
    """

    kind: FindingKind
    organ: str
    side: Side | None
    size_mm: float
    place: tuple[Shape, ...]
    parts: tuple[Part, ...] = ()
    after: str = ""
    beneath: bool = False
    background: tuple[Part, ...] = ()
    removed: tuple[str, ...] = ()
    exchanged: Part | None = None

    def applied(self, anatomy: Anatomy) -> Anatomy:
        """Return the anatomy with this finding."""
        if self.removed:
            anatomy = anatomy.without(self.removed)
        if self.exchanged:
            anatomy = anatomy.with_part(self.exchanged)
        if not self.parts:
            return anatomy
        return anatomy.after(self.after, (*self.background, *self.parts), beneath=self.beneath)

    def centre(self) -> Vector:
        """Return the middle of its place, body millimetres."""
        points = np.concatenate([samples(piece)[0] for piece in self.place])
        x, y, z = (float(v) for v in points.mean(axis=0))
        return x, y, z


@dataclass(eq=False)
class Case:
    """A patient under construction: the anatomy with the findings so far."""

    rng: np.random.Generator
    anatomy: Anatomy
    frame: BodyFrame
    geometry: Geometry
    drafts: list[Draft] = field(default_factory=list)
    taken: list[tuple[Vector, float]] = field(default_factory=list)
    """Spheres that hold the lesions so far: centre and radius, body millimetres."""

    def uniform(self, low: float, high: float) -> float:
        """Draw a number."""
        return float(self.rng.uniform(low, high))

    def body_mm(self, patient_mm: float) -> float:
        """Return a length of the patient in the body frame."""
        return patient_mm / self.frame.scale

    def least_mm(self, wanted_mm: float, slices: float = 1.6, pixels: float = 3.5) -> float:
        """Return the smallest size that the grid shows: so many slices and pixels, at least ``wanted_mm``."""
        depth, height, width = self.geometry.spacing_mm
        return max(wanted_mm, slices * depth, pixels * max(height, width))

    def measured(self, shape: Shape, centre: Vector) -> float:
        """Return the longest diameter of a shape in the patient."""
        return longest_diameter(self.frame.to_lps(surface(shape, centre)))

    def sides(self) -> list[Side]:
        """Return left and right in random order."""
        return [SIDES[int(i)] for i in self.rng.permutation(2)]

    def touched(self, organ: str, *kinds: FindingKind) -> bool:
        """Whether an organ has findings already (of these kinds, if any are named)."""
        return any(d.organ == organ and (not kinds or d.kind in kinds) for d in self.drafts)

    def gone(self, organ: str) -> bool:
        """Whether an organ was removed."""
        return self.touched(organ, FindingKind.MISSING_ORGAN)

    def accept(self, draft: Draft) -> bool:
        """Take a finding into the patient if enough is seen of it, and of the others with it."""
        seen = visible_share(draft.place, self.frame, self.geometry, _LATTICE) >= LEAST_SEEN
        if not seen or any(_lost(draft, other) or _lost(other, draft) for other in self.drafts):
            return False
        draft = numbered(draft, len(self.drafts))
        anatomy = draft.applied(self.anatomy)
        if draft.exchanged and any(_crowded_out(other, anatomy) for other in self.drafts):
            return False
        self.anatomy = anatomy
        self.drafts.append(draft)
        return True

    def spot(
        self, organ: str, radius: float, *, over: frozenset[str], share: float = 1.0, hiding: Sequence[Shape] = ()
    ) -> Vector | None:
        """Return a place for a lesion: a centre in the organ, and ``share`` of the surface too, the rest in ``over``.

        No lesion reaches into the wall of the trunk, whose ribs would divide it.

        Parameters
        ----------
        radius
            Body millimetres.
        hiding
            Where it is not seen: at most :data:`MOST_HIDDEN` of the surface lies there, and not the centre.
        """
        pieces = self.anatomy.part(organ).pieces
        centres = self._candidates(pieces[0])
        probes = centres[:, None] + radius * 1.1 * directions(_PROBES)[None]
        points = np.concatenate([centres[:, None], probes], axis=1).reshape(-1, 3)
        owners = self.anatomy.owners(points)
        free = np.isin(owners, list(over)) & self.anatomy.torso.cavity.inside(*points.T)
        hidden = np.any([piece.at(points) for piece in hiding], axis=0) if hiding else np.zeros(len(points), bool)
        mine, free, hidden = (at.reshape(len(centres), _PROBES + 1) for at in (owners == organ, free, hidden))
        fits = mine[:, 0] & (mine.mean(axis=1) >= share) & (mine | free).all(axis=1)
        fits &= ~hidden[:, 0] & (hidden[:, 1:].mean(axis=1) <= MOST_HIDDEN)
        if share < 1.0:
            fits &= mine.mean(axis=1) < 0.8
        for x, y, z in centres[fits]:
            apart = all(np.hypot(np.hypot(x - a, y - b), z - c) > radius + r + 4.0 for (a, b, c), r in self.taken)
            if apart:
                self.taken.append(((float(x), float(y), float(z)), radius))
                return float(x), float(y), float(z)
        return None

    def _candidates(self, shape: Shape) -> NDArray[np.float64]:
        points = self.rng.uniform(shape.low, shape.high, (_CANDIDATES, 3))
        points = points[in_view(points, self.frame, self.geometry)]
        return points[shape.at(points)][:48]


def _lost(lesion: Draft, layer: Draft) -> bool:
    """Whether a lesion is not seen in the other: half of a nodule in fluid or gas, an eighth of a cyst in a pelvis."""
    if lesion.organ != layer.organ:
        return False
    if lesion.kind is FindingKind.LUNG_NODULE and layer.kind in PLEURAL:
        most = 0.5
    elif lesion.kind is FindingKind.KIDNEY_CYST and layer.kind is FindingKind.HYDRONEPHROSIS:
        most = MOST_HIDDEN
    else:
        return False
    points = np.concatenate([samples(piece)[0] for piece in lesion.place])
    return bool(layer.place[0].at(points).mean() > most)


def _crowded_out(lesion: Draft, anatomy: Anatomy) -> bool:
    """Whether too much of a solid lesion lies in another organ than its own by now."""
    if lesion.kind not in _SOLID:
        return False
    points = np.concatenate([samples(piece)[0] for piece in lesion.place])
    return bool((anatomy.owners(points) != lesion.organ).mean() > MOST_HIDDEN)


Maker = Callable[[Case], bool]


@dataclass(frozen=True, slots=True)
class Illness:
    """How ill patients are: the share of those without findings, and of numbers of kinds of findings from 1."""

    normal: float
    kinds: tuple[float, ...]
    again: tuple[FindingKind, ...] = ()
    """What is drawn once more in the end, whether or not it was drawn."""


USUAL = Illness(0.25, (0.3, 0.35, 0.2, 0.15))
ILL = Illness(0.0, (0.0, 0.0, 0.0, 0.25, 0.25, 0.2, 0.2, 0.1))
SMALL_LESIONS = replace(ILL, again=(FindingKind.LUNG_NODULE,) * 3 + (FindingKind.KIDNEY_CYST,) * 2)


def draw_findings(case: Case, makers: Sequence[tuple[FindingKind, Maker]], illness: Illness = USUAL) -> None:
    """Draw findings of so many kinds, out of those that the field of view allows."""
    if case.rng.random() < illness.normal:
        return
    wanted = int(case.rng.choice(np.arange(1, 1 + len(illness.kinds)), p=illness.kinds))
    found = 0
    for i in case.rng.permutation(len(makers)):
        if found == wanted:
            break
        found += makers[int(i)][1](case)
    for kind in illness.again:
        dict(makers)[kind](case)


def numbered(draft: Draft, number: int) -> Draft:
    """Return a draft whose parts have names of their own."""
    rename = {p.name: f"{ADDED}{number} {p.name}" for p in (*draft.background, *draft.parts)}

    def named(parts: tuple[Part, ...]) -> tuple[Part, ...]:
        return tuple(replace(p, name=rename[p.name]) for p in parts)

    return replace(draft, parts=named(draft.parts), background=named(draft.background))
