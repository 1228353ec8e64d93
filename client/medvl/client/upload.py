"""The messages of one PutSeries stream, counted as they leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from medvl.imaging.volume import Volume
from medvl.wire.codec import CHUNK_BYTES, geometry_to_wire, volume_chunks
from medvl.wire.v1 import medvl_pb2 as pb


@dataclass(frozen=True, slots=True)
class UploadProgress:
    """Voxels handed to the connection so far, of all, in bytes before compression."""

    sent_bytes: int
    total_bytes: int


OnUpload = Callable[[UploadProgress], None]


class SeriesSender:
    """One attempt to send a volume.

    Parameters
    ----------
    volume
        The canonical volume.
    compress
        Send each chunk as a zstd frame: worth it below about 300 MB/s.
    on_progress
        Called once the server wants the voxels and after each chunk, in the event loop's thread.
    """

    def __init__(self, volume: Volume, *, compress: bool, on_progress: OnUpload | None) -> None:
        self._volume = volume
        self._compression = pb.COMPRESSION_ZSTD if compress else pb.COMPRESSION_NONE
        self._on_progress = on_progress
        self.sent_bytes = 0
        self.total_bytes = int(volume.hu.nbytes)

    @property
    def header(self) -> pb.PutSeriesRequest:
        """The first message; admission, and whether the server wants the voxels, depend on it alone."""
        header = pb.SeriesHeader(
            geometry=geometry_to_wire(self._volume.geometry),
            digest=self._volume.digest,
            compression=self._compression,
        )
        return pb.PutSeriesRequest(header=header)

    def voxels(self) -> Iterator[pb.PutSeriesRequest]:
        """Yield the messages behind the header, in order."""
        self._report()
        for chunk in volume_chunks(self._volume.hu, compression=self._compression):
            yield pb.PutSeriesRequest(chunk=chunk)
            self.sent_bytes = min(self.sent_bytes + CHUNK_BYTES, self.total_bytes)
            self._report()

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(UploadProgress(self.sent_bytes, self.total_bytes))
