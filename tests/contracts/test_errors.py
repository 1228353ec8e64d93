"""The error tree is the one that its docstring draws."""

from __future__ import annotations

import re

from medvl.contracts import errors


def tree(cls: type, depth: int = 0) -> list[tuple[int, str]]:
    return [(depth, cls.__name__), *(node for child in cls.__subclasses__() for node in tree(child, depth + 1))]


def test_the_drawing_is_the_tree():
    """Every class stands in the drawing, under its parent, in the order of the module."""
    lines = re.findall(r"^    ([│├└─ ]*)([A-Z]\w+)", errors.__doc__, re.MULTILINE)
    drawn = [(len(prefix) // 4, name) for prefix, name in lines]
    assert drawn == tree(errors.MedvlError)


def test_reasons_are_unique():
    """A reason that crosses the wire names one class."""
    reasons = [getattr(errors, name).reason for _, name in tree(errors.MedvlError)]
    assert len(set(reasons)) == len(reasons)


def test_an_error_says_nothing_about_retrying_unless_told():
    """Repeating a call is pointless by default."""
    assert errors.Overloaded("Full.").retry_after_s is None
    assert errors.Overloaded("Full.", retry_after_s=2.0).retry_after_s == 2.0
