"""What a result says of its own making: software, checkpoint, windows, cost, and that it is not for diagnosis."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version

from medvl.contracts.checkpoint import Checkpoint
from medvl.contracts.disclaimer import DISCLAIMER
from medvl.contracts.messages import MAX_GIVEN_SLICES
from medvl.contracts.quantisation import Quantisation, served_files
from medvl.orchestrator.calls import Call
from medvl.orchestrator.config import OrchestratorConfig
from medvl.orchestrator.language import GeneratedText
from medvl.orchestrator.triton import Served
from medvl.wire.v1 import medvl_pb2 as pb

SOFTWARE = f"medvl-sam2 {version('medvl-sam2')}"


def provenance(served: Served, series: str = "", windows: Iterable[tuple[str, str]] = ()) -> pb.Provenance:
    """Return the provenance of a result.

    Parameters
    ----------
    served
        What the inference server said of itself.
    series
        Digest of the series, or empty when the message is about no series.
    windows
        Pairs of a use ("vision", "segmentation") and the name of a window that it looked through.
    """
    checkpoint = served.checkpoint
    uses: dict[str, list[str]] = {}
    for use, name in dict.fromkeys(windows):
        uses.setdefault(use, []).append(_describe(name, checkpoint))
    return pb.Provenance(
        series=series,
        checkpoint=checkpoint.name,
        trained=checkpoint.trained,
        checkpoint_digest=checkpoint.digest,
        file_sha256=served_files(checkpoint, served.quantisation),
        software=SOFTWARE,
        triton_version=served.triton_version,
        windows={use: "; ".join(names) for use, names in uses.items()},
        quantisation=_quantisation(served.quantisation),
    )


def done(call: Call, source: pb.Provenance, generated: GeneratedText | None = None) -> pb.Event:
    """Return the event that closes an answered stream."""
    message = pb.Done(stages_ms=call.stages.as_dict(), provenance=source, disclaimer=DISCLAIMER)
    if generated is not None:
        message.text = generated.text
        message.finish_reason = generated.usage.finish_reason
        message.prompt_tokens = generated.usage.prompt_tokens
        message.completion_tokens = generated.usage.completion_tokens
    return pb.Event(done=message)


def describe(served: Served, config: OrchestratorConfig) -> pb.DescribeResponse:
    """Return what a service tells of itself."""
    return pb.DescribeResponse(
        provenance=provenance(served),
        labels=[
            pb.Label(name=la.name, snomed_code=la.snomed.code, snomed_meaning=la.snomed.meaning)
            if la.snomed
            else pb.Label(name=la.name)
            for la in served.checkpoint.labels
        ],
        limits=pb.Limits(
            max_series_bytes=config.series.max_series_bytes,
            min_slices=config.series.min_slices,
            max_slices=config.series.max_slices,
            max_objects=config.request.max_objects,
            max_prompts_per_object=config.request.max_prompts_per_object,
            max_corrections_per_object=config.request.max_corrections_per_object,
            max_mask_bytes=config.request.max_mask_bytes,
            max_given_slices=MAX_GIVEN_SLICES,
            max_text_characters=config.request.max_text_characters,
        ),
        backends=served.backends,
        intended_use=served.checkpoint.intended_use,
        disclaimer=DISCLAIMER,
    )


def _quantisation(served: Quantisation | None) -> pb.Quantisation | None:
    if served is None:
        return None
    return pb.Quantisation(
        method=served.method,
        format=served.format,
        weight_bits=served.weight_bits,
        activation_bits=served.activation_bits or 0,
        dtype=served.dtype,
        digest=served.digest,
    )


def _describe(name: str, checkpoint: Checkpoint) -> str:
    lower, upper = checkpoint.windows[name]
    return f"{name} [{lower:g}, {upper:g}] HU"
