"""Results as JSON documents: what ``--json`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medvl.client.events import Mask
from medvl.client.results import Answer, ServiceDescription
from medvl.imaging.series import LoadedSeries


def series_document(loaded: LoadedSeries) -> dict[str, Any]:
    """Return digest, canonical geometry (LPS millimetres) and the findings of the geometry policy; no patient data."""
    geometry = loaded.volume.geometry
    return {
        "digest": loaded.volume.digest,
        "geometry": {
            "shape": list(geometry.shape),
            "spacing_mm": [float(x) for x in geometry.spacing_mm],
            "origin_mm": [float(x) for x in geometry.origin_mm],
            "direction": [[float(x) for x in axis] for axis in geometry.direction],
        },
        "findings": [str(finding) for finding in loaded.findings],
    }


def mask_document(mask: Mask, path: Path | None = None) -> dict[str, Any]:
    """Return what is known of a mask, its voxels excepted; ``path`` is where they were written."""
    return {
        "object": mask.object_index,
        "label": mask.label,
        "prompt": mask.prompt,
        "found": mask.found,
        "score": mask.score,
        "path": None if path is None else str(path),
        "measurement": None if mask.measurement is None else asdict(mask.measurement),
        "key_slices": list(mask.key_slices),
        "slice_scores": {str(k): v for k, v in sorted(mask.slice_scores.items())},
        "local": mask.local,
        "cleaned": None if mask.cleaned is None else asdict(mask.cleaned),
        "span": None if mask.span is None else asdict(mask.span),
    }


def answer_document(loaded: LoadedSeries, answer: Answer, paths: Mapping[int, Path] | None = None) -> dict[str, Any]:
    """Return a whole answer.

    Parameters
    ----------
    loaded
        The series that was asked about.
    answer
        What came back.
    paths
        Where masks were written, by their ``object_index``.
    """
    written = paths or {}
    return {
        "series": series_document(loaded),
        "text": answer.text,
        "finish_reason": answer.done.finish_reason,
        "tokens": {"prompt": answer.done.prompt_tokens, "completion": answer.done.completion_tokens},
        "masks": [mask_document(mask, written.get(mask.object_index)) for mask in answer.masks],
        "stages_ms": dict(answer.done.stages_ms),
        "provenance": asdict(answer.done.provenance),
        "disclaimer": answer.done.disclaimer,
    }


def description_document(description: ServiceDescription) -> dict[str, Any]:
    """Return what a service serves."""
    return asdict(description)
