"""From the instances of a series to the documents that go back, with identities that follow from the inputs."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

from pydicom import Dataset, dcmread

from medvl.client.aio import AsyncClient
from medvl.client.events import Mask, Provenance
from medvl.client.maskfiles import maker, segments
from medvl.client.prompts import ObjectPrompt
from medvl.client.results import Answer
from medvl.contracts.errors import InvalidRequest
from medvl.imaging.seg import Maker, Segment, SegUids, build_seg
from medvl.imaging.series import LoadedSeries, read_series
from medvl.pacs.config import GatewayConfig
from medvl.pacs.structured_report import ReportText, Uids, build_sr

_LOG = logging.getLogger(__name__)

_NAMESPACE = uuid.UUID("6f1c9a52-3a7b-5d0e-9b1e-0c3f5b1d7a44")
"""Of the UIDs that are derived; chosen once, never changed."""


async def analyse(client: AsyncClient, instances: Path, fingerprint: str, config: GatewayConfig) -> dict[str, bytes]:
    """Have a series reported and segmented.

    Parameters
    ----------
    client
        The service.
    instances
        Folder of its DICOM files.
    fingerprint
        Names this set of instances; with geometry policy, software, checkpoint and labels it decides every UID of the
        results, so that doing it again makes the same documents, which a PACS stores once.
    config
        Labels and geometry policy. The report names the labels that the checkpoint does not know.

    Returns
    -------
    dict[str, bytes]
        DICOM files by name: the report, and the masks when anything was found that fits on the stored pixels; the
        report says when it does not.

    Raises
    ------
    MedvlError
        What was wrong with the series, or what the service refused.
    """
    loaded = await asyncio.to_thread(read_series, instances, config.geometry_policy)
    report = await client.report(loaded.volume).collect()
    classes = (await client.describe()).labels if config.labels else ()
    known = [label for label in config.labels if any(label == its.name for its in classes)]
    unknown = [label for label in config.labels if label not in known]
    if unknown:
        _LOG.warning("the checkpoint does not know the classes %s of --labels", ", ".join(unknown))
    provenance = report.done.provenance
    masks: Sequence[Mask] = ()
    masks_maker = maker(provenance)
    if known:
        segmented = await client.segment(loaded.volume, [ObjectPrompt(label=label) for label in known]).collect()
        masks, masks_maker = segmented.masks, maker(segmented.done.provenance)
    found = segments([mask for mask in masks if mask.found], classes)
    said = [fingerprint, config.geometry_policy, provenance.software, *_weights(provenance), *config.labels]
    return await asyncio.to_thread(_documents, loaded, report, masks, found, unknown, masks_maker, "\n".join(said))


def _documents(  # noqa: PLR0917 - all that the documents say
    loaded: LoadedSeries,
    report: Answer,
    masks: Sequence[Mask],
    found: Sequence[Segment],
    unknown: Sequence[str],
    masks_maker: Maker,
    identity: str,
) -> dict[str, bytes]:
    # Only what was read: another instance may have arrived since.
    headers = [dcmread(path, stop_before_pixels=True) for path in sorted(set(loaded.source.files))]
    provenance = report.done.provenance
    notes = [*_notes(loaded, masks, unknown, provenance)]
    files = {}
    if found:
        seg_uids = SegUids(derived_uid(identity, "SEG series"), derived_uid(identity, "SEG"))
        try:
            files["seg.dcm"] = _encoded(build_seg(loaded, found, masks_maker, seg_uids))
        except InvalidRequest as refused:
            notes.append(f"The masks are not given as DICOM SEG: {refused}")
    text = ReportText(report.text, [*notes, report.done.disclaimer])
    uids = Uids(
        series=derived_uid(identity, "SR series"),
        instance=derived_uid(identity, "SR"),
        device=derived_uid(provenance.software, *_weights(provenance)),
    )
    return {"sr.dcm": _encoded(build_sr(text, uids, headers)), **files}


def _weights(provenance: Provenance) -> list[str]:
    """Return what names the weights that answered: other ones write another report, which is another document."""
    quantisation = provenance.quantisation
    return [provenance.checkpoint_digest, *([quantisation.digest] if quantisation else [])]


def derived_uid(*inputs: str) -> str:
    """Return the UID (2.25, ITU-T X.667) that follows from inputs."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, chr(10).join(inputs)).int}"


def _notes(
    loaded: LoadedSeries, masks: Sequence[Mask], unknown: Sequence[str], provenance: Provenance
) -> Iterator[str]:
    """Yield the sentences about measurements, the source's geometry and the origin of the result."""
    for mask in masks:
        if mask.measurement is None:
            yield f"{mask.label}: not found in this series (score {mask.score:.2f})."
        else:
            measured = mask.measurement
            yield (
                f"{mask.label}: volume {measured.volume_mm3 / 1000:.1f} ml, longest diameter in a slice "
                f"{measured.diameter_mm:.0f} mm (score {mask.score:.2f})."
            )
    yield from (f"{label}: not looked for, the checkpoint does not know this class." for label in unknown)
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
