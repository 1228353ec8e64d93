"""Points and boxes on real CT, beside masks that TotalSegmentator made: another model's output, not human truth."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medvl.contracts.errors import SetupError
from medvl.evaluation.cases import Condition, shown
from medvl.evaluation.evaluate import Participant, Tell
from medvl.evaluation.items import Segmented
from medvl.evaluation.masks import Target, pointed
from medvl.evaluation.records import Identity, Record, Records
from medvl.evaluation.subjects import Subject
from medvl.imaging.series import read_series
from medvl.imaging.volume import Volume

CAVEAT = "The masks of real CT are output of TotalSegmentator, not human ground truth."
CLICKS = 3
CLASS_MAP = "ts_example_ct/class_map_total.json"
_OBJECTS: Mapping[str, str] = {
    "liver": "liver",
    "spleen": "spleen",
    "kidney_left": "kidney_left",
    "kidney_right": "kidney_right",
    "aorta": "aorta",
    "vertebrae": "vertebrae_",
}
"""What is pointed at, and how the names of its classes begin."""
_LEAST_VOXELS = 50
_SAME_PLACE_MM = 0.1


@dataclass(frozen=True, slots=True)
class RealSeries:
    """A CT and its label map, relative to the folder of the data."""

    name: str
    images: str
    labels: str


SERIES = (
    RealSeries("ts_example_ct", "ts_example_ct/example_ct.nii.gz", "ts_example_ct/example_seg_fast_force_split.nii.gz"),
    RealSeries("ts_example_ct_dicom_j2k", "ts_example_ct_dicom_j2k", "ts_example_ct/example_seg_dicom.nii.gz"),
)


def evaluate_real(
    folder: Path, participants: list[Participant], checkpoint_digest: str, records: Records, tell: Tell
) -> list[Record]:
    """Return the results of all participants on the real series of a folder."""
    results = []
    loaded = [load(folder, series) for series in SERIES]
    for number, (series, (own, targets)) in enumerate(zip(SERIES, loaded, strict=True)):
        labels = hashlib.sha256((folder / series.labels).read_bytes()).hexdigest()
        other, _ = loaded[number - 1]
        for condition in Condition:
            volume = shown(own, condition, other)
            for participant in participants:
                identity = Identity(
                    checkpoint=checkpoint_digest,
                    software=participant.software,
                    case=series.name,
                    task=f"real {volume.digest[:12]} {labels[:12]} x {CLICKS}",
                    subject=participant.subject.name,
                    condition=condition.value,
                )
                work = partial(_pointed, series, volume, targets, participant.subject, tell)
                results.append(records.get(identity, work))
    return results


def require(folder: Path) -> None:
    """Refuse a folder without the real series.

    Raises
    ------
    SetupError
        With the part that is missing.
    """
    for part in (CLASS_MAP, *(part for series in SERIES for part in (series.images, series.labels))):
        if not (folder / part).exists():
            raise SetupError(f"The folder of real CT holds no {part}: name the folder with the example series.")
    _names(folder)


def load(folder: Path, series: RealSeries) -> tuple[Volume, list[Target]]:
    """Return a real CT and the objects in it, both on its canonical grid.

    Raises
    ------
    SeriesError, GeometryRefused
        When the files are no series.
    SetupError
        When they are not there, or the label map lies on another grid.
    """
    require(folder)
    volume = read_series(folder / series.images).volume
    labels = labels_on_grid(folder / series.labels, volume)
    names = _names(folder)
    masks = {name: _mask(labels, names, begin) for name, begin in _OBJECTS.items()}
    return volume, [
        Target(name, name, "organ", mask) for name, mask in masks.items() if np.count_nonzero(mask) >= _LEAST_VOXELS
    ]


def _names(folder: Path) -> dict[int, str]:
    """Return the names of the values of the label maps."""
    try:
        known = json.loads((folder / CLASS_MAP).read_text("utf-8"))["total"]
        return {int(value): str(name) for value, name in known.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SetupError(f"{CLASS_MAP} of the folder of real CT does not name the classes: fetch it again.") from error


def labels_on_grid(path: Path, volume: Volume) -> NDArray[np.int16]:
    """Return a label map of a NIfTI file as int16 [D, R, C] on the canonical grid of a volume.

    A label map is read as a series is: that turns it to canonical axes by its own affine matrix. It must then lie
    voxel on voxel, whatever the order and direction of the axes in either file.

    Raises
    ------
    SetupError
        When it does not.
    """
    labels = read_series(path).volume
    corners = np.array(np.meshgrid(*((0, n - 1) for n in volume.geometry.shape), indexing="ij")).reshape(3, -1).T
    places = [v.geometry.index_to_lps(corners) for v in (labels, volume)]
    if labels.geometry.shape != volume.geometry.shape or np.abs(places[0] - places[1]).max() > _SAME_PLACE_MM:
        raise SetupError(
            f"The label map {path.name} does not lie on the grid of its series: their voxels do not match."
        )
    return labels.hu


def _mask(labels: NDArray[np.int16], names: Mapping[int, str], begin: str) -> NDArray[np.bool_]:
    return np.isin(labels, [value for value, name in names.items() if name.startswith(begin)])


def _pointed(
    series: RealSeries, volume: Volume, targets: list[Target], subject: Subject, tell: Tell
) -> list[Segmented]:
    tell(f"real CT {series.name}, {subject.name}: {len(targets)} objects")
    return [item for target in targets for item in pointed(target, volume, subject, clicks=CLICKS)]
