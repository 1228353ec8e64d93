"""Builds one engine: ``python -m medvl.export.engine_worker JOB ANSWER``, started by :mod:`medvl.export.engine_job`."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np

from medvl.contracts.errors import BuildError
from medvl.export.bounded import end_with_parent
from medvl.export.engine_job import Answer, EngineFacts, EngineJob, Refusal

# What a builder needs is imported when it runs.
# ruff: noqa: PLC0415


def main() -> None:
    """Build what the job tells and write the answer."""
    end_with_parent()
    job_file, answer_file = map(Path, sys.argv[1:])
    job = EngineJob.model_validate_json(job_file.read_bytes())
    # Deprecations of a library that the job was written for are no news to whoever runs it.
    warnings.simplefilter("ignore")
    try:
        answer = Answer(facts=_built(job, job_file.parent))
    except BuildError as error:
        answer = Answer(refusal=Refusal(refused=str(error)))
    answer_file.write_text(answer.model_dump_json(), "utf-8")


def _built(job: EngineJob, scratch: Path) -> EngineFacts:
    if job.builder == "torch-tensorrt":
        from medvl.export.engine_torch import convert

        return convert(job)
    from medvl.export.engine_onnx import parse_and_build

    graph = job.source
    if job.precision == "fp16":
        from medvl.export.autocast import to_fp16

        assert job.calibration is not None
        with np.load(job.calibration) as calibration:
            graph = to_fp16(job.source, scratch / "fp16.onnx", [dict(calibration)]).path
    return parse_and_build(job, graph)


if __name__ == "__main__":
    main()
