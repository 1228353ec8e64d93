"""Carry out ``medvl loadtest``: read and send the series, generate the load, print and write the figures."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
from typing import Any

from medvl.client.aio import AsyncClient
from medvl.client.policies import RetryPolicy
from medvl.client.results import ServiceDescription
from medvl.client.terminal import warn
from medvl.contracts.errors import InvalidRequest
from medvl.imaging.series import read_series
from medvl.imaging.volume import Volume
from medvl.loadtest.figures import SATURATED_LAG_MS, Distribution, Figures, Goodput, figures
from medvl.loadtest.generate import Generator, Sample
from medvl.loadtest.plan import Load, Task, requests

QUESTIONS = ("Is there a pleural effusion?", "How large is the liver?", "What is abnormal in this study?")
"""Asked in turn when none is given."""


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; return 0 when the test passed, else 1."""
    load = Load(
        request_rate=arguments.request_rate,
        concurrency=arguments.concurrency,
        duration_s=arguments.duration,
        deadline_s=arguments.deadline,
        max_requests=arguments.max_requests,
        warmup=arguments.warmup,
        seed=arguments.seed,
    )
    # Speed does not depend on the geometry, but who loads a series that would be refused is told so.
    loaded = read_series(arguments.series, "warn")
    for finding in loaded.findings:
        warn(str(finding))
    volume = loaded.volume
    service, samples = asyncio.run(_measure(arguments, load, volume))
    if not samples:
        raise InvalidRequest("No request fell into the duration: raise --request-rate or --duration.")
    result = figures(samples, Goodput(**dict(arguments.goodput)))
    passed = result.passed(arguments.min_goodput)
    _print(result, passed=passed)
    if arguments.json is not None:
        document = _document(arguments.task, load, volume, service, result, passed=passed)
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return int(not passed)


async def _measure(
    arguments: argparse.Namespace, load: Load, volume: Volume
) -> tuple[ServiceDescription, list[Sample]]:
    async with AsyncClient(arguments.endpoint, retry=RetryPolicy(max_attempts=1)) as client:
        service = await client.describe()
        await client.put_series(volume)
        labels = arguments.label or [la.name for la in service.labels[:1]]
        variants = requests(Task(arguments.task), volume, arguments.question or QUESTIONS, labels, load.seed)
        if not variants:
            raise InvalidRequest("The service names no class: give one with --label.")
        return service, await Generator(client, load, variants).run()


def _document(
    task: str, load: Load, volume: Volume, service: ServiceDescription, result: Figures, *, passed: bool
) -> dict[str, Any]:
    """Return what is written as JSON; the series is named by its digest alone."""
    provenance = service.provenance
    return {
        "task": task,
        "load": dataclasses.asdict(load),
        "series": {"digest": volume.digest, "shape": list(volume.geometry.shape)},
        "service": {
            "checkpoint": provenance.checkpoint,
            "checkpoint_digest": provenance.checkpoint_digest,
            "trained": provenance.trained,
            "quantisation": dataclasses.asdict(provenance.quantisation) if provenance.quantisation else None,
            "software": provenance.software,
            "triton_version": provenance.triton_version,
            "backends": dict(service.backends),
        },
        "figures": dataclasses.asdict(result),
        "saturated": result.saturated,
        "passed": passed,
    }


def _print(result: Figures, *, passed: bool) -> None:
    counts = ", ".join(f"{name} {count}" for name, count in result.outcomes.items() if count)
    lines = [
        f"{result.sent} requests in {result.wall_s:.1f} s: {counts}",
        f"{result.requests_per_s:.2f} right answers/s, {result.tokens_per_s:.1f} tokens/s",
        f"goodput {result.good_per_s:.2f}/s, {result.good_share:.1%} of what was sent",
        f"{'ms':10}{'p50':>10}{'p90':>10}{'p95':>10}{'p99':>10}{'max':>10}",
        *(_row(name, getattr(result, name)) for name in ("e2e", "ttft", "service", "tpot", "refusal")),
        "passed" if passed else "FAILED",
    ]
    sys.stdout.write("\n".join(line for line in lines if line) + "\n")
    if result.saturated:
        warn(
            f"The generator was {result.lag_p99_ms:.0f} ms late (p99; up to {SATURATED_LAG_MS:.0f} ms are harmless): "
            "it was the bottleneck; lower the load or run it elsewhere."
        )


def _row(name: str, d: Distribution | None) -> str:
    if d is None:
        return ""
    return f"{name:10}" + "".join(f"{value:10.1f}" for value in (d.p50, d.p90, d.p95, d.p99, d.max))
