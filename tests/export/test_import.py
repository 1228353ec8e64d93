"""An import writes a checkpoint that holds the contract, whole or not at all, and knows when there is nothing to do."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from medvl.contracts.checkpoint import CHECKPOINT_FILE
from medvl.contracts.errors import CheckpointError, InvalidRequest, SetupError
from medvl.contracts.manifest import files_of, sha256_of
from medvl.export.check import mismatches
from medvl.export.cli import main
from medvl.export.importing import writing
from medvl.export.importing.importer import SOURCES_FILE, import_checkpoint
from medvl.network.model import ReferenceModel

from . import public_files, public_layouts

LAYER = "model.layers.1.mlp.down_proj"


@pytest.fixture
def sources(tmp_path):
    """What somebody has on disk."""
    return public_files.write_all(tmp_path / "disk")


def run(sources, out, spec=None):
    lines = []
    return import_checkpoint(sources, spec or public_files.spec(), out, lines.append), lines


def language_weights(folder):
    return {k: t for file in sorted((folder / "llm").glob("*.safetensors")) for k, t in load_file(file).items()}


def content(folder):
    return {name: path.read_bytes() for name, path in files_of(folder).items()}


def test_an_import_holds_the_contract_and_every_value(sources, tmp_path):
    """No mismatch, and every tensor is bit for bit the public one under the contract's name."""
    result, _ = run(sources, tmp_path / "out")
    assert mismatches(result.folder) == []
    model = public_layouts.values(public_files.MODEL, 0)
    found = {
        f"model.vision_tower.vision_tower.{k}": t
        for k, t in load_file(result.folder / "vision_encoder.safetensors").items()
    }
    found |= {f"model.mm_projector.{k}": t for k, t in load_file(result.folder / "projector.safetensors").items()}
    found |= language_weights(result.folder)
    sam2 = public_layouts.values(public_files.HIERA.layout(), 1)
    seg = public_layouts.values(public_files.PROJECTOR, 2)
    seg_found = load_file(result.folder / "seg_projector.safetensors")
    for expected, there in (
        (model, found),
        (sam2, load_file(result.folder / "sam2.safetensors")),
        (seg, {f"text_hidden_fcs.{k}": t for k, t in seg_found.items()}),
    ):
        assert expected.keys() == there.keys()
        assert all(torch.equal(expected[k], there[k]) and expected[k].dtype == there[k].dtype for k in expected)


def test_an_import_can_be_used(sources, tmp_path):
    """The torch reference loads it and answers; what it was made of is written in it."""
    result, _ = run(sources, tmp_path / "out")
    model = ReferenceModel.load(result.folder)
    tokens = torch.zeros(model.checkpoint.vision_tokens, 64)
    assert model.language.answer(tokens, "Describe the findings.", 4).token_ids
    assert model.language.seg_state(tokens, "liver", " It is [SEG].").shape == (64,)
    made_of = json.loads((result.folder / SOURCES_FILE).read_text())
    assert [f["name"] for f in made_of["files"]] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "MedSAM2_latest.pt",
        "text_hidden_fcs.pth",
    ]
    assert made_of["files"][2]["sha256"] == sha256_of(sources.sam2)


def test_shards_that_are_whole_are_linked(sources, tmp_path):
    """A shard that holds nothing else than the language model is the same file; the other is written again."""
    result, _ = run(sources, tmp_path / "out")
    shards = sorted((result.folder / "llm").glob("*.safetensors"))
    given = sorted(sources.med3dvlm.glob("*.safetensors"))
    assert [s.name for s in shards] == [g.name for g in given]
    assert [s.samefile(g) for s, g in zip(shards, given, strict=True)] == [True, False]


def test_a_folder_of_pickles_is_read(sources, tmp_path):
    """Older transformers folders hold ``pytorch_model-*.bin`` and an index; the result is the same weights."""
    shards = sorted(sources.med3dvlm.glob("*.safetensors"))
    files = {shard: f"pytorch_{shard.stem}.bin" for shard in shards}
    index = {"weight_map": {name: file for shard, file in files.items() for name in load_file(shard)}}
    for shard, file in files.items():
        torch.save(load_file(shard), sources.med3dvlm / file)
        shard.unlink()
    (sources.med3dvlm / "model.safetensors.index.json").unlink()
    (sources.med3dvlm / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    result, _ = run(sources, tmp_path / "out")
    assert mismatches(result.folder) == []
    assert not [name for name in files_of(result.folder) if name.endswith(".bin")]
    found, model = language_weights(result.folder), public_layouts.values(public_files.MODEL, 0)
    assert all(torch.equal(t, model[k]) for k, t in found.items())


def test_another_type_is_rounded_to(sources, tmp_path):
    """The language model gets the type in which it is served; the other parts keep theirs."""
    result, _ = run(sources, tmp_path / "out", public_files.spec("bfloat16"))
    model = public_layouts.values(public_files.MODEL, 0)
    found = language_weights(result.folder)
    assert all(torch.equal(t, model[k].to(torch.bfloat16)) for k, t in found.items())
    assert mismatches(result.folder) == []
    assert json.loads((result.folder / "llm" / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_file(result.folder / "sam2.safetensors")["no_obj_ptr"].dtype == torch.float32


def test_large_weights_are_split(sources, tmp_path, monkeypatch):
    """One file of weights becomes shards of bounded size with an index that the contract accepts."""
    monkeypatch.setattr(writing, "MAX_SHARD_BYTES", 60_000)
    torch.save(public_layouts.values(public_files.MODEL, 0), tmp_path / "model.bin")
    result, _ = run(replace(sources, med3dvlm=tmp_path / "model.bin", language=sources.med3dvlm), tmp_path / "out")
    shards = list((result.folder / "llm").glob("model-*.safetensors"))
    assert len(shards) > 3
    assert max(len(load_file(s)) for s in shards) > 1
    assert mismatches(result.folder) == []


@pytest.mark.parametrize(("dtype", "ulp"), [("F32", 2e-7), ("BF16", 2**-8), ("F16", 2**-11)])
def test_adapters_are_merged_in_fp32(sources, tmp_path, dtype, ulp):
    """``W + alpha / r * B A``, against float64: only the rounding to W's own type is left."""
    rank, alpha = 4, 6.0
    qwen = public_files.QWEN
    layout = public_layouts.in_type(dtype, public_layouts.with_adapters(qwen, public_files.MODEL, rank))
    tensors = public_layouts.values(layout, 3)
    torch.save(tensors, tmp_path / "model_with_lora.bin")
    given = replace(sources, med3dvlm=tmp_path / "model_with_lora.bin", language=sources.med3dvlm, lora_alpha=alpha)
    kept = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}[dtype]
    result, lines = run(given, tmp_path / "out", public_files.spec(kept))
    assert mismatches(result.folder) == []
    assert "14 LoRA adapters were merged in FP32." in lines
    found = language_weights(result.folder)
    for name in qwen.linear:
        w, a, b = (
            tensors[f"base_model.model.{name}.{key}.weight"].double().numpy()
            for key in ("base_layer", "lora_A.default", "lora_B.default")
        )
        expected = w + alpha / rank * (b @ a)
        assert np.abs(b @ a).max() > 4 * np.abs(expected).max() * ulp
        assert np.abs(found[f"{name}.weight"].double().numpy() - expected).max() <= np.abs(expected).max() * ulp
    embedding = "model.embed_tokens.weight"
    assert torch.equal(found[embedding], tensors[f"base_model.model.{embedding}"])


@pytest.mark.parametrize(("rank_stabilised", "root"), [(False, False), (True, True)])
def test_an_adapter_beside_its_model_is_merged(sources, tmp_path, rank_stabilised, root):
    """PEFT's folder gives alpha, and says whether rank or its root divides it."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    adapters = public_layouts.values(public_layouts.adapters_alone(public_files.QWEN, 4), 5)
    save_file(adapters, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": rank_stabilised, "use_dora": False}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    result, _ = run(replace(sources, lora=folder), tmp_path / "out")
    a, b = (adapters[f"base_model.model.{LAYER}.lora_{f}.weight"].double() for f in "AB")
    base = public_layouts.values(public_files.MODEL, 0)[f"{LAYER}.weight"].double()
    expected = base + 8 / (math.sqrt(4) if root else 4) * b @ a
    assert (language_weights(result.folder)[f"{LAYER}.weight"].double() - expected).abs().max() < 1e-6
    with pytest.raises(InvalidRequest, match="leave --lora-alpha out"):
        run(replace(sources, lora=folder, lora_alpha=8.0), tmp_path / "other")
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(CheckpointError, match=r"use_dora: expected none, found True"):
        run(replace(sources, lora=folder), tmp_path / "other")
    (folder / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": "pissa_niter_4"}))
    with pytest.raises(CheckpointError, match=r"init_lora_weights: pissa_niter_4 changes the model's own weights"):
        run(replace(sources, lora=folder), tmp_path / "other")


def test_adapters_from_two_places_are_refused(sources, tmp_path):
    """One would be merged with the other's alpha, or lost."""
    qwen, folder = public_files.QWEN, tmp_path / "adapter"
    folder.mkdir()
    save_file(public_layouts.values(public_layouts.adapters_alone(qwen, 4), 5), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    whole = public_layouts.values(public_layouts.with_adapters(qwen, public_files.MODEL, 4), 3)
    torch.save(whole, tmp_path / "model_with_lora.bin")
    given = replace(sources, med3dvlm=tmp_path / "model_with_lora.bin", language=sources.med3dvlm, lora=folder)
    with pytest.raises(CheckpointError, match=r"model_with_lora\.bin.*found, but"):
        run(given, tmp_path / "out")


def test_layers_that_were_trained_whole_take_the_models_place(sources, tmp_path):
    """PEFT keeps embeddings that grew beside its adapters: they win, as when PEFT loads them."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    layout = public_layouts.adapters_alone(public_files.QWEN, 4)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    layout |= {f"base_model.model.{name}": ("F32", (public_files.WORDS + 3, 64)) for name in names}
    adapter = public_layouts.values(layout, 5)
    save_file(adapter, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    small = public_layouts.med3dvlm(replace(public_files.QWEN, vocabulary=public_files.WORDS), {}, {})
    model = public_layouts.values(public_files.MODEL, 0)
    public_files.write_shards(sources.med3dvlm, model | {n: model[n][: small[n][1][0]].clone() for n in names})
    result, lines = run(replace(sources, lora=folder), tmp_path / "out")
    assert mismatches(result.folder) == []
    found = language_weights(result.folder)
    assert all(torch.equal(found[name], adapter[f"base_model.model.{name}"]) for name in names)
    assert "The adapter's own lm_head.weight takes the place of the model's." in lines


def test_a_second_import_does_nothing(sources, tmp_path):
    """With unchanged inputs the command says so, without loading torch; the folder's times stay."""
    out, spec = tmp_path / "out", tmp_path / "spec.json"
    spec.write_text(public_files.spec().model_dump_json())
    arguments = ["import", "--spec", spec, "--med3dvlm", sources.med3dvlm, "--sam2", sources.sam2]
    arguments += ["--seg-projector", sources.seg_projector, "--out", out]
    assert main([str(a) for a in arguments]) == 0
    before = (out / CHECKPOINT_FILE).stat().st_mtime_ns
    code = (
        "import sys; from medvl.export.cli import main; "
        f"status = main({[str(a) for a in arguments]!r}); sys.exit(status or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{out} is up to date\n"
    assert (out / CHECKPOINT_FILE).stat().st_mtime_ns == before


def test_what_changed_is_imported_again(sources, tmp_path):
    """Another source, another specification, a damaged result: each is noticed."""
    out = tmp_path / "out"
    first, _ = run(sources, out)
    assert not run(sources, out)[0].written
    os.utime(sources.sam2, ns=(1, 1))
    again, _ = run(sources, out)
    assert again.written
    assert again.checkpoint.digest == first.checkpoint.digest
    other = public_files.spec().model_copy(update={"licence": "another"})
    assert run(sources, out, other)[0].written
    (out / "sam2.safetensors").write_bytes(b"x")
    assert run(sources, out, other)[0].written
    assert mismatches(out) == []


def test_imports_are_reproducible(sources, tmp_path):
    """The same sources twice, from another place, are the same bytes."""
    run(sources, tmp_path / "a")
    run(public_files.write_all(tmp_path / "elsewhere"), tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_failed_import_leaves_the_old_folder(sources, tmp_path, monkeypatch):
    """Neither a wrong tensor nor a full disk touches what stands there; then it goes on as if nothing had been."""
    out = tmp_path / "out"
    run(sources, out)
    old = content(out)
    good = sources.sam2.read_bytes()
    torch.save({"model": {}}, sources.sam2)
    with pytest.raises(CheckpointError, match=r"sam2: expected \d+ tensors, found none: give --sam2"):
        run(sources, out)
    sources.sam2.write_bytes(good)

    def full(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(writing, "write_language_weights", full)
        with pytest.raises(OSError, match="no space"):
            run(sources, out)
    assert content(out) == old
    (tmp_path / ".out.staging").mkdir()
    (tmp_path / ".out.staging" / "half").write_text("of a killed import")
    assert run(sources, out)[0].written
    assert content(out) == old
    assert {p.name for p in tmp_path.iterdir()} == {"disk", "out", ".out.lock", ".out.import.json"}


def test_a_foreign_folder_is_not_replaced(sources, tmp_path):
    """What no import has made is refused, a source above all."""
    before = content(sources.med3dvlm)
    with pytest.raises(SetupError, match="was not made by an import: name another with --out"):
        run(sources, sources.med3dvlm)
    assert content(sources.med3dvlm) == before


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        """Make a folder."""
        return os.mkdir, (str(self.path),)


def test_a_pickle_runs_nothing(sources, tmp_path):
    """Weights that bring code are refused by name, and the code is not run."""
    torch.save({"model": Payload(tmp_path / "ran")}, sources.sam2)
    with pytest.raises(CheckpointError, match=r"MedSAM2_latest\.pt: expected tensors in the zip format"):
        run(sources, tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda s: s.sam2.write_bytes(b"PK"), "MedSAM2_latest.pt: expected tensors in the zip format"),
        (lambda s: torch.save([1, 2], s.sam2), "MedSAM2_latest.pt: expected a state dict, found list"),
        (lambda s: torch.save({"epoch": 3}, s.sam2), "MedSAM2_latest.pt: epoch: expected a tensor, found int"),
        (lambda s: s.sam2.unlink(), "MedSAM2_latest.pt: expected weights, but there is no such file"),
        (
            lambda s: (s.med3dvlm / "model-00001-of-00002.safetensors").unlink(),
            "model-00001-of-00002.safetensors: expected safetensors, but missing",
        ),
        (
            lambda s: os.truncate(s.med3dvlm / "model-00001-of-00002.safetensors", 5000),
            "model-00001-of-00002.safetensors: expected safetensors, found a file that is not",
        ),
        (
            lambda s: (s.med3dvlm / "model.safetensors.index.json").write_text("{}"),
            "model.safetensors.index.json: expected a weight_map, found none",
        ),
        (lambda s: (s.med3dvlm / "config.json").unlink(), "expected config.json of a transformers folder"),
        (
            lambda s: (s.med3dvlm / "config.json").write_text('{"model_type": "llama"}'),
            "config.json: model_type: expected qwen2 or vlm_qwen, found llama",
        ),
        (lambda s: (s.med3dvlm / "tokenizer.json").write_text("{"), "expected tokenizer.json, or vocab.json and"),
        (
            lambda s: public_files.write_language(s.med3dvlm, (public_files.END,)),
            "llm/tokenizer.json: expected the special token [SEG], found none of that name\n"
            "llm/tokenizer.json: expected the special token <im_patch>, found none of that name",
        ),
    ],
)
def test_a_damaged_source_is_named(sources, tmp_path, damage, line):
    """Each damage gives a line that says what was expected there; nothing is written."""
    damage(sources)
    with pytest.raises(CheckpointError) as caught:
        run(sources, tmp_path / "out")
    assert line in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_slow_tokenizer_is_converted(sources, tmp_path):
    """Med3DVLM saves ``vocab.json`` and ``merges.txt``: the tokens of a text stay what they were."""
    made = public_files.tokenizer()
    model = sources.med3dvlm
    (model / "tokenizer.json").unlink()
    made.model.save(str(model))
    added = {str(i): t.content for i, t in made.get_added_tokens_decoder().items()}
    (model / "added_tokens.json").write_text(json.dumps({token: int(i) for i, token in added.items()}))
    decoder = {i: {"content": token, "special": True, "normalized": False} for i, token in added.items()}
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": public_files.END, "added_tokens_decoder": decoder}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    result, _ = run(sources, tmp_path / "out")
    assert mismatches(result.folder) == []
    found = Tokenizer.from_file(str(result.folder / "llm" / "tokenizer.json"))
    text = "Please segment the liver. <im_patch>It is [SEG].<|endoftext|>"
    assert found.encode(text, add_special_tokens=False).ids == made.encode(text, add_special_tokens=False).ids


def test_the_tokens_of_the_model_are_special(sources, tmp_path):
    """[SEG] that was added as an ordinary token becomes a special one; one that the embedding has room for is added."""
    path = sources.med3dvlm / "tokenizer.json"
    fields = json.loads(path.read_text())
    fields["added_tokens"][-1]["special"] = False
    path.write_text(json.dumps(fields))
    result, _ = run(sources, tmp_path / "a")
    assert mismatches(result.folder) == []
    public_files.write_language(sources.med3dvlm, (public_files.END, public_files.IMAGE))
    result, _ = run(sources, tmp_path / "b")
    found = Tokenizer.from_file(str(result.folder / "llm" / "tokenizer.json"))
    assert found.token_to_id(public_files.SEG) == public_files.WORDS + 2


def test_generation_ends_and_is_greedy(sources, tmp_path):
    """Only where answers end goes on: temperature and penalties of a chat model do not."""
    result, _ = run(sources, tmp_path / "out")
    generation = json.loads((result.folder / "llm" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [public_files.WORDS]
    assert generation.get("temperature") is generation.get("repetition_penalty") is None
    config = json.loads((result.folder / "llm" / "config.json").read_text())
    assert config["model_type"] == "qwen2"
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert config["rope_parameters"]["rope_theta"] == 1_000_000
    assert "vision_tower" not in config


def test_a_file_of_weights_needs_its_language_folder(sources, tmp_path):
    """A state dict has no configuration: the sentence names the option."""
    torch.save(public_layouts.values(public_files.MODEL, 0), tmp_path / "model.bin")
    with pytest.raises(InvalidRequest, match=r"give the transformers folder with its config\.json"):
        run(replace(sources, med3dvlm=tmp_path / "model.bin"), tmp_path / "out")


def test_a_specification_is_a_template(capsys, tmp_path):
    """What ``spec`` prints is read again as it is; an unknown name or field is told."""
    assert main(["spec", "med3dvlm-7b"]) == 0
    (tmp_path / "spec.json").write_text(capsys.readouterr().out)
    arguments = ["--med3dvlm", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]
    assert main(["import", "--spec", str(tmp_path / "spec.json"), *arguments]) == 1
    assert capsys.readouterr().err.endswith("nowhere: expected weights, but there is no such file or folder.\n")
    assert main(["spec", "med3dvlm-70b"]) == 1
    assert capsys.readouterr().err == "There is no specification med3dvlm-70b; there are med3dvlm-7b.\n"
    (tmp_path / "spec.json").write_text('{"colour": "red"}')
    assert main(["import", "--spec", str(tmp_path / "spec.json"), *arguments]) == 1
    assert "colour: Extra inputs are not permitted" in capsys.readouterr().err
