"""How long a client waits and how often it tries again, as frozen values that refuse nonsense."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Longest duration in seconds of each kind of call, retries included, when the caller gives no deadline."""

    describe_s: float = 10.0
    upload_s: float = 300.0
    text_s: float = 600.0
    """Report and Ask."""
    segment_s: float = 1800.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{field.name} must be a positive number of seconds, not {value}")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a refused or failed call is repeated; only calls whose answer has not begun ever are.

    The budget is a token bucket shared by all calls of a client, after gRFC A6
    (https://github.com/grpc/proposal/blob/master/A6-client-retries.md): a retry takes one token, a success gives
    ``tokens_per_success`` back, so a server in trouble is not asked ``1 + tokens_per_success`` times as often for long.
    """

    max_attempts: int = 4
    """Attempts of one call, the first included; 1 never retries."""
    max_delay_s: float = 10.0
    """A server that asks for a longer delay is not waited for: its refusal is raised."""
    max_tokens: float = 10.0
    tokens_per_success: float = 0.1

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, not {self.max_attempts}")
        if self.max_delay_s < 0 or self.max_tokens < 0 or self.tokens_per_success < 0:
            raise ValueError("max_delay_s, max_tokens and tokens_per_success must not be negative")


DEFAULT_TIMEOUTS = Timeouts()
DEFAULT_RETRY = RetryPolicy()
