"""What callers may ask, checked once: texts, sampling, and prompts in millimetres turned into voxel indices.

Everything is refused here, before a model is asked, with one sentence that says what to change.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medvl.contracts.checkpoint import Checkpoint, LanguageSpec
from medvl.contracts.errors import InvalidRequest, PromptOutsideVolume
from medvl.contracts.messages import (
    BoxPrompt,
    LanguageOptions,
    PointPrompt,
    check_box_per_slice,
    check_given_slices,
    check_points_per_slice,
)
from medvl.imaging.geometry import Geometry
from medvl.imaging.masks import check_packed, occupied_slices
from medvl.orchestrator.config import RequestLimits
from medvl.wire.v1 import medvl_pb2 as pb

_CONTROL_TOKEN = re.compile(r"<\|[^|<>\s]+\|>")
"""The form of the control tokens of the Qwen2 family, such as those that end a turn."""
_SHA256_BYTES = 32
_ZERO_SIZE_VOXELS = 1e-6
"""Below this, an extent is what rounding between millimetres and indices leaves."""


@dataclass(frozen=True, slots=True)
class AskedObject:
    """An object to segment: described in words, shown by points, boxes and a mask, or both.

    Attributes
    ----------
    label
        Class, or empty.
    words
        The class or the text as the caller gave it, and how many points and boxes there are.
    window
        Name of the window of the slices.
    prompt
        What the language model reads, or None for an object that no words describe.
    points, boxes
        In voxel indices.
    mask
        Packed, or empty.
    earlier_sha256
        Of the packed mask that the caller holds, in hexadecimal, or None.
    """

    label: str
    words: str
    window: str
    prompt: str | None
    points: tuple[PointPrompt, ...]
    boxes: tuple[BoxPrompt, ...]
    mask: bytes
    earlier_sha256: str | None


def checked_text(text: str, what: str, language: LanguageSpec, limits: RequestLimits) -> str:
    """Return a text of a caller without surrounding blanks.

    Raises
    ------
    InvalidRequest
        When it is empty, too long, or spells a special token; ``what`` names it in the sentence.
    """
    text = text.strip()
    if not text:
        raise InvalidRequest(f"The {what} is empty: write what you want to know.")
    if len(text) > limits.max_text_characters:
        raise InvalidRequest(
            f"The {what} has {len(text)} characters: this server takes {limits.max_text_characters} at most."
        )
    spelled = [t for t in (language.image_token, language.seg_token, *_CONTROL_TOKEN.findall(text)) if t in text]
    if spelled:
        raise InvalidRequest(f"The {what} spells the special token {spelled[0]}: leave it out.")
    return text


def language_options(max_tokens: int, most_tokens: int, sampling: pb.Sampling | None) -> LanguageOptions:
    """Return how the language model is to answer freely; greedy without ``sampling``.

    Raises
    ------
    InvalidRequest
        On more tokens than the checkpoint allows, and on a temperature that is negative or not finite.
    """
    if max_tokens > most_tokens:
        raise InvalidRequest(f"The answer may have {most_tokens} tokens at most, not {max_tokens}: ask for fewer.")
    if sampling is None:
        return LanguageOptions(max_tokens=max_tokens or most_tokens)
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        raise InvalidRequest("The sampling temperature must be zero or above and finite.")
    return LanguageOptions(max_tokens=max_tokens or most_tokens, temperature=sampling.temperature, seed=sampling.seed)


def checked_objects(
    objects: Sequence[pb.ObjectPrompt], geometry: Geometry, checkpoint: Checkpoint, limits: RequestLimits
) -> list[AskedObject]:
    """Return the objects of a ``Segment`` request, in its order.

    Raises
    ------
    InvalidRequest
        On none or too many objects, an object described in no way or by a class and a text, or only by what is beside
        it or by corrections, too many prompts or corrections of one or points on one slice, wrong numbers, a box of
        zero size, two boxes with one middle slice, or masks that are too large or claim to be of another volume.
    UnknownLabel
        On a class that the checkpoint does not know.
    PromptOutsideVolume
        On a point or box that does not touch the volume.
    """
    if not objects:
        raise InvalidRequest("The request names no object: give a class, a text, points, boxes or a mask.")
    if len(objects) > limits.max_objects:
        raise InvalidRequest(
            f"The request names {len(objects)} objects: this server takes {limits.max_objects} at once."
        )
    if (mask_bytes := sum(len(o.mask) for o in objects)) > limits.max_mask_bytes:
        raise InvalidRequest(
            f"The request has {mask_bytes} bytes of masks: this server takes {limits.max_mask_bytes} at once."
        )
    checked = [_checked_object(o, geometry, checkpoint, limits) for o in objects]
    for number, one in enumerate(checked):
        check_box_per_slice(number, one.boxes)
        check_points_per_slice(number, one.points, one.boxes)
    return checked


def check_masks(objects: Sequence[AskedObject], geometry: Geometry) -> None:
    """Check what the masks of objects hold; unpacking them, one after another, is work for a thread.

    Raises
    ------
    InvalidRequest
        On a mask that is damaged or has no voxel, and on voxels on too many slices.
    """
    slices = 0
    for number, one in enumerate(objects):
        if one.mask:
            slices = check_given_slices(number, len(occupied_slices(one.mask, geometry.shape)), slices)


def _checked_object(
    prompt: pb.ObjectPrompt, geometry: Geometry, checkpoint: Checkpoint, limits: RequestLimits
) -> AskedObject:
    _require_one_description(prompt)
    _require_limits(prompt, limits)
    points = tuple(_point(p, geometry) for p in prompt.points)
    boxes = tuple(_box(b, geometry) for b in prompt.boxes)
    _require_what_it_is(prompt)
    if prompt.mask:
        check_packed(prompt.mask, geometry.shape)
    if len(prompt.earlier_sha256) not in {0, _SHA256_BYTES}:
        raise InvalidRequest(f"The earlier mask of an object is named by the {_SHA256_BYTES} bytes of its SHA-256.")
    label, words, question, window = _described(prompt, geometry, checkpoint, limits)
    return AskedObject(
        label=label,
        words=", ".join([*([words] if words else []), *_counted(prompt)]),
        window=window,
        prompt=question,
        points=points,
        boxes=boxes,
        mask=prompt.mask,
        earlier_sha256=prompt.earlier_sha256.hex() or None,
    )


def _require_one_description(prompt: pb.ObjectPrompt) -> None:
    if prompt.label and prompt.text:
        raise InvalidRequest("An object is described by a class or by a text, not by both.")
    if not (prompt.label or prompt.text or prompt.points or prompt.boxes or prompt.mask):
        raise InvalidRequest("An object is described by a class, a text, points, boxes or a mask: give one of these.")


def _require_limits(prompt: pb.ObjectPrompt, limits: RequestLimits) -> None:
    if (spatial := len(prompt.points) + len(prompt.boxes)) > limits.max_prompts_per_object:
        raise InvalidRequest(
            f"An object has {spatial} points and boxes: this server takes {limits.max_prompts_per_object}."
        )
    if (corrections := len({p.correction for p in prompt.points} - {0})) > limits.max_corrections_per_object:
        raise InvalidRequest(
            f"An object has {corrections} corrections: this server takes {limits.max_corrections_per_object}, "
            "so begin again from the mask that they make."
        )


def _require_what_it_is(prompt: pb.ObjectPrompt) -> None:
    """Refuse an object that only negative points or corrections show."""
    first = [p for p in prompt.points if not p.correction]
    if not (prompt.label or prompt.text or prompt.boxes or prompt.mask or any(not p.negative for p in first)):
        kind = "negative points" if first else "corrections"
        raise InvalidRequest(f"An object has {kind} only: say what it is by a positive point, a box, a mask or words.")


def _counted(prompt: pb.ObjectPrompt) -> list[str]:
    """Return in words how many points, boxes and masks show an object; nothing of what there is none of."""
    counts = (
        (len(prompt.points), "point", "points"),
        (len(prompt.boxes), "box", "boxes"),
        (int(bool(prompt.mask)), "mask", ""),
    )
    return [f"{n} {one if n == 1 else many}" for n, one, many in counts if n]


def _described(
    prompt: pb.ObjectPrompt, geometry: Geometry, checkpoint: Checkpoint, limits: RequestLimits
) -> tuple[str, str, str | None, str]:
    """Return class, words, question to the language model, and window."""
    templates, default_window = checkpoint.language.prompts, checkpoint.segmentation.window
    if prompt.label:
        label = checkpoint.label(prompt.label)
        question = templates.for_label(label.name, geometry.extent_mm)
        return label.name, label.name, question, label.window or default_window
    if prompt.text:
        text = checked_text(prompt.text, "text of an object", checkpoint.language, limits)
        return "", text, templates.for_text(text, geometry.extent_mm), default_window
    return "", "", None, default_window


def _point(point: pb.Point, geometry: Geometry) -> PointPrompt:
    index = _index(point.lps_mm, "point", geometry)
    if not ((index >= -0.5) & (index <= np.array(geometry.shape) - 0.5)).all():
        raise PromptOutsideVolume("A point lies outside the volume: give LPS millimetres within the series.")
    slice_index = min(max(round(index[0]), 0), geometry.shape[0] - 1)
    return PointPrompt(
        slice=slice_index,
        row=float(index[1]),
        column=float(index[2]),
        positive=not point.negative,
        correction=point.correction,
    )


def _box(box: pb.Box, geometry: Geometry) -> BoxPrompt:
    """Return a box along the axes of the grid; in millimetres its corners alone decide, so indices survive the way."""
    corners = np.stack([_index(box.min_lps_mm, "box", geometry), _index(box.max_lps_mm, "box", geometry)])
    lower, upper = corners.min(axis=0), corners.max(axis=0)
    if (upper[1:] - lower[1:] <= _ZERO_SIZE_VOXELS).any():
        raise InvalidRequest("A box has zero size within the slice: give two corners with an area between them.")
    last = np.array(geometry.shape) - 1
    if not ((upper >= -0.5) & (lower <= last + 0.5)).all():
        raise PromptOutsideVolume("A box does not touch the volume: give LPS millimetres within the series.")
    lower, upper = np.clip(lower, -0.5, last + 0.5), np.clip(upper, -0.5, last + 0.5)
    first_slice, last_slice = (int(np.clip(round(s), 0, last[0])) for s in (lower[0], upper[0]))
    return BoxPrompt(
        slice=(first_slice + last_slice) // 2,
        first_slice=first_slice,
        last_slice=last_slice,
        row_min=float(lower[1]),
        column_min=float(lower[2]),
        row_max=float(upper[1]),
        column_max=float(upper[2]),
    )


def _index(lps_mm: Sequence[float], what: str, geometry: Geometry) -> NDArray[np.float64]:
    """Return slice, row and column of a point in LPS millimetres; voxel centres are at whole numbers."""
    point = np.array(lps_mm, np.float64)
    if point.shape != (3,) or not np.isfinite(point).all():
        raise InvalidRequest(f"A {what} needs three finite coordinates in LPS millimetres.")
    return geometry.lps_to_index(point)
