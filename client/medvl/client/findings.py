"""What a text names with a marker, [SEG]: its words, its mask, and the text as a person reads it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from medvl.client.events import Mask, TextSpan
from medvl.client.results import Answer
from medvl.imaging.seg import Segment

_MARKER = re.compile(re.escape("[SEG]"))
"""As checkpoints spell it; where there is a mask, its span tells. One without a mask ends a text that was cut off."""
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\n")
_NO_WORDS_OF_IT = re.compile(r"^(?:(?:findings?|impressions?)\s*:|and\b)\s*", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Finding:
    """What a report names with a marker.

    Attributes
    ----------
    words
        What the report says of it: the marker's sentence up to there, or from the marker before it on. May be empty.
    marker
        Where the marker stands in the text.
    mask
        None when there is no mask for this marker, as of a text that was cut off.
    """

    words: str
    marker: TextSpan
    mask: Mask | None

    def __str__(self) -> str:
        return f'Finding "{self.words}"' if self.words else "Finding"

    def segment(self, number: int) -> Segment:
        """Return its mask as a segment of a DICOM SEG; the number keeps names apart that are alike."""
        assert self.mask is not None, "what has no mask is no segment"
        label = f"Finding {number}: {self.words}" if self.words else f"Finding {number}"
        return Segment(self.mask.array, label, finding=True)


def findings(report: Answer) -> list[Finding]:
    """Return what a report names with markers, in the order of its text."""
    masks = {mask.span: mask for mask in report.masks if mask.span}
    spelled = (TextSpan(*match.span()) for match in _MARKER.finditer(report.text))
    markers = sorted({*masks, *spelled}, key=lambda marker: marker.start)
    starts = [0, *(marker.end for marker in markers)]
    return [
        Finding(_words(report.text[start : marker.start]), marker, masks.get(marker))
        for start, marker in zip(starts, markers, strict=False)
    ]


def finding_segments(named: Sequence[Finding]) -> list[Segment]:
    """Return the masks that were found as the first segments of a DICOM SEG, in the order of the text."""
    numbers = running_numbers([finding.mask for finding in named])
    return [finding.segment(number) for finding, number in zip(named, numbers, strict=True) if number]


def readable(text: str, named: Sequence[Finding], numbers: Sequence[int | None]) -> str:
    """Return a report without markers.

    Parameters
    ----------
    text
        The report as the service wrote it.
    named
        Its findings.
    numbers
        For each finding the number of its segment, which takes the place of its marker; None takes it out.
    """
    read, end = "", 0
    for finding, number in zip(named, numbers, strict=True):
        read = _joined(read, text[end : finding.marker.start])
        read = _joined(read, f"(segment {number})" if number else "")
        end = finding.marker.end
    return _joined(read, text[end:])


def running_numbers(masks: Sequence[Mask | None]) -> list[int | None]:
    """Return for each mask the number of its segment, counted from 1; None where nothing was found."""
    counted = count(1)
    return [next(counted) if mask is not None and mask.found else None for mask in masks]


def _words(before: str) -> str:
    """Return what a text says last."""
    sentence = _SENTENCE_END.split(before.strip())[-1]
    return _NO_WORDS_OF_IT.sub("", sentence.strip(" \t.,;:-*")).strip()


def _joined(left: str, right: str) -> str:
    """Return two parts of a text with one space between them, or none where none belongs."""
    left, right = left.rstrip(" \t"), right.lstrip(" \t")
    if not right:
        return left
    tight = not left or left[-1] in "\n(" or right[0] in "\n.,;:!?)"
    return left + ("" if tight else " ") + right
