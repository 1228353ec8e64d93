"""Headers of source instances, completed and cleaned for the objects that are derived from them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.multival import MultiValue
from pydicom.uid import CTImageStorage
from pydicom.valuerep import DA, TM

_TYPE_2 = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex",
    "AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
"""Attributes of patient and study that may be empty but must be there; real series leave some out."""
_DATES = (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM))
_NAMES = ("PatientName", "ReferringPhysicianName")
_SEXES = ("M", "F", "O")
"""DICOM PS3.3 C.7.1.1; real series also say U, or a word."""
_FUNCTIONAL_GROUPS = 0x5200
"""Of frames: hundreds of items without a word that results take over."""


def source_header(path: Path) -> Dataset:
    """Return the header of a source instance as SRs and SEG take it over.

    SOP class and instance are filled in from the file's own header where the data set lacks them. What a derived object
    cannot hold becomes empty, since none is better than a wrong one: dates and times that are none, a sex that DICOM
    does not define. Of several names of one person the first is kept. Text in sequences is decoded.
    """
    header = dcmread(path, stop_before_pixels=True)
    if not header.get("SOPClassUID"):
        header.SOPClassUID = header.file_meta.get("MediaStorageSOPClassUID", CTImageStorage)
    if not header.get("SOPInstanceUID"):
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID
    if not header.get("SpecificCharacterSet", "unset"):
        del header.SpecificCharacterSet
    for keyword, kind in _DATES:
        try:
            kind(header.get(keyword) or "")
        except ValueError:
            del header[keyword]
    if header.get("PatientSex") not in _SEXES:
        header.PatientSex = None
    for keyword in _NAMES:
        if isinstance(names := header.get(keyword), MultiValue):
            setattr(header, keyword, names[0])
    for keyword in _TYPE_2:
        if keyword not in header:
            setattr(header, keyword, None)
    _decode_sequences(header)
    return header


def _decode_sequences(header: Dataset) -> None:
    """Decode text inside of sequences: copied as bytes, it would be read in the character set of the result.

    Other text is decoded when it is copied.
    """
    for tag in list(header.keys()):
        if tag.group != _FUNCTIONAL_GROUPS and dictionary_has_tag(tag) and dictionary_VR(tag) == "SQ":
            alone = Dataset()
            alone.SpecificCharacterSet = header.get("SpecificCharacterSet")
            # A sequence with a number that is none stays as it is.
            with suppress(ValueError, TypeError, OverflowError):
                alone[tag] = header[tag]
                alone.decode()
