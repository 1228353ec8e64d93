"""The whole anatomy of one patient: parts in painting order, later ones over earlier ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medvl.embedded.abdomen import bladder_parts, bowel_parts, kidney_parts, liver_parts, spleen_shape, stomach_parts
from medvl.embedded.frame import BodyFrame
from medvl.embedded.parts import BODY, Densities, Part, Phase, draw_densities
from medvl.embedded.shapes import Shape, Vector
from medvl.embedded.skeleton import Spine, back_muscles, draw_spine, pelvis_parts, rib_parts, spine_parts
from medvl.embedded.thorax import airway_parts, aorta_line, heart_parts, lung_parts, vessel_parts
from medvl.embedded.torso import Torso

ORGANS: tuple[str, ...] = (
    *("body", "lung_left", "lung_right", "heart", "aorta", "trachea", "liver", "spleen", "kidney_left"),
    *("kidney_right", "gallbladder", "stomach", "urinary_bladder", "vertebral_column", "rib"),
)
"""Names of the values 1 to 15 of every label map."""
ADDED = "finding "
"""Begins the names of parts that a finding adds."""
_NORMAL_SPLEEN_MM = (94.0, 122.0)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """A patient.

    Attributes
    ----------
    parts
        In painting order.
    aorta
        Middle line of the aorta and its outer radii.
    """

    torso: Torso
    spine: Spine
    densities: Densities
    parts: tuple[Part, ...]
    aorta: tuple[list[Vector], list[float]]

    def part(self, name: str) -> Part:
        """Return the part of a name."""
        return next(p for p in self.parts if p.name == name)

    def pieces(self, organ: str) -> tuple[Shape, ...]:
        """Return the shapes of all parts of an organ."""
        return tuple(piece for part in self.parts if part.organ == organ for piece in part.pieces)

    def after(self, name: str, added: Sequence[Part], *, beneath: bool = False) -> Anatomy:
        """Return the anatomy with parts painted after that of a name, after or beneath what was added there before."""
        place = next(i for i, p in enumerate(self.parts) if p.name == name) + 1
        while not beneath and place < len(self.parts) and self.parts[place].name.startswith(ADDED):
            place += 1
        return replace(self, parts=(*self.parts[:place], *added, *self.parts[place:]))

    def without(self, names: Iterable[str]) -> Anatomy:
        """Return the anatomy without the parts of these names."""
        gone = set(names)
        return replace(self, parts=tuple(p for p in self.parts if p.name not in gone))

    def with_part(self, part: Part) -> Anatomy:
        """Return the anatomy with the part of that name exchanged."""
        return replace(self, parts=tuple(part if p.name == part.name else p for p in self.parts))

    def owners(self, points: NDArray[np.float64]) -> NDArray[np.str_]:
        """Return the organ at each of points [N, 3] of the body frame, "" outside of the skin."""
        owner = np.zeros(len(points), dtype="<U24")
        for part in self.parts:
            within = np.zeros(len(points), bool)
            for piece in part.pieces:
                near = ((points >= piece.low) & (points <= piece.high)).all(axis=1)
                if near.any():
                    within[near] |= piece.at(points[near])
            if part.over is not None:
                within &= np.isin(owner, list(part.over))
            owner[within] = part.organ
        return owner


def draw_anatomy(rng: np.random.Generator, torso: Torso, phase: Phase, frame: BodyFrame) -> Anatomy:
    """Draw a patient without findings, who lies supine."""
    spine, densities = draw_spine(rng, torso), draw_densities(rng, phase)
    line, radii = aorta_line(rng, torso, spine)
    up = -frame.rotation[:, 1]
    spleen = spleen_shape(rng, torso, float(rng.uniform(*_NORMAL_SPLEEN_MM)) / frame.scale)
    bones = [*spine_parts(rng, spine), *rib_parts(torso)]
    muscle, *pelvis = pelvis_parts(densities, torso, spine)
    parts = [
        Part("skin", BODY, densities.fat, (torso.skin.shape(),)),
        Part("wall", BODY, densities.muscle, (torso.wall.shape(),)),
        Part("cavity", BODY, densities.fat, (torso.cavity.shape(),)),
        *back_muscles(densities, spine),
        muscle,
        *lung_parts(rng, densities, torso),
        *bowel_parts(rng, densities, torso, spine),
        *bladder_parts(rng, densities, torso),
        *stomach_parts(rng, densities, torso, (float(up[0]), float(up[1]), float(up[2]))),
        *liver_parts(rng, densities, torso),
        Part("spleen", "spleen", densities.spleen, (spleen,)),
        *kidney_parts(rng, densities, torso, spine, "left"),
        *kidney_parts(rng, densities, torso, spine, "right"),
        *airway_parts(densities, torso, spine),
        *heart_parts(rng, densities, torso),
        *vessel_parts(densities, torso, spine, line, radii),
        *pelvis,
        *bones,
    ]
    return Anatomy(torso, spine, densities, tuple(parts), (line, radii))
