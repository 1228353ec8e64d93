"""A service that answers, refuses or drifts as a test says, on loopback."""

# ruff: noqa: N802 - gRPC names its methods
from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
import nibabel
import numpy as np
import pytest
from grpc_status import rpc_status

from medvl.contracts.errors import MedvlError
from medvl.wire.metadata import UPLOAD_KEY, UPLOAD_SEND
from medvl.wire.status import to_status
from medvl.wire.v1 import medvl_pb2 as pb
from medvl.wire.v1 import medvl_pb2_grpc as pb_grpc

THREADS = 32


@dataclass
class FakeService(pb_grpc.MedVLServicer):
    """Counts what it is asked; ``errors`` maps the number of a request to what it is refused with."""

    endpoint: str = ""
    errors: dict[int, MedvlError] = field(default_factory=dict)
    drifts_from: int = 1_000_000
    hold: threading.Barrier | None = None
    questions: list[str] = field(default_factory=list)
    prompts: list[pb.ObjectPrompt] = field(default_factory=list)
    arrived_s: list[float] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def Describe(self, request, context):
        return pb.DescribeResponse(
            provenance=pb.Provenance(checkpoint="fake"), labels=[pb.Label(name="liver"), pb.Label(name="spleen")]
        )

    def PutSeries(self, messages, context):
        digest = next(messages).header.digest
        context.send_initial_metadata(((UPLOAD_KEY, UPLOAD_SEND),))
        for _ in messages:
            pass
        return pb.PutSeriesResponse(digest=digest)

    def Report(self, request, context):
        return self._answer(context)

    def Ask(self, request, context):
        self.questions.append(request.question)
        return self._answer(context)

    def Segment(self, request, context):
        self.prompts.extend(request.objects)
        return self._answer(context)

    def _answer(self, context):
        with self._lock:
            number = len(self.arrived_s)
            self.arrived_s.append(time.monotonic())
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            if self.hold is not None:
                self.hold.wait(30)
            if number in self.errors:
                context.abort_with_status(rpc_status.to_status(to_status(self.errors[number])))
            word = "normal" if number < self.drifts_from else "abnormal"
            yield pb.Event(progress=pb.Progress(stage=pb.STAGE_ENCODE, total=2))
            yield pb.Event(text=pb.TextDelta(text=word))
            yield pb.Event(done=pb.Done(text=word, finish_reason="stop", completion_tokens=5))
        finally:
            with self._lock:
                self.running -= 1


@pytest.fixture
def service() -> Iterator[FakeService]:
    fake = FakeService()
    server = grpc.server(ThreadPoolExecutor(THREADS))
    pb_grpc.add_MedVLServicer_to_server(fake, server)
    fake.endpoint = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield fake
    server.stop(None).wait()


@pytest.fixture
def series(tmp_path):
    """A small CT volume as NIfTI: columns, rows, slices."""
    hu = np.random.default_rng(0).integers(-1000, 1000, (20, 18, 16)).astype(np.int16)
    path = tmp_path / "ct.nii.gz"
    nibabel.save(nibabel.Nifti1Image(hu, np.diag([-2.0, -2.0, 3.0, 1.0])), path)
    return path
