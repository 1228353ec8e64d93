"""Triton's configurations are those of the model specifications."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from medvl.contracts.models import CHECKPOINT_PARAMETER, MODELS, Kind
from medvl.contracts.pbtxt import Profile, main, render, render_all

REPOSITORY = Path(__file__).parents[2] / "model_repository"

every_model = pytest.mark.parametrize("model", MODELS.values(), ids=lambda m: m.name)
every_profile = pytest.mark.parametrize("profile", Profile)


def parse(text: str):
    return text_format.Parse(text, pb.ModelConfig())


def test_the_committed_configurations_are_current():
    """Rendering again changes nothing in the repository template."""
    assert main([str(REPOSITORY), "--check"]) == 0


def test_the_template_holds_nothing_else():
    """Beside the rendered files the template holds the entry points of the Python models only."""
    found = {p.relative_to(REPOSITORY).as_posix() for p in REPOSITORY.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    entry_points = {f"{m.name}/1/model.py" for m in MODELS.values() if m.kind is Kind.PYTHON}
    assert found == entry_points | render_all().keys()


def test_a_stale_file_is_named_and_mended(tmp_path, capsys):
    """``--check`` fails and names the file; a run without it writes it."""
    main([str(tmp_path)])
    (tmp_path / "llm" / "config.pbtxt").write_text("name: 'other'")
    capsys.readouterr()
    assert main([str(tmp_path), "--check"]) == 1
    assert capsys.readouterr().err == f"stale {tmp_path / 'llm' / 'config.pbtxt'}\n"
    assert main([str(tmp_path)]) == 0
    assert main([str(tmp_path), "--check"]) == 0


@every_model
@every_profile
def test_triton_reads_the_signature(model, profile):
    """A configuration parses as Triton's message, and its tensors are the specification's."""
    config = parse(render(model, profile))
    assert config.name == model.name
    assert config.max_batch_size == model.max_batch_size
    for specs, tensors in ((model.inputs, config.input), (model.outputs, config.output)):
        assert [t.name for t in tensors] == [s.name for s in specs]
        assert [tuple(t.dims) for t in tensors] == [s.dims for s in specs]
        assert [pb.DataType.Name(t.data_type) for t in tensors] == [f"TYPE_{s.dtype}" for s in specs]
    assert [t.optional for t in config.input] == [s.optional for s in model.inputs]
    assert config.model_transaction_policy.decoupled == model.decoupled


@pytest.mark.parametrize("name", ["llm", "volume_segmenter"])
@every_profile
def test_models_with_state_have_one_instance(name, profile):
    """What keeps an engine or a feature store runs once, however many GPUs the host has."""
    (group,) = parse(render(MODELS[name], profile)).instance_group
    assert group.count == 1
    assert group.kind != pb.ModelInstanceGroup.KIND_GPU or list(group.gpus) == [0]


@every_model
def test_networks_change_their_backend_with_the_profile(model):
    """A network is a TensorRT plan on the GPU and an ONNX graph on the CPU."""
    if model.kind is Kind.NETWORK:
        assert parse(render(model, Profile.GPU)).platform == "tensorrt_plan"
        assert parse(render(model, Profile.CPU)).backend == "onnxruntime"


@every_model
@every_profile
def test_a_queue_is_bounded(model, profile):
    """Where Triton batches, a queue has an end and a waiting request a time limit that callers may shorten."""
    config = parse(render(model, profile))
    assert config.HasField("dynamic_batching") == (model.kind is Kind.NETWORK and model.max_batch_size > 0)
    if config.HasField("dynamic_batching"):
        policy = config.dynamic_batching.default_queue_policy
        assert policy.max_queue_size >= model.max_batch_size
        assert 0 < policy.default_timeout_microseconds <= 60_000_000
        assert policy.allow_timeout_override


@every_model
def test_the_edges_of_an_ensemble_agree(model):
    """What one step gives is what the next one takes: same dtype, same shape; and every output is made."""
    have = {t.name: t for t in model.inputs}
    for step in model.steps:
        inner = MODELS[step.model]
        assert inner.max_batch_size >= model.max_batch_size
        assert step.inputs.keys() == {t.name for t in inner.inputs}
        for tensor in inner.inputs:
            source = have[step.inputs[tensor.name]]
            assert (source.dtype, source.shape) == (tensor.dtype, tensor.shape)
        have |= {step.outputs[t.name]: t for t in inner.outputs if t.name in step.outputs}
    if model.steps:
        assert all((have[t.name].dtype, have[t.name].shape) == (t.dtype, t.shape) for t in model.outputs)


@every_profile
def test_the_checkpoint_travels_in_the_configuration(checkpoint_fields, profile):
    """Quotes, line breaks and accents of ``checkpoint.json`` come back as they were, where a model asks for it."""
    text = json.dumps(checkpoint_fields, ensure_ascii=False, indent=2)
    for model in MODELS.values():
        parameters = parse(render(model, profile, text)).parameters
        assert (CHECKPOINT_PARAMETER in parameters) == model.checkpoint
        if model.checkpoint:
            assert parameters[CHECKPOINT_PARAMETER].string_value == text
