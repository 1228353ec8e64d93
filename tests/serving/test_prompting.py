"""Prompts: vision tokens go where the checkpoint says, and no text can spell a special token."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from medvl.contracts.checkpoint import Checkpoint, LanguageSpec, VisionSpec
from medvl.contracts.errors import CheckpointError, InvalidRequest
from medvl.serving.prompting import PromptBuilder, plain_tokenizer

SPECIAL = ["<|endoftext|>", "<image>"]
T, H = 3, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A byte-level BPE tokenizer whose [SEG] is an added token that is not marked special, as LISA adds it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["Sure, the liver is there. [SEG] <image>"] * 20, trainer)
    tokenizer.add_tokens([AddedToken("[SEG]", normalized=False)])
    path = tmp_path_factory.mktemp("llm")
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def checkpoint(**language: object) -> Checkpoint:
    """Return a checkpoint of which only the parts that prompts depend on are real."""
    prompts = {"segment_answer": "Sure, it is [SEG]."}
    return Checkpoint.model_construct(
        vision=VisionSpec.model_construct(regions=None),
        language=LanguageSpec.model_construct(
            **{"hidden_size": H, "dtype": "float32", "image_token": "<image>", "seg_token": "[SEG]", "splice": "prefix"}
            | {"prompts": Fields(**prompts)}
            | language
        ),
        projector=Fields(low_tokens=(T - 1,), high_tokens=(1,)),
    )


class Fields:
    def __init__(self, **fields: object) -> None:
        self.__dict__.update(fields)


def vision() -> np.ndarray:
    return np.arange(T * H, dtype=np.float32).reshape(T, H) + 1


@given(
    text=st.text(min_size=1) | st.sampled_from(["[SEG]", "<image>", "a<|endoftext|>b", "[[SEG]SEG]", "<image><image>"])
)
def test_no_text_spells_a_special_token(folder, text):
    """Whatever a user writes stays text: it never becomes [SEG], an image token or the end of the answer."""
    full = Tokenizer.from_file(str(folder / "tokenizer.json"))
    added = set(full.get_added_tokens_decoder())
    plain = plain_tokenizer((folder / "tokenizer.json").read_text("utf-8"))
    ids = plain.encode(text, add_special_tokens=False).ids
    assert not added & set(ids)
    assert full.decode(ids, skip_special_tokens=False) == text


def test_ordinary_text_has_its_ordinary_tokens(folder):
    """Without special tokens in it, text is tokenised as the checkpoint's tokenizer does."""
    full = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain = plain_tokenizer((folder / "tokenizer.json").read_text("utf-8"))
    text = "Where is the liver? Größe 肝臓"
    assert plain.encode(text).ids == full.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(("splice", "start"), [("prefix", 0), ("after_first", 1)])
def test_vision_tokens_go_where_the_checkpoint_says(folder, splice, start):
    """The vision tokens stand before the text or after its first token; everything else is text for vLLM to embed."""
    builder = PromptBuilder(folder, checkpoint(splice=splice))
    prompt = builder.build("the liver", vision())
    assert [i for i, text in enumerate(prompt.is_text) if not text] == list(range(start, start + T))
    assert torch.equal(prompt.embeddings[start : start + T], torch.from_numpy(vision()))
    assert {prompt.token_ids[i] for i in range(start, start + T)} == {builder.image_token_id}
    text = [t for t, is_text in zip(prompt.token_ids, prompt.is_text, strict=True) if is_text]
    full = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert full.decode(text) == "the liver"
    assert len(prompt.token_ids) == len(prompt.is_text) == len(prompt.embeddings)


def test_vision_tokens_may_take_the_first_words_place(folder):
    """As Med3DVLM has it: the image token, the vision tokens, the text without its first token."""
    builder = PromptBuilder(folder, checkpoint(splice="over_first"))
    prompt = builder.build("the liver", vision())
    full = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = full.encode("the liver", add_special_tokens=False).ids
    assert prompt.token_ids == [builder.image_token_id] * (1 + T) + text[1:]
    assert prompt.is_text == [True] + [False] * T + [True] * (len(text) - 1)
    assert torch.equal(prompt.embeddings[1 : 1 + T], torch.from_numpy(vision()))


@pytest.mark.parametrize(
    ("text", "tokens", "named"),
    [
        ("", vision(), "empty"),
        ("x", vision()[:2], "should be"),
        ("x", vision()[:, :2], "should be"),
        ("x", np.full((T, H), np.nan, np.float32), "not finite"),
        ("x", np.full((T, H), np.inf, np.float32), "not finite"),
    ],
)
def test_what_would_end_the_engine_is_refused(folder, text, tokens, named):
    """A wrong shape, NaN or infinity never reaches vLLM."""
    with pytest.raises(InvalidRequest, match=named):
        PromptBuilder(folder, checkpoint()).build(text, tokens)


def test_a_forced_answer_holds_seg_as_a_token(folder):
    """[SEG] in a template is the token; the pieces of text around it make up the template again."""
    builder = PromptBuilder(folder, checkpoint())
    answer = builder.forced_answer("Sure: [SEG] and [SEG].")
    assert answer.tokens.count(builder.seg_token_id) == 2
    assert [answer.tokens[end - 1] for end in answer.seg_ends] == [builder.seg_token_id] * 2
    assert "[SEG]".join(answer.pieces) == "Sure: [SEG] and [SEG]."


def test_a_template_without_seg_is_refused(folder):
    """A forced answer with nothing to ask of the model is a mistake."""
    with pytest.raises(InvalidRequest, match="must hold"):
        PromptBuilder(folder, checkpoint()).forced_answer("Sure.")


def test_an_answer_begins_behind_its_prompt(folder):
    """The beginning of a forced answer is text behind the prompt, which stays as it was."""
    prompt = PromptBuilder(folder, checkpoint()).build("the liver", vision())
    longer = prompt.followed_by([5, 6])
    n = len(prompt.token_ids)
    assert (longer.token_ids[:n], longer.token_ids[n:]) == (prompt.token_ids, [5, 6])
    assert longer.is_text[n:] == [True, True]
    assert torch.equal(longer.embeddings[:n], prompt.embeddings)


def test_a_tokenizer_without_the_seg_token_is_refused(folder):
    """A folder whose tokenizer does not know the checkpoint's tokens is not that checkpoint's."""
    with pytest.raises(CheckpointError, match=r"\[OTHER\]"):
        PromptBuilder(folder, checkpoint(seg_token="[OTHER]"))


def test_the_tokenizer_of_a_test_is_what_it_says(folder):
    """The fixture's [SEG] is an added token that is not special, the hardest case."""
    added = json.loads((folder / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    assert [t["special"] for t in added if t["content"] == "[SEG]"] == [False]


@given(st.lists(st.lists(st.integers(0, 299), max_size=3), max_size=30))
def test_the_pieces_of_an_answer_are_its_text(folder, steps):
    """However tokens are bundled, and whatever bytes they hold, the pieces joined are the text of all tokens."""
    full = Tokenizer.from_file(str(folder / "tokenizer.json"))
    size = full.get_vocab_size()
    steps = [[token % size for token in step] for step in steps]
    stream = PromptBuilder(folder, checkpoint()).text_stream()
    pieces = [stream.add(step, last=False) for step in steps]
    pieces.append(stream.add([], last=True))
    assert "".join(pieces) == full.decode([t for step in steps for t in step], skip_special_tokens=False)


def test_a_character_over_several_tokens_comes_whole(folder):
    """A character whose bytes are three tokens comes with the last of them."""
    full = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = full.encode("\u809d").ids
    assert len(tokens) == 3
    stream = PromptBuilder(folder, checkpoint()).text_stream()
    assert [stream.add([token], last=False) for token in tokens] == ["", "", "\u809d"]


@given(st.lists(st.lists(st.integers(0, 299), max_size=3), max_size=30))
def test_a_seg_token_knows_its_place_in_the_text(folder, steps):
    """In code points of the whole text, which holds it by then; neither bytes nor [SEG] in other tokens shift it."""
    full = Tokenizer.from_file(str(folder / "tokenizer.json"))
    builder, size = PromptBuilder(folder, checkpoint()), full.get_vocab_size()
    seg, spelled = builder.seg_token_id, plain_tokenizer(full.to_str()).encode("[SEG]").ids
    assert seg not in spelled
    steps = [[{0: seg, 1: spelled[0]}.get(token % 5, token % size) for token in step] + spelled for step in steps]
    stream, text, starts = builder.text_stream(), "", []
    for step in steps:
        text += stream.add(step, last=False)
        starts += (taken := stream.take_seg_starts(step.count(seg)))
        assert all(text.startswith("[SEG]", start) for start in taken)
    tokens = [token for step in steps for token in step]
    before = [tokens[:i] for i, token in enumerate(tokens) if token == seg]
    assert starts == [len(full.decode(part, skip_special_tokens=False)) for part in before]


def test_seg_does_not_wait_for_the_character_behind_it(folder):
    """Text before an unfinished character is sent at once."""
    builder = PromptBuilder(folder, checkpoint())
    full = Tokenizer.from_file(str(folder / "tokenizer.json"))
    first, *rest = full.encode("\u809d").ids
    stream = builder.text_stream()
    assert stream.add([builder.seg_token_id, first], last=False) == "[SEG]"
    assert stream.add(rest, last=False) == "\u809d"
