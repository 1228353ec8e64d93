"""Whose series it is: patient and study, which all instances of a series name alike.

They differ where an identity is corrected while a series is being sent, and would make results of two patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from unicodedata import normalize

from pydicom import Dataset
from pydicom.multival import MultiValue

from medvl.contracts.errors import MixedSeries

_TEXTS = ("PatientID", "IssuerOfPatientID", "PatientBirthDate", "StudyInstanceUID")
_NAME = "PatientName"


def patient_and_study(dataset: Dataset) -> Mapping[str, str]:
    """Return patient and study of an instance by keyword, equal where they mean the same; empty is what is not there.

    A name is the first of several, as in the results, in Unicode, without the delimiters at its end that DICOM lets
    everybody leave out (PS3.5, section 6.2.1).
    """
    return {**{keyword: _text(dataset.get(keyword)) for keyword in _TEXTS}, _NAME: _name(dataset.get(_NAME))}


def check_one_identity(identities: Sequence[Mapping[str, str]]) -> None:
    """Refuse instances of several patients or studies.

    Raises
    ------
    MixedSeries
        With the keywords that differ, never with what they say.
    """
    differing = [keyword for keyword in (*_TEXTS, _NAME) if len({one[keyword] for one in identities}) > 1]
    if differing:
        raise MixedSeries(
            f"The slices differ in {', '.join(differing)}, so they may be of several patients or studies: "
            "keep those of one, or fetch the series again."
        )


def _text(value: object) -> str:
    values = value if isinstance(value, MultiValue) else [value]
    return "\\".join(str(one or "").strip() for one in values)


def _name(value: object) -> str:
    first = value[0] if isinstance(value, MultiValue) else value
    groups = normalize("NFC", str(first or "")).split("=")
    return "=".join("^".join(part.strip() for part in group.split("^")).rstrip("^") for group in groups).rstrip("=")
