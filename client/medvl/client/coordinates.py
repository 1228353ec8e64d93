"""Prompts as a person types them: ``x,y,z[,neg]``, ``x0,y0,z0,x1,y1,z1`` and ``FILE[,N]``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from medvl.client.prompts import Xyz
from medvl.contracts.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class TypedPoint:
    """A position as typed: LPS millimetres, or column, row and slice of the source."""

    xyz: Xyz
    negative: bool


@dataclass(frozen=True, slots=True)
class TypedBox:
    """Two opposite corners as typed, in the frame of :class:`TypedPoint`."""

    corner: Xyz
    opposite: Xyz


def parse_point(text: str) -> TypedPoint:
    """Read ``x,y,z`` or ``x,y,z,neg``.

    Raises
    ------
    InvalidRequest
        When it is neither.
    """
    parts = [part.strip() for part in text.split(",")]
    negative = len(parts) == 4 and parts[3].lower() == "neg"
    numbers = _numbers(parts[:3] if negative else parts)
    if numbers is None or len(numbers) != 3:
        raise InvalidRequest(f"A point is x,y,z or x,y,z,neg, such as -12.5,3,40, not {text!r}.")
    return TypedPoint((numbers[0], numbers[1], numbers[2]), negative)


def parse_box(text: str) -> TypedBox:
    """Read ``x0,y0,z0,x1,y1,z1``, the corners in any order.

    Raises
    ------
    InvalidRequest
        When it is not six numbers, or the corners agree in two coordinates, so that the box has no area.
    """
    numbers = _numbers(text.split(","))
    if numbers is None or len(numbers) != 6:
        raise InvalidRequest(f"A box is two opposite corners x0,y0,z0,x1,y1,z1, not {text!r}.")
    box = TypedBox((numbers[0], numbers[1], numbers[2]), (numbers[3], numbers[4], numbers[5]))
    if sum(a != b for a, b in zip(box.corner, box.opposite, strict=True)) < 2:
        raise InvalidRequest(f"The box {text} has no size: its corners must differ in two coordinates at least.")
    return box


@dataclass(frozen=True, slots=True)
class TypedMask:
    """A mask as typed: a file, and the segment or value of it that is meant."""

    path: Path
    segment: int | None


def parse_mask(text: str) -> TypedMask:
    """Read ``FILE`` or ``FILE,N``.

    Raises
    ------
    InvalidRequest
        When there is no such file.
    """
    name, comma, number = text.rpartition(",")
    typed = TypedMask(Path(name), int(number)) if comma and number.strip().isdecimal() else TypedMask(Path(text), None)
    if not typed.path.is_file():
        raise InvalidRequest(f"There is no file {typed.path}: name a mask as FILE or FILE,N.")
    return typed


def _numbers(parts: list[str]) -> list[float] | None:
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        return None
    return numbers if all(math.isfinite(number) for number in numbers) else None
