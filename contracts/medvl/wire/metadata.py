"""Metadata of gRPC calls that both sides know.

A ``PutSeries`` stream can be answered on its header alone: the series is there already, or is refused. The server sends
initial metadata with :data:`UPLOAD_KEY` only when it wants the voxels; a client that waits for it, and sends them only
then, wastes nothing and always reads the answer. One that does not wait may find its call ended as INTERNAL by its own
gRPC, because a write failed on a stream that had been answered before the answer was read.
"""

REQUEST_ID_KEY = "medvl-request-id"
"""Initial metadata: the id under which the server has logged the call."""
UPLOAD_KEY = "medvl-upload"
"""Initial metadata of ``PutSeries``; there when the server wants the voxels, absent when it has answered without."""
UPLOAD_SEND = "send"
"""Value of :data:`UPLOAD_KEY`."""
