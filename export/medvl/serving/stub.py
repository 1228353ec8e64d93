"""The part of ``triton_python_backend_utils`` that the models use, as types: the module exists only inside the stub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class PbTensor(Protocol):
    """``pb_utils.Tensor``."""

    def name(self) -> str: ...  # noqa: D102
    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...  # noqa: ANN401
    def __dlpack_device__(self) -> Any: ...  # noqa: ANN401


class PbError(Protocol):
    """``pb_utils.TritonError``."""

    def message(self) -> str: ...  # noqa: D102


class PbResponse(Protocol):
    """``pb_utils.InferenceResponse``."""

    def has_error(self) -> bool: ...  # noqa: D102
    def error(self) -> PbError: ...  # noqa: D102


class PbSender(Protocol):
    """``pb_utils.InferenceResponseSender``."""

    def is_cancelled(self) -> bool: ...  # noqa: D102
    def send(self, response: PbResponse | None = None, flags: int = 0) -> None: ...  # noqa: D102


class PbRequest(Protocol):
    """``pb_utils.InferenceRequest`` as ``execute`` receives it."""

    def inputs(self) -> Sequence[PbTensor]: ...  # noqa: D102
    def requested_output_names(self) -> Sequence[str]: ...  # noqa: D102
    def get_response_sender(self) -> PbSender: ...  # noqa: D102
