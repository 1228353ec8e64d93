"""A Triton that can be made to hang, fail and crawl: faults that the real one shows only by chance.

It answers the models that the orchestrator calls, over real gRPC, with small deterministic outputs. That the
orchestrator gets along with the real server is shown by the end-to-end tests, not here.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import grpc
import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype

from medvl.contracts import messages
from medvl.contracts.checkpoint import Checkpoint
from medvl.contracts.errors import InvalidRequest, MedvlError
from medvl.contracts.faults import to_triton_text
from medvl.contracts.models import CHECKPOINT_PARAMETER, MODELS, QUANTISATION_PARAMETER, Kind
from medvl.contracts.quantisation import parse_quantisation, served_weights
from medvl.imaging.masks import pack_mask
from medvl.orchestrator.canary import NO_SERIES

REGIONS = np.full((16, 12), 0.5, np.float32)
"""Of every series."""
USAGE = messages.LanguageUsage(
    prompt_tokens=11, completion_tokens=7, finish_reason="stop", queue_ms=1.0, prefill_ms=2.0, decode_ms=3.0
)


class Gate:
    """Holds every stream of a model while closed, and notes when one is held and when a held one is cancelled."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.held = asyncio.Event()
        self.cancelled = asyncio.Event()

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def passed(self) -> None:
        if self._open.is_set():
            return
        self.held.set()
        try:
            await self._open.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


class Crowd:
    """Counts who is inside a ``with`` block: now, and at most so far."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0

    def __enter__(self) -> None:
        self.now += 1
        self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        self.now -= 1


@dataclass
class Seen:
    """What came in, canaries aside."""

    prompts: list[str] = field(default_factory=list)
    options: list[messages.LanguageOptions] = field(default_factory=list)
    tokens: list[np.ndarray] = field(default_factory=list)
    segmenter: list[messages.SegmenterRequest] = field(default_factory=list)
    states: list[np.ndarray | None] = field(default_factory=list)
    """Of [SEG] tokens, of each request to the segmenter."""
    slices: list[np.ndarray] = field(default_factory=list)
    masks: list[bytes] = field(default_factory=list)
    volumes: list[np.ndarray] = field(default_factory=list)
    vision_windows: list[list[float]] = field(default_factory=list)
    seconds_left: list[float] = field(default_factory=list)
    headers: set[tuple[str, str]] = field(default_factory=set)
    at_work: defaultdict[str, Crowd] = field(default_factory=lambda: defaultdict(Crowd))
    """By model."""


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves one checkpoint.

    Attributes
    ----------
    deltas
        What ``llm`` answers freely: texts, with the places of the [SEG] tokens whose states come with each.
    vision, language, segmenter
        Gates of the vision encoder and of the two decoupled models; ``language_end`` holds the answer before its last
        delta.
    refusals
        What Triton says in the place of single models, by name.
    network_backend
        What carries out networks, as their configurations say it.
    canaries
        Counts the canaries that came in, by model.
    language_error
        Raised by ``llm`` after its first delta; a string is sent as Triton's own words.
    never_resident, absent, empty, stray
        Whether the segmenter loses every series at once, whether no object is there, whether one is without a voxel,
        and whether the last voxel of the volume is marked, too.
    checkpoints
        Checkpoints that single models carry instead.
    quantisation
        What ``llm`` says of its bits, as JSON; empty where it says nothing.
    vision_dtype
        Type of the vision tokens; any but float32 breaks the contract.
    resident
        Series and windows whose slices the segmenter holds.
    arrival
        Gate of slices, before the segmenter holds them.
    slices_error
        Raised instead of taking slices.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.deltas: list[tuple[str, tuple[int, ...]]] = [
            ("Liver ", ()),
            ("[SEG]", ()),
            (" is", (6,)),
            (" normal.", ()),
        ]
        self.vision, self.language, self.language_end, self.segmenter = Gate(), Gate(), Gate(), Gate()
        self.refusals: dict[str, str] = {}
        self.network_backend = "fake"
        self.canaries: Counter[str] = Counter()
        self.language_error: MedvlError | str | None = None
        self.never_resident = False
        self.absent = False
        self.empty = False
        self.stray = False
        self.checkpoints: dict[str, Checkpoint] = {}
        self.quantisation = ""
        self.vision_dtype = np.float32
        self.resident: set[tuple[str, tuple[float, float]]] = set()
        self.arrival, self.ending = Gate(), Gate()
        self.slices_error: MedvlError | None = None
        self.seen = Seen()
        self._slices: dict[str, int] = {}

    async def ServerMetadata(self, request, context):  # noqa: N802
        return service_pb2.ServerMetadataResponse(name="triton", version="2.51.0-fake")

    async def ModelConfig(self, request, context):  # noqa: N802
        self.seen.headers |= {(k, v) for k, v in context.invocation_metadata() if k.startswith("triton-")}
        response = service_pb2.ModelConfigResponse()
        network = MODELS[request.name].kind is Kind.NETWORK
        response.config.name, response.config.backend = request.name, self.network_backend if network else "fake"
        checkpoint = self.checkpoints.get(request.name, self.checkpoint)
        if MODELS[request.name].checkpoint:
            response.config.parameters[CHECKPOINT_PARAMETER].string_value = checkpoint.model_dump_json()
        if request.name == "llm" and self.quantisation:
            response.config.parameters[QUANTISATION_PARAMETER].string_value = self.quantisation
        return response

    async def ModelInfer(self, request, context):  # noqa: N802
        if request.model_name != "encode_volume":
            self.canaries[request.model_name] += 1
        if request.model_name != "projector":
            await self.vision.passed()
        if request.model_name in self.refusals:
            await context.abort(grpc.StatusCode.INTERNAL, self.refusals[request.model_name])
        if request.model_name != "encode_volume":
            refusal = to_triton_text(InvalidRequest("The graph takes other shapes."))
            await context.abort(grpc.StatusCode.INTERNAL, refusal)
        inputs = tensors(request)
        self.seen.volumes.append(inputs["volume_hu"][0])
        self.seen.vision_windows.append(inputs["window_hu"][0].tolist())
        self.seen.seconds_left.append(context.time_remaining())
        shape = (1, self.checkpoint.vision_tokens, self.checkpoint.language.hidden_size)
        tokens = np.full(shape, inputs["volume_hu"].mean(), self.vision_dtype)
        return response_of(request, {"vision_tokens": tokens, "regions": REGIONS[np.newaxis]})

    async def ModelStreamInfer(self, request_iterator, context) -> AsyncIterator:  # noqa: N802
        async for request in request_iterator:
            answer = self._generate if request.model_name == "llm" else self._segment
            crowd = Crowd() if request.id == "canary" else self.seen.at_work[request.model_name]
            try:
                with crowd:
                    async for outputs in answer(tensors(request), context):
                        yield service_pb2.ModelStreamInferResponse(infer_response=response_of(request, outputs))
            except MedvlError as error:
                yield service_pb2.ModelStreamInferResponse(error_message=to_triton_text(error))
            except RuntimeError as error:
                yield service_pb2.ModelStreamInferResponse(error_message=str(error))
            if request.id != "canary":
                await self.ending.passed()

    async def _generate(self, inputs, context):
        options = messages.LanguageOptions.model_validate_json(inputs["options"].tobytes())
        canary = options.max_tokens == 1
        self.canaries["llm"] += canary
        await self.language.passed()
        if canary:
            yield {"text_delta": utf8("L"), "usage": utf8(self._usage())}
            return
        self.seen.prompts.append(prompt := inputs["prompt"].tobytes().decode())
        self.seen.options.append(options)
        self.seen.tokens.append(inputs["vision_tokens"])
        self.seen.seconds_left.append(context.time_remaining())
        template = options.answer_template
        deltas = self.deltas if template is None else [(template, ()), ("", (template.index("[SEG]"),))]
        for number, (text, starts) in enumerate(deltas):
            last = number == len(deltas) - 1
            if last:
                await self.language_end.passed()
            yield {
                "text_delta": utf8(text),
                "seg_hidden": seg_states(prompt, starts, self.checkpoint.language.hidden_size),
                "seg_start": np.array(starts, np.int32),
                "usage": utf8(self._usage() if last else ""),
            }
            if isinstance(self.language_error, MedvlError):
                raise self.language_error
            if self.language_error is not None:
                raise RuntimeError(self.language_error)

    def _usage(self) -> str:
        quantisation = parse_quantisation(self.quantisation) if self.quantisation else None
        weights = served_weights(self.checkpoint, quantisation)
        return USAGE.model_copy(update={"weights": weights}).model_dump_json()

    async def _segment(self, inputs, context):
        request = messages.SegmenterRequest.model_validate_json(inputs["request"].tobytes())
        self.canaries["volume_segmenter"] += request.series == NO_SERIES
        await self.segmenter.passed()
        if "seg_hidden" in inputs:
            assert np.array_equal(inputs["regions"], REGIONS), "language may mean what the encoder has found"
        if request.series != NO_SERIES:
            self.seen.segmenter.append(request)
            self.seen.states.append(inputs.get("seg_hidden"))
            self.seen.masks.append(inputs["masks"].tobytes() if "masks" in inputs else b"")
            self.seen.seconds_left.append(context.time_remaining())
        key = (request.series, request.window_hu)
        if "slices" in inputs:
            self.seen.slices.append(inputs["slices"])
            await self.arrival.passed()
            if self.slices_error is not None:
                raise self.slices_error
            self.resident.add(key)
        if self.never_resident or key not in self.resident:
            yield {"event": utf8(messages.NotResident().model_dump_json()), "mask": utf8("")}
            return
        yield event(messages.Progress(slices_done=1, slices_total=2))
        for prompts in request.objects:
            preview = np.zeros((1, *request.shape[1:]), bool)
            preview[0, 1, 2] = True
            slice_mask = messages.SliceMask(object_id=prompts.object_id, slice=1, score=0.5)
            yield event(slice_mask, pack_mask(preview))
            yield self._object(prompts, request.shape, local=request.local)
        yield event(messages.Progress(slices_done=2, slices_total=2))
        done = messages.SegmenterDone(
            slices_encoded=2, encode_ms=1.0, decode_ms=2.0, track_ms=3.0, total_ms=6.0, weights=self.checkpoint.digest
        )
        yield event(done)

    def _object(self, prompts: messages.ObjectPrompts, shape: tuple[int, int, int], *, local: bool):
        """Return two voxels from the first point or box on, or from the first voxel for language."""
        mask = np.zeros(shape, bool)
        start = (0, 0, 0)
        for point in prompts.points:
            start = (point.slice, round(point.row), round(point.column))
        for box in prompts.boxes:
            start = (box.first_slice, round(box.row_min), round(box.column_min))
        mask[start] = mask[start[0], start[1], start[2] + 1] = not self.empty
        if self.stray:
            mask[-1, -1, -1] = True
        found = messages.ObjectMask(
            object_id=prompts.object_id,
            found=not self.absent,
            score=0.25 if self.absent else 0.75,
            key_slices=(start[0],),
            slice_scores={start[0]: 0.9},
            local=local,
            changed=None if prompts.earlier_sha256 is None else messages.VoxelBox(min=start, max=start),
        )
        return event(found, b"" if self.absent else pack_mask(mask))


def seg_states(prompt: str, starts: Sequence[int], hidden_size: int) -> np.ndarray:
    """Return float32 [n, hidden_size]: no other prompt and no other place in its answer has the state of one."""
    own = [zlib.crc32(f"{prompt} {start}".encode()) % 2**24 for start in starts]
    return np.repeat(np.array(own, np.float32)[:, np.newaxis], hidden_size, axis=1)


def tensors(request) -> dict[str, np.ndarray]:
    spec = {s.name: s for s in MODELS[request.model_name].inputs}
    arrays = zip(request.inputs, request.raw_input_contents, strict=True)
    return {i.name: np.frombuffer(raw, spec[i.name].dtype.numpy).reshape(tuple(i.shape)) for i, raw in arrays}


def response_of(request, outputs: dict[str, np.ndarray]) -> service_pb2.ModelInferResponse:
    response = service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
    for name, array in outputs.items():
        response.outputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
        response.raw_output_contents.append(array.tobytes())
    return response


def event(message: messages.Message, packed: bytes = b"") -> dict[str, np.ndarray]:
    return {"event": utf8(message.model_dump_json()), "mask": np.frombuffer(packed, np.uint8)}


def utf8(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


class TritonServer:
    """The fake on a port of its own, which can be taken away and come back."""

    def __init__(self, fake: FakeTriton) -> None:
        self._fake = fake
        self._server: grpc.aio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
        self._server = grpc.aio.server(options=options)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self._fake, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        assert self._server is not None
        await self._server.stop(None)
