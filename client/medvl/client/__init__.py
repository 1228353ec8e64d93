"""The client library of a MedVL-SAM2 service: torch-free, asynchronous with a thin synchronous face."""

from medvl.client.aio import AsyncClient, Series
from medvl.client.events import (
    Done,
    Event,
    Mask,
    Measurement,
    Progress,
    Provenance,
    SlicePreview,
    Stage,
    TextDelta,
    TextSpan,
)
from medvl.client.policies import RetryPolicy, Timeouts
from medvl.client.prompts import Box, ObjectPrompt, Point
from medvl.client.results import Answer, Label, SeriesRef, ServiceDescription, ServiceLimits, Upload
from medvl.client.stream import EventStream
from medvl.client.sync import Client, SyncStream
from medvl.client.upload import UploadProgress

__all__ = [
    "Answer",
    "AsyncClient",
    "Box",
    "Client",
    "Done",
    "Event",
    "EventStream",
    "Label",
    "Mask",
    "Measurement",
    "ObjectPrompt",
    "Point",
    "Progress",
    "Provenance",
    "RetryPolicy",
    "Series",
    "SeriesRef",
    "ServiceDescription",
    "ServiceLimits",
    "SlicePreview",
    "Stage",
    "SyncStream",
    "TextDelta",
    "TextSpan",
    "Timeouts",
    "Upload",
    "UploadProgress",
]
