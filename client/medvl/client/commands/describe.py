"""``medvl describe``: what the service serves."""

from __future__ import annotations

import argparse
import asyncio

from medvl.client.aio import AsyncClient
from medvl.client.documents import description_document
from medvl.client.endpoint import find_endpoint
from medvl.client.exits import Exit
from medvl.client.results import ServiceDescription
from medvl.client.terminal import Output


def run_describe(arguments: argparse.Namespace) -> int:
    """Carry out ``medvl describe``."""
    endpoint = find_endpoint(arguments.endpoint)
    description = asyncio.run(_describe(endpoint, arguments.deadline))
    output = Output(as_json=arguments.as_json)
    for line in _lines(description):
        output.line(line)
    output.document(description_document(description))
    return Exit.OK


async def _describe(endpoint: str, deadline_s: float | None) -> ServiceDescription:
    async with AsyncClient(endpoint) as client:
        return await client.describe(deadline_s=deadline_s)


def _lines(description: ServiceDescription) -> list[str]:
    provenance, limits = description.provenance, description.limits
    trained = "trained" if provenance.trained else "NOT trained: random weights"
    # An older server does not tell these.
    corrections = f" in {limits.max_corrections_per_object} corrections" if limits.max_corrections_per_object else ""
    given = f", masks on {limits.max_given_slices} slices" if limits.max_given_slices else ""
    return [
        f"checkpoint    {provenance.checkpoint} ({trained}), {provenance.checkpoint_digest[:12]}",
        *([f"words         quantised: {provenance.quantisation}"] if provenance.quantisation else []),
        f"software      {provenance.software}, Triton {provenance.triton_version}",
        f"classes       {', '.join(label.name for label in description.labels)}",
        f"series        {limits.min_slices} to {limits.max_slices} slices, {limits.max_series_bytes} bytes at most",
        f"requests      {limits.max_objects} objects, {limits.max_prompts_per_object} prompts each{corrections}{given},"
        f" {limits.max_text_characters} characters at most",
        *(f"model         {model}: {backend}" for model, backend in sorted(description.backends.items())),
        f"intended use  {description.intended_use}",
        description.disclaimer,
    ]
