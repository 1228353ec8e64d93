"""The servicer of ``medvl.wire.v1``: each method checks its request, waits for admission, and lets a task answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial

from medvl.contracts.checkpoint import Extent
from medvl.contracts.messages import LanguageOptions
from medvl.imaging.cleanup import Cleanup
from medvl.imaging.volume import Volume
from medvl.orchestrator.admission import Admission
from medvl.orchestrator.backend import Backend
from medvl.orchestrator.cache import UnderWay
from medvl.orchestrator.calls import Call
from medvl.orchestrator.config import OrchestratorConfig
from medvl.orchestrator.emitter import Emitter
from medvl.orchestrator.metrics import Metrics
from medvl.orchestrator.objects import SegmentOptions, segment_objects
from medvl.orchestrator.prompts import checked_objects, checked_text, language_options
from medvl.orchestrator.provenance import describe, done, provenance
from medvl.orchestrator.runner import CallRunner, Context
from medvl.orchestrator.store import SeriesStore, StoredSeries
from medvl.orchestrator.text import write_text
from medvl.orchestrator.triton import Served, Triton
from medvl.orchestrator.uploads import Announcement, Messages, check_digest, read_header, read_volume
from medvl.orchestrator.vision import VisionEncoder
from medvl.orchestrator.work import SlicesKey, Work
from medvl.wire.metadata import REQUEST_ID_KEY, UPLOAD_KEY, UPLOAD_SEND
from medvl.wire.v1 import medvl_pb2 as pb
from medvl.wire.v1 import medvl_pb2_grpc as pb_grpc


class MedVLService(pb_grpc.MedVLServicer):
    """Answers the calls of clients.

    Parameters
    ----------
    config
        Limits.
    triton
        The inference server.
    backend
        What it serves.
    metrics
        Where calls are counted.
    """

    def __init__(self, config: OrchestratorConfig, triton: Triton, backend: Backend, metrics: Metrics) -> None:
        limits = config.admission
        self._config = config
        self._triton = triton
        self._backend = backend
        self._metrics = metrics
        self._runner = CallRunner(metrics, limits.default_deadline_s)
        self._requests = Admission(limits.max_concurrent_requests, limits.max_queued_requests)
        self._uploads = Admission(limits.max_concurrent_uploads, limits.max_queued_uploads)
        most_uploads = limits.max_concurrent_uploads + limits.max_queued_uploads
        self._store = SeriesStore(config.series.max_store_bytes, max_waiting=most_uploads)
        self._vision = VisionEncoder(triton, config.series.max_token_cache_bytes)
        self._sending_slices: UnderWay[SlicesKey] = UnderWay()
        metrics.watch("medvl_store_bytes", "Voxels resident or being received.", lambda: self._store.used_bytes)
        metrics.watch("medvl_store_series", "Resident series.", lambda: len(self._store))
        metrics.watch("medvl_token_cache_bytes", "Vision tokens kept.", lambda: self._vision.cached_bytes)
        metrics.watch("medvl_admitted", "Requests at work and waiting.", lambda: self._requests.admitted)

    async def PutSeries(self, messages: Messages, context: Context) -> pb.PutSeriesResponse:  # noqa: N802
        """Receive a series, unless it is here already."""
        return await self._runner.run("PutSeries", context, lambda call: self._put(aiter(messages), context, call))

    async def Report(self, request: pb.ReportRequest, context: Context) -> None:  # noqa: N802
        """Write the report of a series."""
        await self._runner.run("Report", context, lambda call: self._report(request, context, call))

    async def Ask(self, request: pb.AskRequest, context: Context) -> None:  # noqa: N802
        """Answer a question about a series."""
        await self._runner.run("Ask", context, lambda call: self._ask(request, context, call))

    async def Segment(self, request: pb.SegmentRequest, context: Context) -> None:  # noqa: N802
        """Segment objects."""
        await self._runner.run("Segment", context, lambda call: self._segment(request, context, call))

    async def Describe(self, _: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:  # noqa: N802
        """Say what is served."""
        return await self._runner.run("Describe", context, self._describe)

    async def _put(self, messages: Messages, context: Context, call: Call) -> pb.PutSeriesResponse:
        announced = await read_header(messages, self._config.series, self._config.admission.upload_idle_s)
        digest = announced.digest
        # The turn comes before the place: whoever waits for another sender of the series has nothing to receive yet.
        async with self._store.turn(digest) as resident:
            if not resident:
                async with self._uploads.admit():
                    with self._store.upload(digest, announced.size_bytes) as upload:
                        await _greet(context, call, (UPLOAD_KEY, UPLOAD_SEND))
                        upload.complete(await self._receive(announced, messages, call))
        return pb.PutSeriesResponse(digest=digest, already_resident=resident)

    async def _receive(self, announced: Announcement, messages: Messages, call: Call) -> Volume:
        with call.stages.measure("upload"):
            volume = await read_volume(messages, announced, self._config.admission.upload_idle_s)
        self._metrics.received(announced.size_bytes)
        return volume

    async def _report(self, request: pb.ReportRequest, context: Context, call: Call) -> None:
        language = self._backend.served().checkpoint.language
        options = language_options(request.max_tokens, language.max_report_tokens, _sampling(request))
        await self._write(request.series, language.prompts.for_report, options, context, call)

    async def _ask(self, request: pb.AskRequest, context: Context, call: Call) -> None:
        language = self._backend.served().checkpoint.language
        options = language_options(request.max_tokens, language.max_answer_tokens, _sampling(request))
        question = checked_text(request.question, "question", language, self._config.request)
        prompt = partial(language.prompts.for_question, question)
        await self._write(request.series, prompt, options, context, call)

    async def _write(
        self, digest: str, prompt: Callable[[Extent], str], options: LanguageOptions, context: Context, call: Call
    ) -> None:
        await _greet(context, call)
        served = self._backend.served()
        with self._leased(digest, call) as series:
            async with self._admitted(call):
                self._backend.still(served)
                work = self._work(series, served, context, call)
                words = prompt(series.volume.geometry.extent_mm)
                generated = await write_text(work, self._vision, words, options)
        windows = [("vision", served.checkpoint.vision.window)]
        if generated.segs:
            windows.append(("segmentation", served.checkpoint.segmentation.window))
        await work.emitter.emit(done(call, provenance(served, digest, windows), generated))

    async def _segment(self, request: pb.SegmentRequest, context: Context, call: Call) -> None:
        await _greet(context, call)
        served = self._backend.served()
        with self._leased(request.series, call) as series:
            geometry = series.volume.geometry
            objects = checked_objects(request.objects, geometry, served.checkpoint, self._config.request)
            async with self._admitted(call):
                self._backend.still(served)
                work = self._work(series, served, context, call)
                await segment_objects(work, self._vision, objects, _options(request))
        windows = [("segmentation", o.window) for o in objects]
        if any(o.prompt is not None for o in objects):
            windows.append(("vision", served.checkpoint.vision.window))
        await work.emitter.emit(done(call, provenance(served, request.series, windows)))

    async def _describe(self, _: Call) -> pb.DescribeResponse:
        return describe(self._backend.served(), self._config)

    @contextmanager
    def _leased(self, digest: str, call: Call) -> Iterator[StoredSeries]:
        check_digest(digest)
        with self._store.lease(digest) as series:
            call.stages.add("upload", series.upload_ms)
            yield series

    @asynccontextmanager
    async def _admitted(self, call: Call) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            with call.stages.measure("queue"):
                await stack.enter_async_context(self._requests.admit())
            yield

    def _work(self, series: StoredSeries, served: Served, context: Context, call: Call) -> Work:
        parts = asyncio.Semaphore(self._config.admission.max_parts_per_request)
        emitter = Emitter(context.write)
        return Work(self._triton, served, series, call, emitter, parts, self._sending_slices)


async def _greet(context: Context, call: Call, *more: tuple[str, str]) -> None:
    await context.send_initial_metadata(((REQUEST_ID_KEY, call.request_id), *more))


def _options(request: pb.SegmentRequest) -> SegmentOptions:
    asked = request.cleanup
    cleanup = Cleanup(largest_component=asked.largest_component, fill_holes=asked.fill_holes)
    return SegmentOptions(previews=request.previews, local=request.local, cleanup=cleanup)


def _sampling(request: pb.ReportRequest | pb.AskRequest) -> pb.Sampling | None:
    return request.sampling if request.HasField("sampling") else None
