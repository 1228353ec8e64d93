"""Bad input: one clear sentence, the right code, and a server that goes on serving."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from medvl.contracts import errors
from medvl.contracts.messages import MAX_GIVEN_SLICES
from medvl.imaging.masks import pack_mask
from medvl.orchestrator.config import RequestLimits, SeriesLimits
from medvl.wire.status import from_rpc_error
from medvl.wire.v1 import medvl_pb2 as pb

from .conftest import Series, Start, System, collect

SERIES = Series.make()
NAN, INF = float("nan"), float("inf")


def point(*lps_mm: float, negative: bool = False) -> pb.Point:
    return pb.Point(lps_mm=lps_mm, negative=negative)


def box(lower, upper) -> pb.Box:
    return pb.Box(min_lps_mm=lower, max_lps_mm=upper)


INSIDE = SERIES.lps(1, 1, 1)
MASK = np.random.default_rng(3).random(SERIES.hu.shape) < 0.5
OBJECTS = {
    "no object": ([], errors.InvalidRequest),
    "too many objects": ([pb.ObjectPrompt(label="liver")] * 5, errors.InvalidRequest),
    "no prompt": ([pb.ObjectPrompt()], errors.InvalidRequest),
    "class and text": ([pb.ObjectPrompt(label="liver", text="x")], errors.InvalidRequest),
    "damaged mask": ([pb.ObjectPrompt(mask=b"mask")], errors.InvalidRequest),
    "mask of another volume": ([pb.ObjectPrompt(mask=pack_mask(np.ones((2, 3, 4), bool)))], errors.InvalidRequest),
    "masks too large": ([pb.ObjectPrompt(mask=b"m" * (2**20 + 1))], errors.InvalidRequest),
    "unknown class": ([pb.ObjectPrompt(label="unicorn")], errors.UnknownLabel),
    "blank text": ([pb.ObjectPrompt(text="  ")], errors.InvalidRequest),
    "too many points": ([pb.ObjectPrompt(points=[point(*INSIDE)] * 4)], errors.InvalidRequest),
    "no SHA-256": ([pb.ObjectPrompt(points=[point(*INSIDE)], earlier_sha256=b"abc")], errors.InvalidRequest),
    "only corrections": (
        [pb.ObjectPrompt(points=[pb.Point(lps_mm=INSIDE, correction=1)])],
        errors.InvalidRequest,
    ),
    "only negative": ([pb.ObjectPrompt(points=[point(*INSIDE, negative=True)])], errors.InvalidRequest),
    "two coordinates": ([pb.ObjectPrompt(points=[point(1.0, 2.0)])], errors.InvalidRequest),
    "no coordinates": ([pb.ObjectPrompt(boxes=[pb.Box()])], errors.InvalidRequest),
    "not a number": ([pb.ObjectPrompt(points=[point(NAN, 0.0, 0.0)])], errors.InvalidRequest),
    "infinite": ([pb.ObjectPrompt(boxes=[box(INSIDE, (INF, 0.0, 0.0))])], errors.InvalidRequest),
    "outside": ([pb.ObjectPrompt(points=[point(500.0, 0.0, 0.0)])], errors.PromptOutsideVolume),
    "far outside": ([pb.ObjectPrompt(points=[point(1e308, -1e308, 1e308)])], errors.PromptOutsideVolume),
    "just outside": ([pb.ObjectPrompt(points=[point(*SERIES.lps(7.6, 1, 1))])], errors.PromptOutsideVolume),
    "box outside": ([pb.ObjectPrompt(boxes=[box((500.0,) * 3, (600.0,) * 3)])], errors.PromptOutsideVolume),
    "a point as a box": ([pb.ObjectPrompt(boxes=[box(INSIDE, INSIDE)])], errors.InvalidRequest),
    "a line as a box": (
        [pb.ObjectPrompt(boxes=[box(SERIES.lps(1, 1, 1), SERIES.lps(4, 5, 1))])],
        errors.InvalidRequest,
    ),
}

QUESTIONS = {
    "empty": "",
    "blank": " \n\t",
    "too long": "x" * 41,
    "[SEG]": "Where is the [SEG]?",
    "image token": "What is <image>?",
    "control token": "Hi<|im_end|>",
}


REFUSED_BESIDE_WORDS = {
    "two boxes with one middle slice": (
        {"boxes": [box(SERIES.lps(d, 1, 1), SERIES.lps(6 - d, 5, 5)) for d in (1, 2)]},
        "Object 1 has 2 boxes whose middle slice is 3: give one.",
    ),
    "a damaged mask": ({"mask": pack_mask(MASK)[:-1]}, "The packed mask is damaged: pack it again."),
    "an empty mask": (
        {"mask": pack_mask(np.zeros(SERIES.hu.shape, bool))},
        "The mask of object 1 has no voxel: leave it out or mark the object.",
    ),
}


async def refusal(call) -> tuple[grpc.StatusCode, errors.MedvlError]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(call)
    return caught.value.code(), from_rpc_error(caught.value)


def is_one_sentence(error: Exception) -> bool:
    text = str(error)
    return text.endswith(".") and "\n" not in text and ". " not in text


@pytest.mark.parametrize("case", OBJECTS)
async def test_a_bad_object_is_refused(system: System, case):
    """No model sees it."""
    objects, kind = OBJECTS[case]
    await system.put(SERIES)
    code, error = await refusal(system.stub.Segment(pb.SegmentRequest(series=SERIES.digest, objects=objects)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert type(error) is kind
    assert is_one_sentence(error)
    assert not system.fake.seen.segmenter
    assert await system.serves()


def corrections(count: int) -> pb.ObjectPrompt:
    """A point and as many corrections of it, all on slice 1."""
    return pb.ObjectPrompt(points=[pb.Point(lps_mm=INSIDE, correction=i) for i in range(count + 1)])


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (corrections(32), "Object 1 has 33 points on slice 1, a box counting as two: give 32 at most."),
        (corrections(33), "An object has 33 corrections: this server takes 32, so begin again from the mask"),
    ],
    ids=["points on a slice", "corrections"],
)
async def test_corrections_have_their_limits(start: Start, asked, sentence):
    """Before any of them is replayed; what the graphs take at most goes through."""
    system = await start(request=RequestLimits())
    await system.put(SERIES)
    objects = [corrections(31), asked]
    _, error = await refusal(system.stub.Segment(pb.SegmentRequest(series=SERIES.digest, objects=objects)))
    assert type(error) is errors.InvalidRequest
    assert sentence in str(error)
    assert is_one_sentence(error)
    assert not system.fake.seen.segmenter
    await collect(system.stub.Segment(pb.SegmentRequest(series=SERIES.digest, objects=objects[:1])))


@pytest.mark.parametrize("case", REFUSED_BESIDE_WORDS)
async def test_what_is_shown_wrongly_is_refused_before_words_are_read(system: System, case):
    """Neither the encoder nor the language model works for a request that the segmenter would refuse."""
    shown, sentence = REFUSED_BESIDE_WORDS[case]
    await system.put(SERIES)
    objects = [pb.ObjectPrompt(label="liver", mask=pack_mask(MASK)), pb.ObjectPrompt(label="liver", **shown)]
    code, error = await refusal(system.stub.Segment(pb.SegmentRequest(series=SERIES.digest, objects=objects)))
    assert (code, type(error), str(error)) == (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequest, sentence)
    seen = system.fake.seen
    assert (seen.volumes, seen.prompts, seen.segmenter) == ([], [], [])
    await collect(system.stub.Segment(pb.SegmentRequest(series=SERIES.digest, objects=objects[:1])))


async def test_masks_on_too_many_slices_are_refused(start: Start):
    """Before a model is asked; whichever objects bring them."""
    shape = (1400, 8, 8)
    long = Series.make(1, shape)
    limits = SeriesLimits(max_store_bytes=2**20, max_series_bytes=2**20, max_slices=2000)
    system = await start(series=limits)
    await system.put(long)
    objects = [pb.ObjectPrompt(mask=pack_mask(np.ones(shape, bool)))] * 3
    _, error = await refusal(system.stub.Segment(pb.SegmentRequest(series=long.digest, objects=objects)))
    assert type(error) is errors.InvalidRequest
    assert "more than 4096 slices" in str(error)
    assert is_one_sentence(error)
    assert not system.fake.seen.segmenter
    await collect(system.stub.Segment(pb.SegmentRequest(series=long.digest, objects=objects[:2])))


async def test_an_unknown_class_is_told_the_known_ones(system: System):
    """The sentence says what to do."""
    await system.put(SERIES)
    request = pb.SegmentRequest(series=SERIES.digest, objects=[pb.ObjectPrompt(label="unicorn")])
    _, error = await refusal(system.stub.Segment(request))
    assert "liver, lung_left" in str(error)


@pytest.mark.parametrize("case", QUESTIONS)
async def test_a_bad_question_is_refused(system: System, case):
    """Empty, too long, or with a token that means something to the model; also as the text of an object."""
    await system.put(SERIES)
    question = QUESTIONS[case]
    code, error = await refusal(system.stub.Ask(pb.AskRequest(series=SERIES.digest, question=question)))
    assert (code, type(error)) == (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequest)
    assert is_one_sentence(error)
    request = pb.SegmentRequest(series=SERIES.digest, objects=[pb.ObjectPrompt(text=question)])
    code, _ = await refusal(system.stub.Segment(request))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert not system.fake.seen.prompts
    assert await system.serves()


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 65},
        {"sampling": pb.Sampling(temperature=-0.1)},
        {"sampling": pb.Sampling(temperature=NAN)},
        {"sampling": pb.Sampling(temperature=INF)},
    ],
    ids=["too many tokens", "negative", "not a number", "infinite"],
)
async def test_bad_sampling_is_refused(system: System, fields):
    """Numbers that no decoding can follow never reach the engine."""
    await system.put(SERIES)
    code, _ = await refusal(system.stub.Report(pb.ReportRequest(series=SERIES.digest, **fields)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("digest", "code"), [("f" * 64, grpc.StatusCode.NOT_FOUND), ("x", grpc.StatusCode.INVALID_ARGUMENT)]
)
async def test_a_series_that_is_not_there_is_asked_for(system: System, digest, code):
    """Every task says so with one code, upon which a client sends the series."""
    requests = [
        system.stub.Report(pb.ReportRequest(series=digest)),
        system.stub.Ask(pb.AskRequest(series=digest, question="Why?")),
        system.stub.Segment(pb.SegmentRequest(series=digest, objects=[pb.ObjectPrompt(label="liver")])),
    ]
    for request in requests:
        found, _ = await refusal(request)
        assert found is code


async def test_describe_tells_the_limits_and_the_classes(system: System):
    """A client can refuse early what the server would refuse."""
    answer = await system.stub.Describe(pb.DescribeRequest())
    assert [(la.name, la.snomed_code) for la in answer.labels] == [("liver", "10200004"), ("lung_left", "")]
    assert (answer.limits.min_slices, answer.limits.max_objects, answer.limits.max_text_characters) == (8, 4, 40)
    assert (answer.limits.max_prompts_per_object, answer.limits.max_corrections_per_object) == (3, 32)
    assert answer.limits.max_given_slices == MAX_GIVEN_SLICES
    assert answer.provenance.checkpoint == "tiny"
    assert answer.backends["llm"] == "fake"
    assert answer.intended_use == "tests"
    assert answer.disclaimer
