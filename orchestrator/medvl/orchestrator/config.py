"""Configuration of the orchestrator: frozen values with units in their names, refused early."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from medvl.contracts.errors import SetupError

GIB = 1024**3
MIB = 1024**2

Address = Annotated[str, Field(pattern=r"^[^\s:]+:\d{1,5}$")]
Count = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0.0)]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TritonKey(_Value):
    """Restricted-protocol key of Triton: sent as the gRPC header ``triton-grpc-protocol-<name>: <secret>``."""

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    secret: SecretStr


class SeriesLimits(_Value):
    """What one series may be, and what all of them together may hold."""

    max_store_bytes: Count = 4 * GIB
    """Voxels of all resident series together; the least recently used make room."""
    max_series_bytes: Count = GIB
    """Voxels of one series: 2 bytes each."""
    min_slices: Count = 8
    max_slices: Count = 4096
    max_token_cache_bytes: Count = 256 * MIB
    """Vision tokens that are kept for the next question on a series."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_series_bytes > self.max_store_bytes:
            raise ValueError("max_series_bytes is above max_store_bytes: such a series could never be stored")
        if self.min_slices > self.max_slices:
            raise ValueError("min_slices is above max_slices")
        return self


class RequestLimits(_Value):
    """What one request may ask for."""

    max_objects: Count = 64
    max_prompts_per_object: Count = 64
    """Points and boxes of one object together."""
    max_corrections_per_object: Count = 32
    """Different numbers of corrections of one object; each costs a propagation through the volume."""
    max_text_characters: Count = 2000
    """Unicode code points of a question or a description."""
    max_mask_bytes: int = Field(default=MIB, gt=0, le=MIB)
    """Packed masks of all objects together; a message that the server receives leaves room for one MiB."""


class AdmissionLimits(_Value):
    """How much work is taken on at once; what is over it is refused on its first message."""

    max_concurrent_requests: Count = 32
    max_queued_requests: int = Field(default=64, ge=0)
    max_concurrent_uploads: Count = 8
    max_queued_uploads: int = Field(default=8, ge=0)
    """Besides, as many as both together may wait for another who sends the same series."""
    max_parts_per_request: Count = 8
    """Texts and masks of one request that are at work at once, each a stream to Triton; the next ones wait."""
    default_deadline_s: Seconds = 600.0
    """For calls that come without a deadline."""
    upload_idle_s: Seconds = 30.0
    """An upload that sends nothing for so long, its header included, is ended and gives its reservation back."""

    @property
    def max_open_calls(self) -> int:
        """Calls of every kind that may be open at once; gRPC refuses the next without a look at them.

        Admission does not count who has no header or no answer yet, whose answer is read slowly, or health checks and
        their streams. Eight times as many as it admits leaves room for these, and for telling a burst of callers when
        to come back; an idle call takes some 25 kB.
        """
        uploads = self.max_concurrent_uploads + self.max_queued_uploads
        return 8 * (self.max_concurrent_requests + self.max_queued_requests + 2 * uploads)


class HealthPolicy(_Value):
    """How a backend is watched: a dead model is noticed within the interval, a hung one by two canaries in a row."""

    canary_interval_s: Seconds = 0.5
    canary_timeout_s: Seconds = 1.2
    network_timeout_s: Seconds = 15.0
    """Of a network's canary, which waits behind all volumes before it; Triton lets none wait longer than twice that."""


class OrchestratorConfig(_Value):
    """Everything that the orchestrator is told at its start.

    Attributes
    ----------
    listen
        ``host:port`` of the gRPC service; port 0 takes a free one.
    triton
        ``host:port`` of Triton's gRPC.
    triton_key
        Key for Triton's restricted protocols, when it has one.
    metrics_port
        Port for Prometheus, on the host of ``listen``; 0 takes a free one, None exposes no metrics.
    drain_s
        Time that running requests get after SIGTERM, in seconds.
    """

    listen: Address
    triton: Address
    triton_key: TritonKey | None = None
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    drain_s: Seconds = 30.0
    series: SeriesLimits = SeriesLimits()
    request: RequestLimits = RequestLimits()
    admission: AdmissionLimits = AdmissionLimits()
    health: HealthPolicy = HealthPolicy()

    @property
    def host(self) -> str:
        """The interface that the service listens on."""
        return self.listen.rpartition(":")[0]


def load_config(path: Path) -> OrchestratorConfig:
    """Read a configuration file.

    Raises
    ------
    SetupError
        When the file cannot be read or breaks a rule above; the sentence names the field, never its value.
    """
    try:
        return OrchestratorConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SetupError(f"The configuration {path.name} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors())
        raise SetupError(f"The configuration {path.name} is wrong: {faults}.") from None
