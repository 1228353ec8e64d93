"""From the instances of a series to the documents that go back, with identities that follow from the inputs."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from itertools import count
from pathlib import Path

from pydicom import Dataset

from medvl.client.aio import AsyncClient
from medvl.client.events import Mask, Provenance
from medvl.client.findings import finding_segments, findings, readable, running_numbers
from medvl.client.maskfiles import maker, segments
from medvl.client.prompts import ObjectPrompt
from medvl.client.results import Answer, Label
from medvl.contracts.defects import cause_of
from medvl.contracts.disclaimer import CUT_OFF
from medvl.contracts.errors import BackendUnavailable, CorruptFile, InvalidRequest
from medvl.imaging.headers import source_header
from medvl.imaging.identity import check_one_identity, patient_and_study
from medvl.imaging.seg import Segment, SegUids, build_seg
from medvl.imaging.series import LoadedSeries, read_series
from medvl.pacs.config import GatewayConfig
from medvl.pacs.measurement_report import build_measurements
from medvl.pacs.spool import MASKS, MEASUREMENTS, REPORT
from medvl.pacs.structured_report import ReportText, Uids, build_sr

_LOG = logging.getLogger(__name__)

_EDITION = "4"
"""Of the documents: raised when the same inputs make other contents, which need UIDs of their own.

2: findings. 3: measurements, and the tracking UIDs by which they know the segments. 4: reports that were cut off are
partial, text of sequences is in the character set of the documents.
"""
_NAMESPACE = uuid.UUID("6f1c9a52-3a7b-5d0e-9b1e-0c3f5b1d7a44")
"""Of the UIDs that are derived; chosen once, never changed."""


async def analyse(
    client: AsyncClient, instances: list[Path], fingerprint: str, config: GatewayConfig
) -> dict[str, bytes]:
    """Have a series reported and segmented.

    Parameters
    ----------
    client
        The service.
    instances
        Its DICOM files, and no others that come meanwhile.
    fingerprint
        Names this set of instances and what they hold; with geometry policy, software, checkpoint, labels and edition
        of the documents it decides every UID of the results, so that doing it again makes the same documents, which a
        PACS stores once.
    config
        Labels and geometry policy. The report names the labels that the checkpoint does not know.

    Returns
    -------
    dict[str, bytes]
        DICOM files by name: the report, and the masks of its findings and of labels when any was found that fits on the
        stored pixels, with their measurements; the report says when it does not.

    Raises
    ------
    MedvlError
        What was wrong with the series, or what the service refused.
    """
    loaded = await asyncio.to_thread(_read, instances, config)
    report = await client.report(loaded.volume).collect()
    classes = (await client.describe()).labels if config.labels else ()
    # Each once: segments are told apart by their names.
    wanted = dict.fromkeys(config.labels)
    known = [label for label in wanted if any(label == its.name for its in classes)]
    unknown = [label for label in wanted if label not in known]
    if unknown:
        _LOG.warning("the checkpoint does not know the classes %s of --labels", ", ".join(unknown))
    provenance = report.done.provenance
    masks: Sequence[Mask] = ()
    if known:
        segmented = await client.segment(loaded.volume, [ObjectPrompt(label=label) for label in known]).collect()
        # They come as they are ready; segments are numbered the same each time.
        masks = sorted(segmented.masks, key=lambda mask: mask.object_index)
        if maker(segmented.done.provenance) != maker(provenance):
            raise BackendUnavailable("The service was replaced between the report and the masks: try again.")
    said = [_EDITION, fingerprint, config.geometry_policy, provenance.software, *_weights(provenance), *config.labels]
    return await asyncio.to_thread(_documents, loaded, report, masks, classes, unknown, "\n".join(said))


def _read(instances: list[Path], config: GatewayConfig) -> LoadedSeries:
    """Read a series that can have results: in a PACS they belong to its study, and one that was made up is another."""
    loaded = read_series(instances, config.geometry_policy)
    if not source_header(loaded.source.files[0]).get("StudyInstanceUID"):
        raise CorruptFile("The series lacks a StudyInstanceUID, to which its results would belong: send it again.")
    return loaded


def _documents(  # noqa: PLR0917 - all that the documents say
    loaded: LoadedSeries,
    report: Answer,
    masks: Sequence[Mask],
    classes: Sequence[Label],
    unknown: Sequence[str],
    identity: str,
) -> dict[str, bytes]:
    headers = [source_header(path) for path in sorted(set(loaded.source.files))]
    # Read a second time: what an instance says may have been replaced since.
    check_one_identity([patient_and_study(header) for header in headers])
    provenance = report.done.provenance
    named = findings(report)
    outlined = [*(finding.mask for finding in named), *masks]
    numbers = running_numbers(outlined)
    classes_found = segments([mask for mask in masks if mask.found], classes)
    found = _tracked([*finding_segments(named), *classes_found], identity)
    device = derived_uid(provenance.software, *_weights(provenance))
    origin = [*_notes(loaded, provenance), report.done.disclaimer]
    whole, cut_off = not report.done.cut_off, [CUT_OFF] if report.done.cut_off else []
    files, about_seg = {}, []
    if found:
        seg_uids = SegUids(derived_uid(identity, "SEG series"), derived_uid(identity, "SEG"))
        try:
            seg = build_seg(loaded, found, maker(provenance), seg_uids)
            files[MASKS] = _encoded(seg)
            about_seg.append("The numbers of segments are those of the DICOM SEG that comes with this report.")
        except Exception as error:  # the report is not lost with the masks
            numbers = [None] * len(outlined)
            about_seg.append(f"The masks are not given as DICOM SEG: {_refusal('masks', error)}")
        else:
            measured = [mask.measurement for mask in outlined if mask is not None and mask.measurement is not None]
            uids = _uids(identity, "measurements", device)
            try:
                made = build_measurements(seg, measured, [*cut_off, *origin], uids, headers, whole=whole)
                files[MEASUREMENTS] = _encoded(made)
            except Exception as error:  # nor are report and masks with the measurements
                about_seg.append(f"The measurements are not given as DICOM SR: {_refusal('measurements', error)}")
    names = [*(str(finding) for finding in named), *(mask.label for mask in masks)]
    not_sought = (f"{label}: not looked for, the checkpoint does not know this class." for label in unknown)
    notes = [*cut_off, *map(_measured, names, outlined, numbers), *about_seg, *not_sought, *origin]
    text = ReportText(readable(report.text, named, numbers[: len(named)]), notes, whole)
    return {REPORT: _encoded(build_sr(text, _uids(identity, "SR", device), headers)), **files}


def _tracked(found: Sequence[Segment], identity: str) -> list[Segment]:
    """Return segments, in the order of their numbers, with the UIDs by which the measurements name them, too."""
    uids = (derived_uid(identity, f"segment {number}") for number in count(1))
    return [replace(segment, tracking_uid=uid) for segment, uid in zip(found, uids, strict=False)]


def _refusal(what: str, error: Exception) -> str:
    """Return what the report may say of an error; the text of one that is not ours may hold values of a header."""
    if isinstance(error, InvalidRequest):
        return str(error)
    _LOG.warning("the %s could not be made a DICOM object: %s", what, cause_of(error))
    return "none could be made of this series."


def _uids(identity: str, document: str, device: str) -> Uids:
    return Uids(derived_uid(identity, f"{document} series"), derived_uid(identity, document), device)


def _weights(provenance: Provenance) -> list[str]:
    """Return what names the weights that answered: other ones write another report, which is another document."""
    quantisation = provenance.quantisation
    return [provenance.checkpoint_digest, *([quantisation.digest] if quantisation else [])]


def derived_uid(*inputs: str) -> str:
    """Return the UID (2.25, ITU-T X.667) that follows from inputs."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, chr(10).join(inputs)).int}"


def _measured(name: str, mask: Mask | None, segment: int | None) -> str:
    """Return the sentence about one mask; ``segment`` is its number in the SEG, None where it has none."""
    if mask is None:
        return f"{name}: no mask of it was made."
    if mask.measurement is None:
        absent = "not found in this series" if mask.span is None else "no mask of it was found"
        return f"{name}: {absent} (score {mask.score:.2f})."
    place = f" (segment {segment})" if segment else ""
    return (
        f"{name}{place}: volume {mask.measurement.volume_mm3 / 1000:.1f} ml, longest diameter in a slice "
        f"{mask.measurement.diameter_mm:.0f} mm (score {mask.score:.2f})."
    )


def _notes(loaded: LoadedSeries, provenance: Provenance) -> Iterator[str]:
    """Yield the sentences about the source's geometry and the origin of the result."""
    yield from (str(finding) for finding in loaded.findings)
    windows = ", ".join(f"{use}: {window}" for use, window in sorted(provenance.windows.items()))
    training = "trained" if provenance.trained else "not trained"
    yield (
        f"Made by {provenance.software} with the checkpoint {provenance.checkpoint} ({training}, SHA-256 "
        f"{provenance.checkpoint_digest}), Triton {provenance.triton_version}, windows {windows}."
    )
    if provenance.quantisation:
        yield f"The language model is quantised: {provenance.quantisation}."


def _encoded(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
