"""Overload, deadlines, cancellation and a backend that fails: told at once, cleaned up, survived."""

from __future__ import annotations

import asyncio
import math
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from unittest.mock import AsyncMock, Mock

import grpc
import pytest
from grpc_health.v1 import health_pb2

from medvl.contracts import errors
from medvl.contracts.checkpoint import Checkpoint
from medvl.orchestrator.backend import NEEDED, Backend
from medvl.orchestrator.config import AdmissionLimits, HealthPolicy
from medvl.orchestrator.server import ALIVE
from medvl.orchestrator.triton import Served
from medvl.wire.status import INTERNAL_SENTENCE, from_rpc_error
from medvl.wire.v1 import medvl_pb2 as pb

from .conftest import Series, Start, System, collect, kinds

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
BUSY = AdmissionLimits(max_concurrent_requests=1, max_queued_requests=1)


def report(system: System, series: Series, **options) -> grpc.aio.UnaryStreamCall:
    return system.stub.Report(pb.ReportRequest(series=series.digest), **options)


def segment(system: System, series: Series, **options) -> grpc.aio.UnaryStreamCall:
    prompt = pb.ObjectPrompt(points=[pb.Point(lps_mm=series.lps(1, 2, 3))])
    return system.stub.Segment(pb.SegmentRequest(series=series.digest, objects=[prompt]), **options)


async def failure(call) -> tuple[grpc.StatusCode, errors.MedvlError]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(call)
    return caught.value.code(), from_rpc_error(caught.value)


async def metrics(system: System) -> str:
    def read() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{system.metrics_port}/metrics") as answer:
            return answer.read().decode()

    return await asyncio.to_thread(read)


async def test_what_is_over_the_queue_is_refused_at_once(start: Start, series: Series):
    """One works, one waits, the third learns as its first message that it should come back later, and when."""
    system = await start(admission=BUSY)
    await system.put(series)
    system.fake.language.close()
    working = asyncio.ensure_future(collect(report(system, series)))
    await system.fake.language.held.wait()
    waiting = report(system, series)
    await waiting.initial_metadata()
    code, error = await failure(report(system, series))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert type(error) is errors.Overloaded
    assert error.retry_after_s > 0
    system.fake.language.open()
    assert kinds(await working)[-1] == "done"
    assert kinds(await collect(waiting))[-1] == "done"
    assert await system.serves()


async def test_a_cancelled_request_frees_its_place(start: Start, series: Series):
    """Neither a waiting nor a working request that its caller gave up holds a slot."""
    system = await start(admission=BUSY)
    await system.put(series)
    for _ in range(3):
        system.fake.language.held.clear()
        system.fake.language.cancelled.clear()
        system.fake.language.close()
        working = report(system, series)
        await system.fake.language.held.wait()
        waiting = report(system, series)
        await waiting.initial_metadata()
        waiting.cancel()
        working.cancel()
        await system.fake.language.cancelled.wait()
        system.fake.language.open()
    assert await system.serves()


async def test_cancelling_reaches_the_language_model(system: System, series: Series):
    """A caller that goes away stops the generation on Triton."""
    await system.put(series)
    system.fake.language_end.close()
    call = report(system, series)
    await system.fake.language_end.held.wait()
    call.cancel()
    async with asyncio.timeout(5):
        await system.fake.language_end.cancelled.wait()


async def test_cancelling_reaches_the_segmenter(system: System, series: Series):
    """Also while the text is complete and only a mask is worked on."""
    await system.put(series)
    system.fake.segmenter.close()
    call = report(system, series)
    await system.fake.segmenter.held.wait()
    call.cancel()
    async with asyncio.timeout(5):
        await system.fake.segmenter.cancelled.wait()


async def test_a_call_that_ends_is_heard_out(system: System, series: Series):
    """Triton may die of one that is cancelled while it ends: of a series that is not resident, or of a refusal."""
    await system.put(series)
    system.fake.ending.close()
    wanted = asyncio.ensure_future(collect(segment(system, series)))
    await system.fake.ending.held.wait()
    await asyncio.sleep(0.1)
    assert not system.fake.seen.slices, "they are sent when the call that asked for them has ended"
    system.fake.ending.open()
    await wanted
    system.fake.ending.held.clear()
    system.fake.ending.close()
    system.fake.language_error = errors.Overloaded("No room.", retry_after_s=1.0)
    refused = asyncio.ensure_future(failure(report(system, series)))
    await system.fake.ending.held.wait()
    await asyncio.sleep(0.1)
    assert not refused.done()
    system.fake.ending.open()
    assert type((await refused)[1]) is errors.Overloaded
    assert not system.fake.ending.cancelled.is_set()


@pytest.mark.parametrize("task", [report, segment])
async def test_the_deadline_travels_to_triton(system: System, series: Series, task):
    """Every call of a request carries what is left of its caller's time."""
    await system.put(series)
    await collect(task(system, series, timeout=30))
    assert system.fake.seen.seconds_left
    assert all(0 < s < 31 for s in system.fake.seen.seconds_left)


async def test_a_hanging_model_is_left_at_the_deadline(system: System, series: Series):
    """The caller hears DEADLINE_EXCEEDED; the call on Triton is given up."""
    await system.put(series)
    system.fake.language_end.close()
    code, error = await failure(report(system, series, timeout=0.3))
    assert (code, type(error)) == (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded)
    async with asyncio.timeout(5):
        await system.fake.language_end.cancelled.wait()
    system.fake.language_end.open()
    assert await system.serves()


async def test_a_call_without_a_deadline_gets_one(start: Start, series: Series):
    """Nobody waits for ever, even who would."""
    system = await start(admission=AdmissionLimits(default_deadline_s=0.3))
    await system.put(series)
    system.fake.language_end.close()
    code, error = await failure(report(system, series))
    assert (code, type(error)) == (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded)


@pytest.mark.parametrize(
    ("thrown", "code", "kind"),
    [
        (errors.InvalidRequest("Too long."), grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequest),
        (errors.Overloaded("Busy.", retry_after_s=3.0), grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Overloaded),
        ("Stub process 'llm_0_0' is not healthy.", grpc.StatusCode.UNAVAILABLE, errors.BackendUnavailable),
        ("CUDA error: patient Doe at /models/llm", grpc.StatusCode.INTERNAL, errors.InternalError),
    ],
    ids=["ours", "overload", "dead stub", "unknown words"],
)
async def test_an_error_in_the_middle_of_a_stream_is_told(system: System, series: Series, thrown, code, kind):
    """After text has been sent the stream still ends with the model's reason, never with a backend's words."""
    await system.put(series)
    system.fake.language_error = thrown
    events = aiter(report(system, series))
    while (await anext(events)).WhichOneof("event") != "text":
        pass
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(events)
    error = from_rpc_error(caught.value)
    assert (caught.value.code(), type(error)) == (code, kind)
    assert "Doe" not in repr(caught.value)
    assert kind is not errors.InternalError or str(error) == INTERNAL_SENTENCE
    system.fake.language_error = None
    assert await system.serves()


async def test_a_failing_mask_ends_the_text(system: System, series: Series):
    """A request is answered whole or not at all; what is left of it is cancelled on Triton."""
    await system.put(series)
    system.fake.never_resident = True
    system.fake.language_end.close()
    code, _ = await failure(report(system, series))
    assert code is grpc.StatusCode.UNAVAILABLE
    async with asyncio.timeout(5):
        await system.fake.language_end.cancelled.wait()


async def test_a_segmenter_that_keeps_losing_a_series_is_unavailable(system: System, series: Series):
    """The slices are sent again once, not for ever."""
    await system.put(series)
    system.fake.never_resident = True
    code, error = await failure(segment(system, series))
    assert (code, type(error)) == (grpc.StatusCode.UNAVAILABLE, errors.BackendUnavailable)
    assert len(system.fake.seen.slices) == 1


async def test_an_answer_without_its_end_is_unavailable(system: System, series: Series):
    """A stream that just stops is no answer."""
    await system.put(series)
    system.fake.deltas = []
    code, _ = await failure(report(system, series))
    assert code is grpc.StatusCode.UNAVAILABLE


async def test_a_dead_triton_is_told_by_health_and_by_calls(system: System, series: Series):
    """NOT_SERVING and UNAVAILABLE with a delay; everything goes on when it is back."""
    await system.put(series)
    await system.triton.stop()
    async with asyncio.timeout(5):
        await system.until(NOT_SERVING)
    alive = await system.health.Check(health_pb2.HealthCheckRequest(service=ALIVE))
    assert alive.status == SERVING, "or Kubernetes would restart it"
    code, error = await failure(report(system, series))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert error.retry_after_s is not None
    await system.triton.start()
    async with asyncio.timeout(10):
        await system.until(SERVING)
    assert await system.serves()


def test_a_request_that_waited_does_not_go_on_with_another_checkpoint(checkpoint: Checkpoint):
    """Its prompts were checked, and its answer would be told, as of the one before."""
    other = checkpoint.model_copy(update={"name": "other"})
    before, again, after = (Served(each, "2.51.0", {}, None) for each in (checkpoint, checkpoint, other))
    backend = Backend(Mock(), HealthPolicy(), Mock())
    for served in (None, after):
        backend._served = served
        with pytest.raises(errors.BackendUnavailable, match="others by now"):
            backend.still(before)
    backend._served = again
    backend.still(before)


def replace(system: System, name: str) -> None:
    """Let another server, with a checkpoint of another name, answer at the same address; no call fails."""
    fields = system.fake.checkpoint.model_dump(mode="json") | {"name": name}
    system.fake.checkpoint = Checkpoint.model_validate(fields)


async def answered(system: System, call: Callable[[], grpc.aio.UnaryStreamCall]) -> pb.Done:
    """Ask until the service knows what it asks."""
    async with asyncio.timeout(10):
        while True:
            try:
                return (await collect(call()))[-1].done
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("task", [report, segment])
async def test_an_answer_of_two_checkpoints_is_none(system: System, series: Series, task):
    """Whoever began with the one and ended with the other is told to ask again, and is told the other then."""
    await system.put(series)
    gate = system.fake.language_end if task is report else system.fake.arrival
    gate.close()
    call = task(system, series)
    await gate.held.wait()
    replace(system, "other")
    gate.open()
    code, error = await failure(call)
    assert (code, type(error)) == (grpc.StatusCode.UNAVAILABLE, errors.BackendUnavailable)
    done = await answered(system, lambda: task(system, series))
    assert done.provenance.checkpoint == "other"


async def test_a_checkpoint_reads_no_tokens_of_another(system: System, series: Series):
    """What the encoder before it made of a series is not what its own would."""
    await system.put(series)
    await collect(report(system, series))
    replace(system, "other")
    done = await answered(system, lambda: report(system, series))
    assert done.provenance.checkpoint == "other"
    assert len(system.fake.seen.volumes) == 2


async def test_what_another_checkpoint_encoded_is_not_kept(system: System, series: Series):
    """Nor mistaken for the one before, should that come back."""
    await system.put(series)
    replace(system, "other")
    code, _ = await failure(report(system, series))
    assert code is grpc.StatusCode.UNAVAILABLE
    replace(system, "tiny")
    done = await answered(system, lambda: report(system, series))
    assert done.provenance.checkpoint == "tiny"
    assert len(system.fake.seen.volumes) == 2


async def test_a_server_that_nobody_understands_is_noticed(system: System, series: Series):
    """It took over without a call that fails: the request is refused as during any change, and health says why."""
    await system.put(series)
    system.fake.quantisation = "{}"
    code, _ = await failure(report(system, series))
    assert code is grpc.StatusCode.UNAVAILABLE
    async with asyncio.timeout(5):
        while health_lines(system)[-1]["reason"] != "CHECKPOINT_ERROR":  # noqa: ASYNC110 - a log has no events
            await asyncio.sleep(0.01)
    assert (await failure(report(system, series)))[0] is grpc.StatusCode.FAILED_PRECONDITION


async def test_models_that_do_not_fit_each_other_are_told(system: System, series: Series):
    """To callers, who would wait for ever, and in the log; whichever other reason was told before."""
    await system.put(series)
    await system.triton.stop()
    async with asyncio.timeout(5):
        await system.until(NOT_SERVING)
    system.fake.checkpoints["llm"] = system.fake.checkpoint.model_copy(update={"name": "other"})
    await system.triton.start()
    async with asyncio.timeout(10):
        while (told := (await failure(report(system, series)))[0]) is not grpc.StatusCode.FAILED_PRECONDITION:
            assert told is grpc.StatusCode.UNAVAILABLE, "nothing is answered by what may be another checkpoint"
            await asyncio.sleep(0.05)
    assert [line["reason"] for line in system._lines() if line["event"] == "health"][-1] == "CHECKPOINT_ERROR"


def health_lines(system: System) -> list[dict]:
    return [line for line in system._lines() if line["event"] == "health"]


async def canaries_of(system: System, model: str, more: int) -> None:
    """Wait until a model has been asked so many times again."""
    wanted = system.fake.canaries[model] + more
    async with asyncio.timeout(5):
        while system.fake.canaries[model] < wanted:  # noqa: ASYNC110 - the fake has no event for it
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("gate", "model"), [("vision", "vision_encoder"), ("language", "llm"), ("segmenter", "volume_segmenter")]
)
async def test_a_hung_model_is_told_by_health(start: Start, gate: str, model: str):
    """Triton is alive and ready; only the canary sees that nothing is answered. The log names the model, once."""
    quick = HealthPolicy(canary_interval_s=0.05, canary_timeout_s=0.2, network_timeout_s=0.2)
    system = await start(health=quick)
    getattr(system.fake, gate).close()
    async with asyncio.timeout(5):
        await system.until(NOT_SERVING)
    await canaries_of(system, model, 3)
    getattr(system.fake, gate).open()
    async with asyncio.timeout(5):
        await system.until(SERVING)
    said = [(line["serving"], line["reason"], line.get("model")) for line in health_lines(system)]
    assert said[-2:] == [(False, "BACKEND_UNAVAILABLE", model), (True, "", None)]
    assert sum(line.get("model") == model for line in health_lines(system)) == 1


@pytest.mark.parametrize("model", ["vision_encoder", "projector"])
async def test_a_dead_network_is_told_by_health(system: System, model: str):
    """Its process was killed: Triton is ready, the other models answer, and no volume can be encoded."""
    system.fake.refusals[model] = f"Stub process '{model}_0_0' is not healthy."
    async with asyncio.timeout(5):
        await system.until(NOT_SERVING)
    del system.fake.refusals[model]
    async with asyncio.timeout(5):
        await system.until(SERVING)
    assert [(line["serving"], line.get("model")) for line in health_lines(system)][-2:] == [
        (False, model),
        (True, None),
    ]


async def test_one_canary_without_an_answer_is_no_hung_model(start: Start):
    """On a busy machine the orchestrator itself may have been late."""
    system = await start(health=HealthPolicy(canary_interval_s=0.05, canary_timeout_s=1.0))
    system.fake.language.close()
    await canaries_of(system, "llm", 2)
    system.fake.language.open()
    await canaries_of(system, "llm", 2)
    assert all(line["serving"] for line in health_lines(system))


async def test_a_process_that_stood_still_gives_nobody_up(checkpoint: Checkpoint):
    """However long that was: one canary went without an answer, and the next one has it."""
    timeout_s = 0.05

    class Still:
        served = AsyncMock(return_value=Served(checkpoint, "2.51.0", dict.fromkeys(NEEDED, "fake")))
        canaries = 0

        async def infer(self, *_) -> None: ...

        async def stream(self, model: str, *_):
            self.canaries += model == "llm"
            if (model, self.canaries) == ("llm", 3):
                time.sleep(4 * timeout_s)  # noqa: ASYNC251 - the whole process
                raise errors.DeadlineExceeded("Late.")
            if self.canaries == 6:
                watch.cancel()
            yield {}

        def last_answer_s(self, _: str) -> float:
            return -math.inf

    told = asyncio.Queue[bool]()
    policy = HealthPolicy(canary_interval_s=0.01, canary_timeout_s=timeout_s)
    watch = asyncio.create_task(Backend(Still(), policy, told.put).watch())
    async with asyncio.timeout(5):
        with suppress(asyncio.CancelledError):
            await watch
    assert [told.get_nowait() for _ in range(told.qsize())] == [True]


async def test_a_busy_network_is_not_a_dead_one(start: Start):
    """Its canary waits behind the volumes of others, once, while the rest is asked on; nor is a full queue a death."""
    quick = HealthPolicy(canary_interval_s=0.05, canary_timeout_s=0.2)
    system = await start(health=quick)
    system.fake.vision.close()
    await canaries_of(system, "vision_encoder", 1)
    await canaries_of(system, "llm", 10)
    asked = system.fake.canaries["vision_encoder"]
    await canaries_of(system, "llm", 5)
    assert system.fake.canaries["vision_encoder"] == asked
    system.fake.refusals["vision_encoder"] = "Exceeds maximum queue size"
    system.fake.vision.open()
    await canaries_of(system, "vision_encoder", 5)
    assert all(line["serving"] for line in health_lines(system))
    del system.fake.refusals["vision_encoder"]
    assert await system.serves()


async def test_a_network_that_answers_others_is_alive(start: Start):
    """A canary that never gets its turn says nothing, as long as volumes are encoded."""
    patient = HealthPolicy(canary_interval_s=0.05, network_timeout_s=0.5)
    system = await start(health=patient)
    system.fake.refusals["vision_encoder"] = "Exceeds maximum queue size"
    loop = asyncio.get_running_loop()
    start_s, seed = loop.time(), 1
    while loop.time() < start_s + 1.5:
        await system.put(another := Series.make(seed := seed + 1))
        await collect(report(system, another))
    assert all(line["serving"] for line in health_lines(system))
    async with asyncio.timeout(5):
        await system.until(NOT_SERVING)


async def test_health_does_not_wait_behind_volumes(checkpoint: Checkpoint):
    """A network that answers others is alive also before its first canary has had its turn."""

    class Busy:
        served = AsyncMock(return_value=Served(checkpoint, "2.51.0", dict.fromkeys(NEEDED, "fake")))

        async def infer(self, model: str, *_) -> None:
            if model == "vision_encoder":
                await asyncio.Event().wait()

        async def stream(self, *_):
            yield {}

        def last_answer_s(self, model: str) -> float:
            return asyncio.get_running_loop().time()

    told = asyncio.Queue[bool]()
    watch = asyncio.create_task(Backend(Busy(), HealthPolicy(canary_interval_s=0.01), told.put).watch())
    async with asyncio.timeout(5):
        assert await told.get()
    watch.cancel()


async def test_what_tensorrt_runs_is_not_asked(system: System):
    """It is part of the server, which would report twice a second that it refuses a request."""
    system.fake.network_backend = "tensorrt"
    await system.triton.stop()
    async with asyncio.timeout(5):
        await system.until(NOT_SERVING)
    system.fake.canaries.clear()
    await system.triton.start()
    async with asyncio.timeout(10):
        await system.until(SERVING)
    assert system.fake.canaries.keys() == {"llm", "volume_segmenter"}


async def test_triton_is_shown_its_key(system: System):
    """Restricted protocols open to the orchestrator only."""
    assert system.fake.seen.headers == {("triton-grpc-protocol-medvl", "s3cret")}


async def test_metrics_tell_stages_and_refusals(start: Start, series: Series):
    """Prometheus sees time by stage, outcomes by code, refusals by reason and the store's bytes; no series."""
    system = await start(metrics_port=0)
    await system.put(series)
    await collect(report(system, series))
    await failure(system.stub.Ask(pb.AskRequest(series=series.digest, question="")))
    text = await metrics(system)
    assert 'medvl_requests_total{code="OK",method="Report"} 1.0' in text
    assert 'medvl_requests_total{code="INVALID_ARGUMENT",method="Ask"} 1.0' in text
    assert 'medvl_refusals_total{reason="INVALID_REQUEST"} 1.0' in text
    assert 'medvl_stage_seconds_count{method="Report",stage="encode"} 1.0' in text
    assert f"medvl_store_bytes {float(series.hu.nbytes)}" in text
    assert 'medvl_tokens_total{kind="completion"} 7.0' in text
    assert 'medvl_in_flight{method="Report"} 0.0' in text
    assert "medvl_serving 1.0" in text
    assert series.digest not in text
