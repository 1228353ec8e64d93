"""Masks in files: written on the source's own grid (NIfTI, a folder of it, or one DICOM SEG), read from either."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Self

import highdicom
import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Extension
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.errors import InvalidDicomError

from medvl.client.events import Mask, Provenance
from medvl.client.findings import finding_segments, findings
from medvl.client.results import Answer, Label
from medvl.contracts.disclaimer import DISCLAIMER
from medvl.contracts.errors import InvalidRequest
from medvl.imaging.geometry import Geometry
from medvl.imaging.headers import source_header
from medvl.imaging.nifti import RAS_TO_LPS
from medvl.imaging.seg import Maker, Segment, build_seg, frame_of_reference
from medvl.imaging.series import LoadedSeries

_SKEW = 1e-3
"""Of axes that count as parallel, in voxels for each voxel."""
_LONGEST_NAME = 60
"""Characters of a file's name that come from a prompt."""


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
    def of(cls, path: Path, *, objects: int | None) -> Self:
        """Return the target that a path names; None are as many objects as a text will name.

        Raises
        ------
        InvalidRequest
            When its suffix is unknown, or one NIfTI file is named for several objects.
        """
        name = path.name.lower()
        if name.endswith((".nii", ".nii.gz")):
            if objects != 1:
                many = objects or "those of a text"
                raise InvalidRequest(f"One NIfTI file holds one mask, not {many}: name a folder or a .dcm file.")
            return cls(path, MaskFormat.NIFTI)
        if name.endswith(".dcm"):
            return cls(path, MaskFormat.SEG)
        if path.is_dir() or not path.suffix:
            return cls(path, MaskFormat.FOLDER)
        raise InvalidRequest("The output must end in .nii.gz, .nii or .dcm, or be a folder.")

    def check_source(self, loaded: LoadedSeries) -> None:
        """Refuse a target that this source cannot have, before any work is done.

        Raises
        ------
        InvalidRequest
            When a DICOM SEG is wanted of a source that is not DICOM.
        """
        if self.format is MaskFormat.SEG and loaded.source.kind != "dicom":
            raise InvalidRequest("A DICOM SEG needs a DICOM source: name a .nii.gz file or a folder for the masks.")

    def check_writable(self) -> None:
        """Refuse a target that cannot be written, before any work is done; nothing stays behind.

        Raises
        ------
        OSError
            With the path that refuses: the file itself, or the folder that would hold it or what has to be made for it.
        """
        folder = self.path if self.format is MaskFormat.FOLDER else self.path.parent
        if self.format is not MaskFormat.FOLDER and self.path.exists():
            self.path.open("ab").close()
            return
        standing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        try:
            tempfile.TemporaryFile(dir=standing).close()
        except OSError as error:
            # The name of the temporary file would tell nobody anything.
            raise OSError(error.errno, error.strerror, str(standing)) from None


def write_masks(
    target: MaskTarget,
    loaded: LoadedSeries,
    answer: Answer,
    labels: Sequence[Label] = (),
) -> Mapping[int, Path]:
    """Write the masks of an answer that were found, on the source's own grid.

    Parameters
    ----------
    target
        Where to.
    loaded
        The series that was asked about.
    answer
        What came back. A DICOM SEG names its maker, and so does, with the disclaimer, a comment in a NIfTI file.
        Segments of what its text names are findings, as those of the PACS gateway.
    labels
        What the service knows of its classes: their SNOMED CT codes go into a DICOM SEG.

    Returns
    -------
    Mapping[int, Path]
        The file of each mask by its ``object_index``; empty when nothing was found.
    """
    provenance = answer.done.provenance
    found = [mask for mask in answer.masks if mask.found]
    if not found:
        return {}
    if target.format is MaskFormat.SEG:
        target.path.parent.mkdir(parents=True, exist_ok=True)
        prompted = segments([mask for mask in found if mask.span is None], labels)
        dataset = build_seg(loaded, [*finding_segments(findings(answer)), *prompted], maker(provenance))
        dataset.save_as(target.path, enforce_file_format=True)
        return {mask.object_index: target.path for mask in found}
    paths = {mask.object_index: _path(target, mask) for mask in found}
    for mask in found:
        write_nifti(paths[mask.object_index], loaded, mask.array, _comment(mask, provenance))
    return paths


def read_mask(path: Path, loaded: LoadedSeries, segment: int | None = None) -> NDArray[np.bool_]:
    """Return the mask of a file on the grid of a series, bool [D, R, C]; where the file ends, it is empty.

    Parameters
    ----------
    path
        A NIfTI file, in which every voxel that is not 0 counts, or a DICOM SEG.
    loaded
        The series. The file may store the same place in another order or direction of axes and with other spacings;
        each voxel of the series takes the nearest one of the file.
    segment
        Number of the segment of a DICOM SEG; None takes its only one. Of a NIfTI file the value that counts.

    Raises
    ------
    InvalidRequest
        When the file is no mask, its axes are not those of the series, it has several segments and none is named, no
        voxel of it lies within the series, or it is a DICOM SEG of another DICOM series than this.
    """
    of_seg = path.suffix.lower() == ".dcm"
    voxels, affine = _read_seg(path, loaded, segment) if of_seg else _read_labels(path, segment)
    mask = _on_grid(voxels, affine, loaded.volume.geometry)
    if not mask.any():
        raise InvalidRequest(f"The mask {path.name} has no voxel within the series: name the mask of this series.")
    return mask


def _read_labels(path: Path, value: int | None) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return voxels and the matrix from their indices to LPS millimetres."""
    try:
        image = nibabel.load(path)
        values = np.asarray(image.dataobj)
    except (OSError, ValueError, ImageFileError):
        raise InvalidRequest(f"The mask {path.name} cannot be read: name a .nii, .nii.gz or .dcm file.") from None
    if values.ndim != 3:
        raise InvalidRequest(f"The mask {path.name} has {values.ndim} axes, not 3.")
    return values != 0 if value is None else values == value, RAS_TO_LPS @ image.affine


def _read_seg(path: Path, loaded: LoadedSeries, segment: int | None) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    try:
        file = highdicom.seg.segread(path)
    except (OSError, InvalidDicomError, ValueError, AttributeError):
        raise InvalidRequest(f"The mask {path.name} is no DICOM SEG: name a .dcm file of one, or NIfTI.") from None
    if loaded.source.kind == "dicom" and not _same_patient(file, loaded.source.files[0]):
        raise InvalidRequest(
            f"The mask {path.name} was made of another patient or series, as its UIDs say: name one of this series, or "
            "write it as NIfTI if it lies in the same place all the same."
        )
    numbers = list(file.segment_numbers)
    if segment is None and len(numbers) > 1:
        raise InvalidRequest(f"The mask {path.name} has the segments {numbers}: name one.")
    wanted = numbers[0] if segment is None else segment
    if wanted not in numbers:
        raise InvalidRequest(f"The mask {path.name} has no segment {wanted}: it has {numbers}.")
    try:
        volume = file.get_volume(segment_numbers=[wanted])
    except RuntimeError:  # of highdicom, where the frames are no regular grid
        raise InvalidRequest(
            f"The slices of the mask {path.name} are not evenly spaced: write it as NIfTI to go on from it."
        ) from None
    return volume.array[..., 0] > 0, volume.affine


def _same_patient(seg: Dataset, instance: Path) -> bool:
    """Return whether a SEG lies in the space of an instance and is of its study or series, as far as both name them."""
    header = source_header(instance)
    if seg.get("FrameOfReferenceUID") != frame_of_reference(header):
        return False
    series = {item.get("SeriesInstanceUID") for item in seg.get("ReferencedSeriesSequence") or ()}
    named = ((header.get("StudyInstanceUID"), {seg.get("StudyInstanceUID")}), (header.get("SeriesInstanceUID"), series))
    fits = [its in theirs for its, theirs in named if its and any(theirs)]
    return not fits or any(fits)


def _on_grid(voxels: NDArray[np.bool_], affine: NDArray[np.float64], geometry: Geometry) -> NDArray[np.bool_]:
    """Return voxels at the places of a grid, nearest neighbour; the axes of both must be parallel."""
    to_file = np.linalg.inv(affine) @ geometry.affine
    axes = np.abs(to_file[:3, :3]).argmax(axis=0)
    along = to_file[axes, range(3)]
    if sorted(axes) != [0, 1, 2] or np.abs(to_file[:3, :3]).sum() - np.abs(along).sum() > _SKEW:
        raise InvalidRequest("The axes of the mask are not those of the series: give a mask on the grid of the series.")
    turned = voxels.transpose(axes)
    mask = np.zeros(geometry.shape, np.bool_)
    places, sources = [], []
    for axis, length in enumerate(geometry.shape):
        at = np.rint(np.arange(length) * along[axis] + to_file[axes[axis], 3]).astype(int)
        inside = np.flatnonzero((at >= 0) & (at < turned.shape[axis]))
        places.append(inside)
        sources.append(at[inside])
    mask[np.ix_(*places)] = turned[np.ix_(*sources)]
    return mask


def segments(masks: Sequence[Mask], labels: Sequence[Label]) -> list[Segment]:
    """Return masks of classes and other prompts as segments of a DICOM SEG."""
    codes = {la.name: (la.snomed_code, la.snomed_meaning) for la in labels if la.snomed_code}
    return [Segment(mask.array, mask.name, codes.get(mask.label)) for mask in masks]


def maker(provenance: Provenance) -> Maker:
    """Return what a DICOM SEG says about who made it."""
    quantised = str(provenance.quantisation) if provenance.quantisation else None
    return Maker(provenance.software, provenance.checkpoint, provenance.checkpoint_digest, quantised)


def _comment(mask: Mask, provenance: Provenance) -> str:
    """Return as JSON what a NIfTI file says of its mask and of who made it; no word that a user typed."""
    said = {"label": mask.label or None, **asdict(maker(provenance)), "disclaimer": DISCLAIMER}
    return json.dumps({name: value for name, value in said.items() if value is not None})


def write_nifti(path: Path, loaded: LoadedSeries, mask: np.ndarray, comment: str = "") -> None:
    """Write a canonical mask bool [D, R, C] as uint8 with the source's own grid and affine, and a comment."""
    source = loaded.source
    stored = source.axis_map.invert(mask).astype(np.uint8)
    index = np.eye(4)[[2, 1, 0, 3]]
    if source.slices_reversed:
        stored = stored[::-1]
        index[0, 2], index[0, 3] = -1.0, stored.shape[0] - 1
    # NIfTI counts columns, rows, slices; the geometry counts slices, rows, columns.
    affine = RAS_TO_LPS @ source.geometry.affine @ index
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(np.ascontiguousarray(stored.transpose(2, 1, 0)), affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = "MedVL-SAM2 segmentation, not for diagnosis"
    if comment:
        image.header.extensions.append(Nifti1Extension("comment", comment.encode()))
    nibabel.save(image, path)


def _path(target: MaskTarget, mask: Mask) -> Path:
    if target.format is MaskFormat.NIFTI:
        return target.path
    name = re.sub(r"[^a-z0-9_]+", "-", mask.name.lower()).strip("-")[:_LONGEST_NAME]
    return target.path / f"{mask.object_index}-{name}.nii.gz"
