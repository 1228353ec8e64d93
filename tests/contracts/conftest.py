"""A checkpoint's fields, small and consistent."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def checkpoint_fields() -> dict[str, Any]:
    """The fields of a ``checkpoint.json`` that holds; a test breaks what it needs."""
    return {
        "format": 1,
        "name": "tiny",
        "trained": False,
        "licence": "Apache-2.0",
        "provenance": 'made for a test; says "so" on\ntwo lines, in Zürich',
        "intended_use": "tests",
        "windows": {"abdomen": [-160.0, 240.0], "lung": [-1350.0, 150.0]},
        "vision": {
            "architecture": "dcformer",
            "grid": [32, 64, 64],
            "window": "abdomen",
            "dims": [16, 32, 48, 64, 80],
            "depths": [1, 1, 1, 1, 1],
            "kernel_sizes": [7, 5, 3, 3],
            "feature_stages": [3, 4],
        },
        "projector": {"architecture": "mixer", "low_tokens": [16, 8], "high_tokens": [4, 4], "mlp_depth": 2},
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
            "overrides": {"memory_attention.num_layers": 2},
            "side": 256,
            "fit": "pad",
            "window": "abdomen",
            "max_conditioning_slices": 4,
            "stop_after_absent": 3,
            "key_slices": {"max_slices": 4, "min_gap": 3, "min_score": 0.5},
        },
        "labels": [
            {"name": "liver", "snomed": {"code": "10200004", "meaning": "Liver structure"}},
            {"name": "lung_left", "window": "lung"},
        ],
        "files": {"sam2.safetensors": "0" * 64},
    }
