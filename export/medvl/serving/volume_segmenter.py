"""The Triton model ``volume_segmenter``: prompts to 3D masks, over the SAM2 models of the same server."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from medvl.contracts.checkpoint import PROPOSALS_FILE
from medvl.contracts.defects import log_without_words
from medvl.contracts.errors import InvalidRequest
from medvl.contracts.messages import Message, NotResident, ObjectMask, SegmenterDone, SegmenterRequest
from medvl.contracts.models import MODELS
from medvl.contracts.quantisation import served_weights
from medvl.imaging.resample import FitTransform
from medvl.network.propagation import MAX_OBJECTS, Propagation
from medvl.network.proposals import ProposalScorer
from medvl.network.region_choice import RegionScorer
from medvl.network.room import Room
from medvl.network.slice_mask import SliceMasks
from medvl.serving.bls import infer
from medvl.serving.feature_store import FeatureStore, SeriesKey
from medvl.serving.findings import Findings
from medvl.serving.metrics import Counter
from medvl.serving.model_prompts import given_slices, to_model_prompt, unpacked
from medvl.serving.own_graphs import OWN_ENCODE_BATCH, OWN_OBJECT_BATCH, OwnGraphs, graphs_beside
from medvl.serving.pages import give_large_back
from medvl.serving.past import Past, Stores
from medvl.serving.replies import Reply, answering
from medvl.serving.result_store import BoundedStore
from medvl.serving.segmenter_checks import check_request
from medvl.serving.settings import Settings
from medvl.serving.stub import PbRequest, PbSender
from medvl.serving.tensors import checked_arrays, from_bytes
from medvl.serving.triton_steps import Arrays, Infer, Spent, StoredFeatures, TritonSteps, encode

SPEC = MODELS["volume_segmenter"]
VARIABLE_PREFIX = "MEDVL_SEGMENTER_"
"""Of the environment variables that set the segmenter up."""
CANCEL_POLL_S = 0.02
LENT = ("slices",)
"""Inputs that are not copied before the store has made room for them."""
_NO_BYTES = np.zeros(0, np.uint8)


class TritonPythonModel:
    """The segmenter of one device; it owns the store of slice features, so there is one instance."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the settings.

        ``store_bytes``, ``result_bytes`` and ``known_bytes`` bound what is kept of slices, of answers, and for
        corrections, one half of the last for objects that are being tracked. ``encode_batch``, ``object_batch``,
        ``workers`` and ``threads`` say how the graphs are called. On a CPU a larger batch takes memory, which
        onnxruntime never gives back, and no less time.
        """
        give_large_back()
        log_without_words()
        settings = Settings.of(args["model_config"], VARIABLE_PREFIX)
        self._checkpoint = settings.checkpoint
        self._weights = served_weights(self._checkpoint)
        folder, rule = Path(args["model_repository"]), self._checkpoint.segmentation.proposals
        weights = folder / args["model_version"] / PROPOSALS_FILE
        self._scorer = ProposalScorer.load(weights, rule) if rule else None
        self._region_scorer = RegionScorer.load(weights, rule) if rule else None
        paths = graphs_beside(folder, args["model_version"])
        self._graphs = paths and OwnGraphs(
            paths,
            workers=settings.integer("workers", os.cpu_count() or 1),
            threads=settings.integer("threads", 1),
        )
        self._infer: Infer = self._graphs.infer if self._graphs else infer
        self._store = FeatureStore(
            partial(encode, self._infer),
            budget_bytes=settings.integer("store_bytes", 2 * 2**30),
            batch=settings.integer("encode_batch", OWN_ENCODE_BATCH if self._graphs else 4),
        )
        self._object_batch = settings.integer("object_batch", OWN_OBJECT_BATCH if self._graphs else MAX_OBJECTS)
        known_bytes = settings.integer("known_bytes", 512 * 2**20) // 2
        self._past = Stores(BoundedStore(settings.integer("result_bytes", 64 * 2**20)), BoundedStore(known_bytes))
        self._room = Room(known_bytes)
        self._answers: set[asyncio.Task[None]] = set()
        self._cancelled = Counter(
            "medvl_segmenter_cancelled_total", "Requests whose caller went away", args["model_name"]
        )

    async def execute(self, requests: Sequence[PbRequest]) -> None:
        """Begin to answer the requests of one batch, side by side.

        It does not wait for them: as long as it does, the stub keeps a request, and with it a copy of its tensors.
        """
        for request in requests:
            sender = request.get_response_sender()
            try:
                arrays: Arrays | Exception = checked_arrays(request, SPEC, LENT)
            except Exception as error:
                arrays = error
            answer = asyncio.create_task(self._answer(sender, arrays))
            self._answers.add(answer)
            answer.add_done_callback(self._answers.discard)

    def finalize(self) -> None:
        """Free what the server lent, and the worker threads."""
        self._cancelled.close()
        if self._graphs:
            self._graphs.close()

    async def _answer(self, sender: PbSender, arrays: Arrays | Exception) -> None:
        async with answering(sender) as reply:
            if isinstance(arrays, Exception):
                raise arrays
            working = asyncio.create_task(self._segment(arrays, reply))
            # The task's own are the only ones from here on: it lets go of what is lent.
            del arrays
            watch = asyncio.create_task(self._cancel_with(reply, working))
            try:
                await working
            finally:
                watch.cancel()

    async def _cancel_with(self, reply: Reply, working: asyncio.Task[None]) -> None:
        # Triton tells nobody that a caller went away: it has to be asked.
        while not reply.cancelled:  # noqa: ASYNC110
            await asyncio.sleep(CANCEL_POLL_S)
        self._cancelled.increment()
        working.cancel()

    async def _segment(self, arrays: Arrays, reply: Reply) -> None:
        start_s = time.perf_counter()
        request, slices = _read(arrays["request"]), arrays.pop("slices", None)
        states, given, regions = (arrays.get(name) for name in ("seg_hidden", "masks", "regions"))
        check_request(request, self._checkpoint, slices, states, given, regions=regions)
        key = SeriesKey(request.series, request.window_hu, self._checkpoint.digest)
        if slices is not None:
            self._store.put(key, slices)
            del slices
        if key not in self._store:
            _send(reply, NotResident(), b"", final=True)
            return
        spent = Spent()
        with self._store.using(key):
            await self._propagate(request, arrays, key, spent, reply)
        _send(reply, _done(spent, time.perf_counter() - start_s, self._weights), b"", final=True)

    async def _propagate(
        self, request: SegmenterRequest, arrays: Arrays, key: SeriesKey, spent: Spent, reply: Reply
    ) -> None:
        spec = self._checkpoint.segmentation
        depth, rows, cols = request.shape
        transform = FitTransform(rows, cols, spec.side, spec.fit)
        states, given_bytes = arrays.get("seg_hidden"), arrays.get("masks", _NO_BYTES)
        regions, chooser = arrays.get("regions"), self._region_scorer
        past = Past(self._past, key, request, states, given_bytes, regions)
        tell = partial(_tell, reply, past)
        asked = []
        for one in request.objects:
            if (answer := past.answer(one)) is None:
                asked.append(one)
            else:
                for event, packed in answer.events(one.object_id):
                    tell(event, packed)
        if not asked:
            return
        given = await asyncio.to_thread(given_slices, asked, request.shape, given_bytes)
        whole = [unpacked(given[o.object_id], request.shape) for o in asked]
        prompts = [to_model_prompt(o, transform, states, own) for o, own in zip(asked, whole, strict=True)]
        kept = {p.object_id: {n: given[p.object_id][n] for n in p.kept_slices} for p in prompts}
        unchanged = {object_id: unpacked(own, request.shape) for object_id, own in kept.items()}
        known = past.known(asked)
        masks = SliceMasks(transform, partial(self._store.slice_of, key), spec.edges)
        findings = Findings(tell, past.keep, unchanged, past.local, depth, masks)
        steps = TritonSteps(self._infer, self._checkpoint, spent)
        source = StoredFeatures(self._store, key, spent)
        shape = depth, *transform.fitted_shape
        outlined = chooser.outlined(regions, shape) if chooser and regions is not None else None
        propagation = Propagation(
            steps, source, depth, spec, findings, self._room, self._object_batch, self._scorer, outlined
        )
        await propagation.run(prompts, known, past.local, past.keep_known)


def _read(data: np.ndarray) -> SegmenterRequest:
    try:
        return SegmenterRequest.model_validate_json(data.tobytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "JSON"
        raise InvalidRequest(f"The segmenter's request is wrong: {field}: {first['msg']}.") from None


def _done(spent: Spent, total_s: float, weights: str) -> SegmenterDone:
    return SegmenterDone(
        slices_encoded=spent.slices_encoded,
        encode_ms=spent.encode_s * 1000,
        decode_ms=spent.decode_s * 1000,
        track_ms=spent.track_s * 1000,
        total_ms=total_s * 1000,
        weights=weights,
    )


def _tell(reply: Reply, past: Past, event: Message, packed: bytes) -> None:
    _send(reply, past.compared(event, packed) if isinstance(event, ObjectMask) else event, packed)


def _send(reply: Reply, event: Message, packed: bytes, *, final: bool = False) -> None:
    reply.send((from_bytes("event", event.to_bytes()), from_bytes("mask", packed)), final=final)
