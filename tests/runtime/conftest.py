"""Repositories of stand-in models, so that a real Triton and a real orchestrator start in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medvl.contracts.checkpoint import parse_checkpoint
from medvl.contracts.manifest import MODELS_FOLDER, Manifest, record_files
from medvl.contracts.models import MODELS, Kind
from medvl.contracts.pbtxt import write_all
from medvl.runtime.ports import free_ports
from medvl.runtime.triton import TritonConfig

ECHO = "llm"
"""The name of a real model, since the server loads no others."""

ECHO_CONFIG = f"""
name: "{ECHO}"
backend: "python"
max_batch_size: 0
input [ {{ name: "x", data_type: TYPE_UINT8, dims: [ -1 ] }} ]
output [ {{ name: "y", data_type: TYPE_UINT8, dims: [ -1 ] }} ]
instance_group [ {{ kind: KIND_CPU, count: 1 }} ]
"""

ECHO_MODEL = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(r, "x") for r in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("y", x)]) for x in inputs]
"""

REFUSING_MODEL = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        error = pb_utils.TritonError("INVALID_REQUEST: A stand-in computes nothing.")
        return [pb_utils.InferenceResponse(error=error) for _ in requests]
"""

ANSWERING_MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            answer = pb_utils.Tensor.from_dlpack("OUTPUT", np.frombuffer(ANSWER, np.uint8).copy())
            sender = request.get_response_sender()
            sender.send(pb_utils.InferenceResponse([answer]), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

ANSWERS = {"llm": ("text_delta", b"well"), "volume_segmenter": ("event", b'{"kind":"not_resident"}')}

CHECKPOINT = {
    "format": 1,
    "name": "stand-in",
    "trained": False,
    "licence": "Apache-2.0",
    "provenance": "made for a test",
    "intended_use": "tests",
    "windows": {"abdomen": [-160.0, 240.0]},
    "vision": {
        "architecture": "dcformer",
        "grid": [32, 64, 64],
        "window": "abdomen",
        "dims": [16, 32, 48, 64, 80],
        "depths": [1, 1, 1, 1, 1],
        "kernel_sizes": [7, 5, 3, 3],
        "feature_stages": [3, 4],
    },
    "projector": {"architecture": "mixer", "low_tokens": [8], "high_tokens": [4], "mlp_depth": 2},
    "language": {
        "hidden_size": 64,
        "max_context": 512,
        "dtype": "float32",
        "image_token": "<image>",
        "seg_token": "[SEG]",
        "splice": "prefix",
        "seg_state": "at",
        "max_report_tokens": 64,
        "max_answer_tokens": 32,
        "prompts": {
            "report": "Write the report.",
            "ask": "{question}",
            "segment_label": "Segment the {label}.",
            "segment_text": "Segment {text}.",
            "segment_answer": "Here: [SEG].",
        },
    },
    "segmentation": {
        "architecture": "sam2.1_hiera_t",
        "side": 256,
        "fit": "pad",
        "window": "abdomen",
        "max_conditioning_slices": 4,
        "stop_after_absent": 3,
        "key_slices": {"max_slices": 4, "min_gap": 3, "min_score": 0.5},
    },
    "labels": [{"name": "liver"}],
    "files": {},
}


def model_code(name: str) -> str:
    """Return the ``model.py`` of a stand-in."""
    if name not in ANSWERS:
        return REFUSING_MODEL
    output, answer = ANSWERS[name]
    return ANSWERING_MODEL.replace("OUTPUT", output).replace("ANSWER", repr(answer))


@pytest.fixture
def echo_config(tmp_path: Path) -> TritonConfig:
    """Configuration of a server that serves one model, which answers with what it got."""
    model = tmp_path / "models" / ECHO
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(ECHO_CONFIG)
    (model / "1" / "model.py").write_text(ECHO_MODEL)
    grpc_port, metrics_port = free_ports(2)
    return TritonConfig(
        repository=model.parent,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        log_file=tmp_path / "triton.log",
        models=(ECHO,),
        exit_timeout_s=5,
    )


@pytest.fixture
def stand_in_repository(tmp_path: Path) -> Path:
    """A whole repository whose networks refuse every request and whose other models answer with a constant."""
    repository = tmp_path / "stand-in"
    models = repository / MODELS_FOLDER
    text = json.dumps(CHECKPOINT)
    for path in write_all(models, text):
        path.write_text(path.read_text().replace('backend: "onnxruntime"', 'backend: "python"'))
    for name, spec in MODELS.items():
        (models / name / "1").mkdir()
        if spec.kind is not Kind.ENSEMBLE:
            (models / name / "1" / "model.py").write_text(model_code(name))
    checkpoint = parse_checkpoint(text)
    Manifest(
        checkpoint=checkpoint.name,
        checkpoint_digest=checkpoint.digest,
        trained=False,
        target="cpu",
        inputs="0" * 64,
        versions={},
        files=record_files(repository),
    ).write(repository)
    return repository
