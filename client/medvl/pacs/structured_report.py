"""The report as a DICOM Comprehensive SR, unverified and preliminary: a person reads and signs reports, we do not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from highdicom.sr import (
    CodeContentItem,
    CodedConcept,
    ComprehensiveSR,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    LanguageOfContentItemAndDescendants,
    ObservationContext,
    ObserverContext,
    RelationshipTypeValues,
    TextContentItem,
)
from pydicom import Dataset

MANUFACTURER = "MedVL-SAM2"
_REPORT = CodedConcept("18748-4", "LN", "Diagnostic imaging report")
_PROCEDURE_REPORTED = CodedConcept("121058", "DCM", "Procedure Reported")
_CT = CodedConcept("77477000", "SCT", "Computed tomography")
_DEVICE = CodedConcept("121007", "DCM", "Device")
_ENGLISH = CodedConcept("eng", "RFC5646", "English")
_FINDINGS = (CodedConcept("121070", "DCM", "Findings"), CodedConcept("121071", "DCM", "Finding"))
_IMPRESSION = (CodedConcept("121072", "DCM", "Impressions"), CodedConcept("121073", "DCM", "Impression"))
_ADDENDA = (CodedConcept("121076", "DCM", "Conclusions"), CodedConcept("121077", "DCM", "Conclusion"))
_IMPRESSION_HEADING = re.compile(r"^\s*impressions?\s*:\s*", re.IGNORECASE | re.MULTILINE)
_FINDINGS_HEADING = re.compile(r"^\s*findings?\s*:\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ReportText:
    """What the document says.

    Attributes
    ----------
    report
        The service's text without markers; a line that begins with "Impression:" begins that section, all before it are
        findings.
    notes
        Sentences about how the result came about: measurements, provenance, the disclaimer.
    whole
        Whether the report goes on to its end; the notes say so where it does not.
    """

    report: str
    notes: Sequence[str]
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Uids:
    """Identity of the document, derived from its inputs, and of the software that observed."""

    series: str
    instance: str
    device: str


def build_sr(text: ReportText, uids: Uids, evidence: Sequence[Dataset]) -> Dataset:
    """Return the document.

    Parameters
    ----------
    text
        What it says.
    uids
        Its identity.
    evidence
        Headers of the source instances, from :func:`medvl.imaging.headers.source_header`; patient and study come from
        the first, all are referenced.
    """
    content = _content(text, uids.device)
    description = "MedVL-SAM2 report, not verified, not for diagnosis"
    return document(content, uids, evidence, number=9001, description=description, whole=text.whole)


def document(
    content: Dataset, uids: Uids, evidence: Sequence[Dataset], *, number: int, description: str, whole: bool
) -> Dataset:
    """Return a root container as a document, the only one of its series, which ``number`` and ``description`` name.

    One that is not ``whole`` has the CompletionFlag PARTIAL.
    """
    return ComprehensiveSR(
        evidence=evidence,
        content=content,
        series_instance_uid=uids.series,
        series_number=number,
        sop_instance_uid=uids.instance,
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=whole,
        is_final=False,
        is_verified=False,
        series_description=description,
        specific_character_set="ISO_IR 192",
    )


def language() -> LanguageOfContentItemAndDescendants:
    """Return what language a document is in."""
    return LanguageOfContentItemAndDescendants(_ENGLISH)


def observation_context(device_uid: str) -> ObservationContext:
    """Return who observed: our software, no person."""
    device = DeviceObserverIdentifyingAttributes(uid=device_uid, name=MANUFACTURER)
    return ObservationContext(observer_device_context=ObserverContext(_DEVICE, device))


def _content(text: ReportText, device_uid: str) -> Dataset:
    """Return the root container, after DICOM PS3.16 TID 2000 Basic Diagnostic Imaging Report."""
    root = ContainerContentItem(_REPORT, template_id="2000")
    content = ContentSequence()
    content.extend(language())
    content.extend(observation_context(device_uid))
    content.append(CodeContentItem(_PROCEDURE_REPORTED, _CT, RelationshipTypeValues.HAS_CONCEPT_MOD))
    content.extend(_sections(text))
    root.ContentSequence = content
    return root


def _sections(text: ReportText) -> Iterator[Dataset]:
    findings, *impression = _IMPRESSION_HEADING.split(text.report, maxsplit=1)
    parts = (
        (_FINDINGS, [_FINDINGS_HEADING.sub("", findings)]),
        (_IMPRESSION, impression),
        (_ADDENDA, text.notes),
    )
    for (heading, name), paragraphs in parts:
        kept = [p.strip() for p in paragraphs if p.strip()]
        if kept:
            section = ContainerContentItem(heading, relationship_type=RelationshipTypeValues.CONTAINS)
            section.ContentSequence = ContentSequence(
                [TextContentItem(name, p, RelationshipTypeValues.CONTAINS) for p in kept]
            )
            yield section
