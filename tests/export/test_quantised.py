"""A repository is built of a quantised language model only where it is the checkpoint's, and holds its gate."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import pytest
from safetensors.torch import load_file, save_file

from medvl.contracts.checkpoint import CHECKPOINT_FILE, load_checkpoint
from medvl.contracts.errors import BuildError, CheckpointError, ParityError, SetupError
from medvl.contracts.manifest import PARITY_FILE, sha256_of, verify_repository
from medvl.contracts.pbtxt import render_all
from medvl.contracts.quantisation import Quantisation, parse_quantisation
from medvl.export import fingerprint, language_gate, networks, parts
from medvl.export.build import build_repository
from medvl.export.check_quantised import quantised_mismatches
from medvl.export.cli import main
from medvl.export.fresh import here
from medvl.export.gates import QUANTISED_GATE, AnswerParity, LanguageParity
from medvl.export.quantise import write_int8
from medvl.export.quantised import QuantisedLanguage, read_quantisation
from medvl.export.stamps import hashes_of

HOLDS = AnswerParity(prompt="Report.", free=True, same_words=True, cosine=0.999, broken=None)
PARITY = LanguageParity(engine="vllm 0", gate=QUANTISED_GATE, answers=(HOLDS,))


@pytest.fixture(scope="session")
def written_int8(phantom_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantised") / "int8"
    folder.mkdir()
    write_int8(phantom_checkpoint, folder)
    return folder


@pytest.fixture
def int8(written_int8, tmp_path):
    """A folder of its own, to be changed."""
    return shutil.copytree(written_int8, tmp_path / "int8")


@pytest.fixture
def gate(monkeypatch, toy_part):
    """Builds take a second: one toy network, and a gate that is counted and not run; returns who was compared."""
    compared = []

    def compare(checkpoint, quantised):
        compared.append(quantised)
        return PARITY

    monkeypatch.setattr(networks, "fresh", here)
    part = replace(toy_part, model=replace(toy_part.model, name="projector"))
    monkeypatch.setattr(parts, "load_parts", lambda _: [part])
    monkeypatch.setattr(language_gate, "gate_language", compare)
    return compared


def build(checkpoint, out, quantised=None):
    lines = []
    return build_repository(checkpoint, "cpu", out, lines.append, quantised=quantised), lines


def lines_of(folder, checkpoint):
    return list(quantised_mismatches(folder, checkpoint, load_checkpoint(checkpoint)))


def change(path, **fields):
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_what_quantise_writes_is_the_checkpoints(int8, phantom_checkpoint):
    """Nothing is wrong with it, and whoever may read the checkpoint's weights may read these."""
    assert lines_of(int8, phantom_checkpoint) == []
    weights = phantom_checkpoint / "llm" / "model.safetensors"
    assert (int8 / "model.safetensors").stat().st_mode == weights.stat().st_mode


def test_quantise_says_what_is_wrong_with_a_checkpoint(phantom_checkpoint, tmp_path):
    """As a build does, before anything is written; folders in the language model's are its own matter."""
    folder, out = shutil.copytree(phantom_checkpoint, tmp_path / "checkpoint"), tmp_path / "out"
    out.mkdir()
    weights = folder / "llm" / "model.safetensors"
    weights.write_bytes(b"damaged")
    (folder / "llm" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"llm/model\.safetensors: expected SHA-256"):
        write_int8(folder, out)
    assert not any(out.iterdir())
    shutil.copytree(phantom_checkpoint / "llm", folder / "llm", dirs_exist_ok=True)
    (folder / "llm" / "notes").mkdir()
    (folder / "llm" / "notes" / "licence.txt").write_text("free")
    spec = load_checkpoint(folder)
    files = spec.files | {"llm/notes/licence.txt": sha256_of(folder / "llm" / "notes" / "licence.txt")}
    (folder / CHECKPOINT_FILE).write_text(spec.model_copy(update={"files": files}).model_dump_json())
    write_int8(folder, out)
    assert (out / "notes" / "licence.txt").read_text() == "free"


@pytest.mark.parametrize(
    ("file", "fields", "line"),
    [
        ("config.json", {"hidden_size": 128}, "hidden_size: expected 256, found 128"),
        ("config.json", {"vocab_size": 9}, "vocab_size: expected 2048, found 9"),
        (
            "config.json",
            {"quantization_config": None},
            "quantization_config: expected how the layers are quantised, found none: medvl-export quantise writes such "
            "a folder",
        ),
        (
            "config.json",
            {"quantization_config": {"quant_method": "magic"}},
            "quantization_config: expected a quant_method with its bits, found {'quant_method': 'magic'}",
        ),
        ("config.json", {"max_position_embeddings": 7}, "max_position_embeddings: expected at least 1024, found 7"),
        ("generation_config.json", {"eos_token_id": 5}, "eos_token_id: expected [0], found [5]"),
        (
            "tokenizer.json",
            {"normalizer": {"type": "Lowercase"}},
            "normalizer: expected the checkpoint's, found another",
        ),
    ],
)
def test_another_model_is_named(int8, phantom_checkpoint, file, fields, line):
    """The file, what was expected, what was found."""
    change(int8 / file, **fields)
    assert lines_of(int8, phantom_checkpoint) == [f"int8/{file}: {line}"]


def test_another_tokenizer_is_named(int8, phantom_checkpoint):
    """[SEG] must be the token that the model has learnt to say."""
    path = int8 / "tokenizer.json"
    path.write_text(path.read_text().replace("[SEG]", "[GES]"))
    lines = lines_of(int8, phantom_checkpoint)
    assert lines[0].startswith("int8/tokenizer.json: [SEG]: expected the special token ")
    assert lines[0].endswith("found None")


def test_other_weights_are_named(int8, phantom_checkpoint):
    """A tensor that is missing, one of another shape, and layers that were not quantised at all."""
    path = int8 / "model.safetensors"
    tensors = load_file(path)
    norm = tensors.pop("model.norm.weight")
    bias = tensors["model.layers.0.self_attn.q_proj.bias"]
    save_file(tensors | {"model.layers.0.self_attn.q_proj.bias": bias[:3].clone()}, path)
    assert lines_of(int8, phantom_checkpoint) == [
        f"int8/model.layers.0.self_attn.q_proj.bias: expected {list(bias.shape)}, found [3]",
        "int8/model.norm.weight: expected, but missing",
    ]
    assert norm.shape == (256,)
    shutil.copyfile(phantom_checkpoint / "llm" / "model.safetensors", path)
    assert lines_of(int8, phantom_checkpoint) == [
        "int8/expected linear layers in fewer bits, found floating point alone"
    ]


def test_a_pickle_is_named(int8, phantom_checkpoint):
    """Beside safetensors, and in their place."""
    (int8 / "pytorch_model.bin").write_bytes(b"")
    line = "int8/pytorch_model.bin: expected safetensors, found a pickle, which may run code when it is loaded"
    assert lines_of(int8, phantom_checkpoint) == [line]
    (int8 / "model.safetensors").unlink()
    assert lines_of(int8, phantom_checkpoint) == [line, "int8: expected weights as safetensors, found none"]


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}, ("awq", "gemm", 4, None)),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, ("fp8", "", 8, 8)),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "mixed",
                "config_groups": {
                    "a": {"weights": {"num_bits": 8}, "input_activations": {"num_bits": 8}},
                    "b": {"weights": {"num_bits": 4}, "input_activations": None},
                },
            },
            ("compressed-tensors", "mixed", 4, None),
        ),
    ],
)
def test_bits_are_read_as_their_tools_write_them(phantom_checkpoint, tmp_path, scheme, said):
    """Those of the coarsest layer; activations count where all of them are quantised."""
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": scheme}))
    found = read_quantisation(tmp_path, load_checkpoint(phantom_checkpoint).language, {})
    assert (found.method, found.format, found.weight_bits, found.activation_bits) == said
    assert found.dtype == "bfloat16"
    assert parse_quantisation(found.model_dump_json()) == found


def test_a_changed_file_is_read_again(tmp_path):
    """And no other: the hash of one that looks as before is the one that was kept."""
    folder, kept = tmp_path / "folder", tmp_path / "kept"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_text(name)
    first = hashes_of(folder, kept)
    assert first == {name: sha256_of(folder / name) for name in ("a", "b")}
    kept.write_text(kept.read_text().replace(first["a"], "kept"))
    (folder / "b").write_text("other")
    assert hashes_of(folder, kept) == {"a": "kept", "b": sha256_of(folder / "b")}
    other = shutil.copytree(folder, tmp_path / "other")
    assert hashes_of(other, kept)["a"] == first["a"]


def test_a_repository_says_what_its_words_come_from(gate, int8, phantom_checkpoint, tmp_path):
    """Its files are the quantised ones, linked where they are weights; manifest, configuration and proof say so."""
    out = tmp_path / "repository"
    result, lines = build(phantom_checkpoint, out, int8)
    manifest = verify_repository(out)
    assert manifest == result.manifest
    told = manifest.quantisation
    assert (told.method, told.weight_bits, told.activation_bits, told.dtype) == ("compressed-tensors", 8, 8, "bfloat16")
    assert told.files == {path.name: sha256_of(path) for path in int8.iterdir()}
    served = out / "models" / "llm" / "1" / "llm"
    assert (served / "model.safetensors").stat().st_ino == (int8 / "model.safetensors").stat().st_ino
    text = (out / "checkpoint.json").read_text()
    for name, expected in render_all(text, told.model_dump_json()).items():
        assert (out / "models" / name).read_text() == expected
    assert json.loads((out / PARITY_FILE).read_text())["language"] == PARITY.model_dump(mode="json")
    assert lines[0].startswith(
        "llm                  8 bits, 1 of 1 answers in the same words, cosine 0.9990000; compare "
    )


def test_only_the_language_model_is_told_of_it():
    """Where nothing is quantised the configurations are what they were."""
    quantisation = Quantisation(method="m", format="", weight_bits=4, dtype="float16", files={})
    plain, told = render_all("{}"), render_all("{}", quantisation.model_dump_json())
    assert {name for name in plain if plain[name] != told[name]} == {"llm/config.pbtxt", "llm/configs/cpu.pbtxt"}


def test_a_second_build_does_nothing_and_a_changed_folder_is_noticed(gate, int8, phantom_checkpoint, tmp_path):
    """The gate is run again where the folder is another; networks are taken over, with and without it."""
    out = tmp_path / "repository"
    assert build(phantom_checkpoint, out)[0].steps
    result, _ = build(phantom_checkpoint, out, int8)
    assert result.built
    assert result.steps == ()
    assert not build(phantom_checkpoint, out, int8)[0].built
    assert len(gate) == 1
    change(int8 / "config.json", use_cache=False)
    assert build(phantom_checkpoint, out, int8)[0].built
    assert len(gate) == 2
    plain = build(phantom_checkpoint, out)[0]
    assert plain.built
    assert plain.steps == ()
    assert plain.manifest.quantisation is None
    assert not (tmp_path / ".repository.work").exists()


def test_a_build_that_ended_behind_the_gate_does_not_run_it_again(
    gate, monkeypatch, int8, phantom_checkpoint, tmp_path
):
    """At seven billion weights it takes minutes."""
    out = tmp_path / "repository"
    with monkeypatch.context() as patch:
        patch.setattr("medvl.export.build.write_skeleton", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(phantom_checkpoint, out, int8)
    _, lines = build(phantom_checkpoint, out, int8)
    assert len(gate) == 1
    assert lines[0].endswith("; was compared before")


@pytest.mark.parametrize("left", ["", '{"engine": '])
def test_half_written_figures_of_the_gate_are_no_figures(gate, left, tmp_path):
    """What a build that was killed has left is compared again, and not left half written."""
    kept, lines = tmp_path / "llm-0.json", []
    kept.write_text(left)
    said = Quantisation(method="fp8", format="", weight_bits=8, activation_bits=8, dtype="bfloat16", files={})
    language = QuantisedLanguage(tmp_path, said)
    for _ in range(2):
        assert language_gate.gated_language(tmp_path, language, kept, lines.append) == PARITY
    assert len(gate) == 1
    assert lines[1].endswith("; was compared before")
    assert {path.name for path in tmp_path.iterdir()} == {kept.name}


def refuse(error):
    def gate(checkpoint, quantised):
        raise error("no")

    return gate


@pytest.mark.usefixtures("gate")
@pytest.mark.parametrize("error", [ParityError, BuildError])
def test_a_refused_language_model_leaves_the_old_repository(monkeypatch, int8, phantom_checkpoint, tmp_path, error):
    """Whether its gate breaks or vLLM does not read it."""
    out = tmp_path / "repository"
    old = build(phantom_checkpoint, out)[0].manifest
    monkeypatch.setattr(language_gate, "gate_language", refuse(error))
    with pytest.raises(error):
        build(phantom_checkpoint, out, int8)
    assert verify_repository(out) == old
    change(int8 / "config.json", hidden_size=128)
    with pytest.raises(CheckpointError, match="hidden_size: expected 256, found 128"):
        build(phantom_checkpoint, out, int8)
    assert verify_repository(out) == old


@pytest.mark.usefixtures("gate")
def test_a_folder_that_changes_while_it_is_built_is_refused(monkeypatch, int8, phantom_checkpoint, tmp_path):
    """What was gated is what is served."""

    def compare(checkpoint, quantised):
        change(quantised / "generation_config.json", top_k=1)
        return PARITY

    monkeypatch.setattr(language_gate, "gate_language", compare)
    with pytest.raises(SetupError, match="The folder int8 was changed while a repository was built of it"):
        build(phantom_checkpoint, tmp_path / "repository", int8)
    assert not (tmp_path / "repository").exists()


def test_without_vllm_the_build_says_what_to_install(monkeypatch, capsys, written_int8, phantom_checkpoint, tmp_path):
    """In one sentence, before anything is built."""

    def version(name):
        if name.startswith("vllm"):
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(fingerprint, "version", version)
    arguments = [
        "build",
        "--checkpoint",
        phantom_checkpoint,
        "--quantised",
        written_int8,
        "--out",
        tmp_path / "repository",
    ]
    assert main([str(a) for a in arguments]) == 1
    sentence = "The package vllm is not installed on this machine: run make setup, or on a host with a GPU pip install "
    assert capsys.readouterr().err == f"{sentence}'.[serving]' in a checkout of medvl-sam2.\n"


def test_the_gate_names_every_answer_that_breaks_it(monkeypatch, tmp_path):
    """The lines are those of ``check --vllm``."""
    broken = AnswerParity(prompt="Where?", free=False, same_words=False, cosine=None, broken="expected 'a', found 'b'")
    parity = PARITY.model_copy(update={"answers": (HOLDS, broken)})
    _worker(monkeypatch, f"open(sys.argv[-1], 'w').write({parity.model_dump_json()!r})")
    with pytest.raises(ParityError) as caught:
        language_gate.gate_language(tmp_path, tmp_path / "int8")
    first, last = str(caught.value).splitlines()
    assert first == "llm: forced answer to 'Where?': expected 'a', found 'b'"
    assert last == "The quantised language model breaks its gate; nothing was installed."


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "print('(EngineCore pid=7) ERROR 11-27 03:30:00 [core.py:1510] NotImplementedError: No scheme', "
            "file=sys.stderr); raise RuntimeError('Engine core initialization failed. See root cause above.')",
            "NotImplementedError: No scheme",
        ),
        ("from medvl.contracts.errors import SetupError; raise SetupError('a word')", "SetupError: a word"),
        ("import os; os.kill(os.getpid(), 9)", "its process was killed by SIGKILL"),
        ("sys.exit(3)", "it died without a word"),
        ("import time; time.sleep(60)", "it has not answered within 1 s"),
    ],
)
def test_what_vllm_died_of_is_said(monkeypatch, tmp_path, code, said):
    """The root cause, which stands in the log of another process than the one that was started."""
    _worker(monkeypatch, code)
    monkeypatch.setattr(language_gate, "LIMIT_S", 1.0)
    with pytest.raises(BuildError) as caught:
        language_gate.gate_language(tmp_path, tmp_path / "int8")
    assert str(caught.value) == f"vLLM does not serve the language model of int8: {said}"


def _worker(monkeypatch, code):
    """Have other code run in the place of the worker."""
    start = language_gate.subprocess.run

    def run(command, **options):
        return start([command[0], "-c", f"import sys; {code}", *command[3:]], **options)

    monkeypatch.setattr(language_gate.subprocess, "run", run)
