"""Masks in files on the source's own grid: one NIfTI file, one for each object in a folder, or one DICOM SEG."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Self

from medvl.contracts.errors import InvalidRequest


class MaskFormat(Enum):
    """How masks are written."""

    NIFTI = auto()
    SEG = auto()
    FOLDER = auto()


@dataclass(frozen=True, slots=True)
class MaskTarget:
    """Where masks go, decided by the name of the path before any work is done."""

    path: Path
    format: MaskFormat

    @classmethod
    def of(cls, path: Path, *, objects: int) -> Self:
        """Return the target that a path names.

        Raises
        ------
        InvalidRequest
            When its suffix is unknown, or one NIfTI file is named for several objects.
        """
        name = path.name.lower()
        if name.endswith((".nii", ".nii.gz")):
            if objects > 1:
                raise InvalidRequest(f"One NIfTI file holds one mask, not {objects}: name a folder or a .dcm file.")
            return cls(path, MaskFormat.NIFTI)
        if name.endswith(".dcm"):
            return cls(path, MaskFormat.SEG)
        if path.is_dir() or not path.suffix:
            return cls(path, MaskFormat.FOLDER)
        raise InvalidRequest("The output must end in .nii.gz, .nii or .dcm, or be a folder.")
