"""What is known of a phantom: its organs, its findings and where they are. It never reaches a model or a server."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict

Side = Literal["left", "right"]
Point = tuple[float, float, float]


class FindingKind(StrEnum):
    """Findings that phantoms can have."""

    LUNG_NODULE = "lung_nodule"
    PLEURAL_EFFUSION = "pleural_effusion"
    PNEUMOTHORAX = "pneumothorax"
    LIVER_CYST = "liver_cyst"
    LIVER_MASS = "liver_mass"
    KIDNEY_STONE = "kidney_stone"
    KIDNEY_CYST = "kidney_cyst"
    HYDRONEPHROSIS = "hydronephrosis"
    AORTIC_ANEURYSM = "aortic_aneurysm"
    SPLENOMEGALY = "splenomegaly"
    MISSING_ORGAN = "missing_organ"
    VERTEBRAL_FRACTURE = "vertebral_fracture"


PLEURAL = frozenset({FindingKind.PLEURAL_EFFUSION, FindingKind.PNEUMOTHORAX})
"""Findings beside their lung: its mask does not hold them."""


class Coverage(StrEnum):
    """How much of an organ the series shows."""

    WHOLE = "whole"
    PARTIAL = "partial"
    OUTSIDE = "outside"
    """It lies outside the field of view: nothing can be said of it."""
    REMOVED = "removed"
    """It is absent after surgery though its place is shown."""


class Finding(BaseModel):
    """One finding, of which enough lies within the field of view to be seen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: FindingKind
    organ: str
    """Name of the organ that it belongs to, as in the label map: ``kidney_right``, ``lung_left``, ``aorta``."""
    side: Side | None
    """The patient's side, of paired organs and of what lies beside them."""
    size_mm: float
    """Longest diameter; the depth of an effusion or pneumothorax, the outer diameter of an aneurysm, the length of an
    enlarged spleen, the height lost by a vertebra, 0 for a missing organ."""
    centre_lps_mm: Point
    """Centre of its voxels; of the place of a missing organ."""
    value: int | None
    """Its value in the label map; None when it has no voxels of its own (splenomegaly, missing organ)."""


class Truth(BaseModel):
    """Everything that is known of a phantom besides its voxels; what is written as ``truth.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    organs: dict[str, Coverage]
    """By name, all of :data:`medvl.embedded.anatomy.ORGANS`."""
    findings: tuple[Finding, ...]
    names: dict[int, str]
    """Organ or finding of each value of the label map."""

    def of(self, kind: FindingKind, organ: str | None = None) -> tuple[Finding, ...]:
        """Return the findings of a kind, in one organ or in all, the largest first."""
        found = (f for f in self.findings if f.kind is kind and organ in {None, f.organ})
        return tuple(sorted(found, key=lambda f: -f.size_mm))

    def values_of(self, organ: str) -> tuple[int, ...]:
        """Return the values of an organ's mask: its own, and those of the lesions inside it."""
        if organ == "body":
            return tuple(self.names)
        own = (value for value, name in self.names.items() if name == organ)
        inside = (f.value for f in self.findings if f.organ == organ and f.kind not in PLEURAL and f.value is not None)
        return (*own, *inside)

    def seen(self, organ: str) -> bool:
        """Whether the organ is there and within the field of view, at least in part."""
        return self.organs[organ] in {Coverage.WHOLE, Coverage.PARTIAL}
