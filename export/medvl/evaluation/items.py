"""What is written down of one answer: the answer, and how it compares with the truth."""

from __future__ import annotations

import base64
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from medvl.evaluation.metrics import dice, hd95_mm
from medvl.imaging.geometry import Triple
from medvl.imaging.masks import pack_mask, unpack_mask

ObjectKind = Literal["organ", "finding"]
PromptKind = Literal["name", "text", "report", "point", "box"]


class _Item(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Reported(_Item):
    """A report.

    Attributes
    ----------
    wanted, stated, matched
        Findings of the truth, of the report, and of both, by kind; an organ said to be removed counts as one.
    sided, side_right
        Findings of paired organs of which truth and report both name the kind, and those of them on the right side.
    unread
        Sentences that are no sentences of a report.
    errors_mm
        Of the size of each matched finding that is given in millimetres, absolute.
    """

    type: Literal["report"] = "report"
    text: str
    wanted: dict[str, int]
    stated: dict[str, int]
    matched: dict[str, int]
    sided: int
    side_right: int
    unread: int
    errors_mm: tuple[float, ...]


class Answered(_Item):
    """An answer to a question.

    Attributes
    ----------
    mirrored
        Whether the left side is said where it is the right one, or the right one where it is the left.
    several
        Whether there are two findings or more to be counted.
    error_mm
        Of a size in millimetres that can be read, absolute.
    """

    type: Literal["answer"] = "answer"
    topic: str
    closed: bool
    question: str
    answer: str
    right: bool
    mirrored: bool = False
    several: bool = False
    error_mm: float | None = None


class Segmented(_Item):
    """A mask.

    Attributes
    ----------
    prompt, clicks
        How it was asked for; number of points, 0 for the others.
    asked
        The words or the object, which tells it from others of the case.
    object, kind
        The organ, or the kind of the finding.
    present
        Whether there is anything to segment.
    found
        Whether the subject says so.
    dice
        None where nothing is present.
    hd95_mm
        None where either mask is empty.
    mask
        Packed as it travels, in base64; None when not found, or where nothing will be compared with it.
    """

    type: Literal["mask"] = "mask"
    prompt: PromptKind
    clicks: int = 0
    asked: str
    object: str
    kind: ObjectKind
    present: bool
    found: bool
    dice: float | None = None
    hd95_mm: float | None = None
    shape: tuple[int, int, int]
    mask: str | None = None

    def without_voxels(self) -> Segmented:
        """Return it without its mask, which is most of its size."""
        return self.model_copy(update={"mask": None})

    def voxels(self) -> NDArray[np.bool_]:
        """Return the mask, bool [D, R, C]; it must have been kept."""
        return unpack_mask(base64.b64decode(self.mask), self.shape) if self.mask else np.zeros(self.shape, np.bool_)


Item = Annotated[Reported | Answered | Segmented, Field(discriminator="type")]


def segmented(
    found: NDArray[np.bool_],
    wanted: NDArray[np.bool_] | None,
    spacing_mm: Triple,
    *,
    prompt: PromptKind,
    asked: str,
    name: str,
    kind: ObjectKind,
    clicks: int = 0,
) -> Segmented:
    """Return a mask beside the truth.

    Parameters
    ----------
    found
        bool [D, R, C]; without a voxel when the subject says that there is none.
    wanted
        bool [D, R, C]; None when there is nothing to segment.
    """
    present, is_found = wanted is not None, bool(found.any())
    return Segmented(
        prompt=prompt,
        clicks=clicks,
        asked=asked,
        object=name,
        kind=kind,
        present=present,
        found=is_found,
        dice=None if wanted is None else dice(found, wanted),
        hd95_mm=None if wanted is None else hd95_mm(found, wanted, spacing_mm),
        shape=found.shape,
        mask=base64.b64encode(pack_mask(found)).decode() if is_found else None,
    )
