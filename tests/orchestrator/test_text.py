"""Reports and answers: text as it comes, and a mask for each [SEG] as soon as it resolves."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from medvl.contracts.checkpoint import Checkpoint
from medvl.contracts.disclaimer import DISCLAIMER
from medvl.contracts.quantisation import Quantisation
from medvl.imaging.masks import unpack_mask
from medvl.orchestrator.config import AdmissionLimits
from medvl.orchestrator.provenance import provenance
from medvl.orchestrator.triton import Served
from medvl.wire.v1 import medvl_pb2 as pb

from .conftest import Series, Start, System, collect, kinds
from .fake_triton import seg_states


@pytest.fixture(params=["report", "ask"])
def request_text(request, system: System, series: Series):
    """Start a report or an answer."""

    def begin(**fields):
        if request.param == "report":
            return system.stub.Report(pb.ReportRequest(series=series.digest, **fields))
        return system.stub.Ask(pb.AskRequest(series=series.digest, question="Is it normal?", **fields))

    return begin


async def test_text_comes_in_deltas_and_once_whole(system: System, series: Series, request_text):
    """The deltas make up the text of the closing event, whose token counts are the model's."""
    await system.put(series)
    events = await collect(request_text())
    done = events[-1].done
    assert [e.text.text for e in events if e.HasField("text")] == ["Liver ", "[SEG]", " is", " normal."]
    assert done.text == "Liver [SEG] is normal."
    assert (done.finish_reason, done.prompt_tokens, done.completion_tokens) == ("stop", 11, 7)


async def test_a_mask_comes_before_the_text_ends(system: System, series: Series, request_text):
    """Segmentation starts when the hidden state is there, and its mask does not wait for the rest of the text.

    Text and segmentation go on side by side: in what order the rest of the one comes between the other's is open.
    """
    await system.put(series)
    system.fake.language_end.close()
    events = aiter(request_text())
    seen = []
    while not seen or seen[-1] != "mask":
        seen.append((await anext(events)).WhichOneof("event"))
    assert system.fake.language_end.held.is_set()
    system.fake.language_end.open()
    rest = kinds(await collect(events))
    assert "done" not in seen
    assert "text" in rest
    assert rest[-1] == "done"


async def test_text_goes_on_while_a_mask_is_worked_on(system: System, series: Series, request_text):
    """A slow segmenter holds no text back; the stream closes when both are complete."""
    await system.put(series)
    system.fake.segmenter.close()
    events = aiter(request_text())
    text = ""
    while text != "Liver [SEG] is normal.":
        text += (await anext(events)).text.text
    await system.fake.segmenter.held.wait()
    system.fake.segmenter.open()
    rest = kinds(await collect(events))
    assert "mask" in rest
    assert "text" not in rest


async def test_a_text_has_a_bounded_number_of_masks_at_work(start: Start, series: Series):
    """The next ones wait in the order of the text, which itself waits for none of them."""
    system = await start(admission=AdmissionLimits(max_parts_per_request=1))
    await system.put(series)
    system.fake.deltas = [("[SEG]" * 4, ()), ("", (0,)), ("", (5,)), ("", (10,)), (".", (15,))]
    system.fake.segmenter.close()
    events = aiter(system.stub.Report(pb.ReportRequest(series=series.digest)))
    text = ""
    while not text.endswith("."):
        text += (await anext(events)).text.text
    system.fake.segmenter.open()
    rest = await collect(events)
    assert [e.mask.object for e in rest if e.HasField("mask")] == [0, 1, 2, 3]
    assert system.fake.seen.at_work["volume_segmenter"].most == 1


async def test_a_mask_names_its_place_in_the_text(system: System, series: Series):
    """Code points, not bytes, however the text is cut."""
    await system.put(series)
    system.fake.deltas = [("Größe ", ()), ("[SE", ()), ("G] und", ()), (" [SEG]", (6,)), (" Ende", (16,))]
    events = await collect(system.stub.Report(pb.ReportRequest(series=series.digest)))
    masks = sorted((e.mask for e in events if e.HasField("mask")), key=lambda m: m.object)
    text = events[-1].done.text
    assert [text[m.span.start : m.span.end] for m in masks] == ["[SEG]", "[SEG]"]
    assert [m.span.start for m in masks] == [6, 16]
    assert [m.label for m in masks] == ["", ""]


async def test_every_mask_of_a_text_has_the_state_of_its_own_seg(system: System, series: Series):
    """Also where two come in one delta."""
    await system.put(series)
    system.fake.deltas = [("Cyst [SEG], [SEG] and ", ()), ("", (5, 12)), ("[SEG]", (22,)), (".", ())]
    events = await collect(system.stub.Report(pb.ReportRequest(series=series.digest)))
    started = {m.object: m.span.start for m in (e.mask for e in events if e.HasField("mask"))}
    assert started == {0: 5, 1: 12, 2: 22}
    for request, states in zip(system.fake.seen.segmenter, system.fake.seen.states, strict=True):
        (asked,) = request.objects
        assert states is not None
        assert asked.seg_row is not None
        (own,) = seg_states("Write the report.", [started[asked.object_id]], states.shape[1])
        assert np.array_equal(states[asked.seg_row], own)


async def test_seg_spelled_in_ordinary_tokens_is_text(system: System, series: Series):
    """It gets no mask, and the masks around it keep their places."""
    await system.put(series)
    system.fake.deltas = [("[SEG] is a token: ", ()), ("[SEG]", ()), (" [SEG]", (18,)), (".", ())]
    events = await collect(system.stub.Report(pb.ReportRequest(series=series.digest)))
    (mask,) = [e.mask for e in events if e.HasField("mask")]
    assert (mask.object, mask.span.start, mask.span.end) == (0, 18, 23)
    assert events[-1].done.text == "[SEG] is a token: [SEG] [SEG]."


async def test_text_that_only_spells_seg_is_not_segmented(system: System, series: Series):
    """The provenance names no window that nothing looked through."""
    await system.put(series)
    system.fake.deltas = [("[SEG]", ())]
    done = (await collect(system.stub.Report(pb.ReportRequest(series=series.digest))))[-1].done
    assert dict(done.provenance.windows).keys() == {"vision"}
    assert system.fake.seen.segmenter == []


async def test_a_mask_is_measured_on_the_canonical_grid(system: System, series: Series):
    """Voxels, volume and bounding box are those of the mask that is sent."""
    await system.put(series)
    events = await collect(system.stub.Report(pb.ReportRequest(series=series.digest)))
    (mask,) = [e.mask for e in events if e.HasField("mask")]
    assert np.argwhere(unpack_mask(mask.packed, series.hu.shape)).tolist() == [[0, 0, 0], [0, 0, 1]]
    assert mask.found
    assert mask.measurement.voxels == 2
    assert mask.measurement.volume_mm3 == pytest.approx(2 * 2.5 * 0.8 * 0.7)
    assert list(mask.measurement.box_max) == [0, 0, 1]
    assert list(mask.key_slices) == [0]
    assert dict(mask.slice_scores) == {0: 0.9}


async def test_an_absent_object_is_said_to_be_absent(system: System, series: Series):
    """Absence is an answer with its score, without a mask or a measurement."""
    await system.put(series)
    system.fake.absent = True
    events = await collect(system.stub.Report(pb.ReportRequest(series=series.digest)))
    (mask,) = [e.mask for e in events if e.HasField("mask")]
    assert (mask.found, mask.score, mask.packed) == (False, 0.25, b"")
    assert not mask.HasField("measurement")


async def test_the_series_is_encoded_once(system: System, series: Series):
    """Any number of simultaneous questions about a series cost one encoding."""
    await system.put(series)
    calls = [collect(system.stub.Ask(pb.AskRequest(series=series.digest, question="Why?"))) for _ in range(4)]
    await asyncio.gather(*calls)
    await collect(system.stub.Report(pb.ReportRequest(series=series.digest)))
    assert [v.shape for v in system.fake.seen.volumes] == [(4, 8, 6)]


async def test_another_series_has_tokens_of_its_own(system: System, series: Series):
    """What was kept of one series is never used for another, and is what is read again for its own."""
    other = Series.make(1)
    for sent in (series, other, series):
        await system.put(sent)
        await collect(system.stub.Report(pb.ReportRequest(series=sent.digest)))
    first, second, again = system.fake.seen.tokens
    assert not np.array_equal(first, second)
    assert np.array_equal(first, again)
    assert len(system.fake.seen.volumes) == 2


async def test_the_vision_encoder_sees_the_series_as_it_lies(system: System, series: Series):
    """On the checkpoint's grid, in HU, with the window of its own; here every voxel of the grid is eight of these."""
    await system.put(series)
    await collect(system.stub.Report(pb.ReportRequest(series=series.digest)))
    (volume,) = system.fake.seen.volumes
    eights = series.hu.reshape(4, 2, 8, 2, 6, 2).mean((1, 3, 5))
    assert volume == pytest.approx(eights, abs=0.5)
    assert system.fake.seen.vision_windows == [[-160.0, 240.0]]


async def test_the_prompt_is_the_checkpoints(system: System, series: Series):
    """Templates come from the checkpoint, with the question in its place; decoding is greedy unless asked otherwise."""
    await system.put(series)
    await collect(system.stub.Report(pb.ReportRequest(series=series.digest)))
    await collect(system.stub.Ask(pb.AskRequest(series=series.digest, question="  What {label} is it? ")))
    sampling = pb.Sampling(temperature=0.5, seed=7)
    await collect(
        system.stub.Ask(pb.AskRequest(series=series.digest, question="Why?", max_tokens=5, sampling=sampling))
    )
    assert system.fake.seen.prompts == ["Write the report.", "Q: What {label} is it?", "Q: Why?"]
    assert [(o.max_tokens, o.temperature, o.seed) for o in system.fake.seen.options] == [
        (64, 0.0, None),
        (32, 0.0, None),
        (5, 0.5, 7),
    ]
    assert all(o.answer_template is None for o in system.fake.seen.options)


def test_a_result_says_that_its_words_come_from_fewer_bits(checkpoint: Checkpoint):
    """With the hashes of the files that are served; those of the language model that is not are left out."""
    own = checkpoint.model_copy(update={"files": {"llm/config.json": "0" * 64, "sam2.safetensors": "2" * 64}})
    told = Quantisation(
        method="awq", format="gemm", weight_bits=4, dtype="float16", files={"model.safetensors": "1" * 64}
    )
    plain, source = provenance(Served(own, "2", {})), provenance(Served(own, "2", {}, told))
    assert not plain.HasField("quantisation")
    assert dict(plain.file_sha256) == own.files
    assert dict(source.file_sha256) == {"llm/model.safetensors": "1" * 64, "sam2.safetensors": "2" * 64}
    assert source.checkpoint_digest == own.digest
    assert source.quantisation == pb.Quantisation(
        method="awq", format="gemm", weight_bits=4, activation_bits=0, dtype="float16", digest=told.digest
    )


async def test_every_result_says_what_made_it(system: System, series: Series):
    """Checkpoint, hashes, windows, software, server, cost by stage, and that it is not for diagnosis."""
    await system.put(series)
    done = (await collect(system.stub.Report(pb.ReportRequest(series=series.digest))))[-1].done
    source = done.provenance
    assert (source.series, source.checkpoint, source.trained) == (series.digest, "tiny", False)
    assert source.checkpoint_digest == system.fake.checkpoint.digest
    assert dict(source.file_sha256) == system.fake.checkpoint.files
    assert source.software.startswith("medvl-sam2 ")
    assert source.triton_version == "2.51.0-fake"
    assert dict(source.windows) == {"vision": "soft [-160, 240] HU", "segmentation": "soft [-160, 240] HU"}
    assert done.disclaimer == DISCLAIMER
    stages = ("upload", "queue", "preprocess", "encode", "first_token", "generate", "segment", "llm_prefill", "total")
    assert done.stages_ms.keys() >= set(stages)
    assert done.stages_ms["total"] >= done.stages_ms["generate"] > 0
