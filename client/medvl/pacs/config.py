"""What the gateway is told at its start, as frozen values that refuse nonsense."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from medvl.contracts.errors import InvalidRequest

_AE_TITLE = re.compile(r"(?! )[\x20-\x5B\x5D-\x7E]{1,16}(?<! )")
"""DICOM PS3.5, value representation AE: at most 16 characters, no backslash; no spaces around it here."""


def check_ae_title(title: str) -> str:
    """Return an application entity title.

    Raises
    ------
    InvalidRequest
        When it is not one.
    """
    if not _AE_TITLE.fullmatch(title):
        raise InvalidRequest(f"An AE title is 1 to 16 characters without a backslash, not {title!r}.")
    return title


@dataclass(frozen=True, slots=True)
class Destination:
    """Where results are sent: an application entity that takes C-STORE."""

    ae_title: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the destination that ``AET@host:port`` names.

        Raises
        ------
        InvalidRequest
            When the text is not of that form.
        """
        title, _, address = text.partition("@")
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise InvalidRequest(f"A destination is AET@host:port, such as ORTHANC@pacs:4242, not {text!r}.")
        return cls(check_ae_title(title), host, int(port))


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Configuration of one gateway.

    Attributes
    ----------
    ae_title
        Our own title; associations that call another one are rejected.
    host, port
        Where C-STORE and C-ECHO are taken; port 0 takes a free one.
    endpoint
        ``host:port`` of the service.
    destination
        Where results are sent.
    labels
        Classes to segment in every series, beside what its report names.
    geometry_policy
        What to do about gantry tilt, gaps and uneven spacing; see :func:`medvl.imaging.series.read_series`.
    spool
        Folder of everything that was received and is not yet done with.
    quiet_s
        A series is complete when no instance has come for so long.
    keep_s
        What was received is deleted so long after its results were delivered.
    keep_refused_s
        A series that cannot be worked on is deleted so long after this was found out.
    """

    ae_title: str
    host: str
    port: int
    endpoint: str
    destination: Destination
    labels: tuple[str, ...]
    geometry_policy: str
    spool: Path
    quiet_s: float
    keep_s: float
    keep_refused_s: float

    def __post_init__(self) -> None:
        check_ae_title(self.ae_title)
        if not 0 <= self.port < 65536:
            raise InvalidRequest(f"A port to listen on is a number from 0 to 65535, not {self.port}.")
        if not self.quiet_s > 0 or not min(self.keep_s, self.keep_refused_s) >= 0:
            raise InvalidRequest("The quiet time must be positive, the times to keep a series must not be negative.")
