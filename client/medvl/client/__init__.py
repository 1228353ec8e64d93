"""The client library of a MedVL-SAM2 service: torch-free, asynchronous with a thin synchronous face."""

from medvl.client.aio import AsyncClient, Series
from medvl.client.events import (
    Cleaned,
    Done,
    Event,
    Mask,
    Measurement,
    Progress,
    Provenance,
    Quantisation,
    SlicePreview,
    Stage,
    TextDelta,
    TextSpan,
    VoxelBox,
)
from medvl.client.policies import RetryPolicy, Timeouts
from medvl.client.prompts import Box, ObjectPrompt, Point
from medvl.client.results import Answer, Label, SeriesRef, ServiceDescription, ServiceLimits, Upload
from medvl.client.stream import EventStream
from medvl.client.sync import Client, SyncStream
from medvl.client.upload import UploadProgress
from medvl.imaging.cleanup import Cleanup

__all__ = [
    "Answer",
    "AsyncClient",
    "Box",
    "Cleaned",
    "Cleanup",
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
    "Quantisation",
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
    "VoxelBox",
]
