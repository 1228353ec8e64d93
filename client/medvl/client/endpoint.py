"""Where the service is: what the caller names, else ``MEDVL_ENDPOINT``, else a running ``medvl up`` of this user."""

from __future__ import annotations

import json
import os
import re

from medvl.contracts.errors import InvalidRequest, SetupError
from medvl.contracts.paths import data_folder

ENDPOINT_VARIABLE = "MEDVL_ENDPOINT"
STATE_FILE = "state.json"
"""Written by ``medvl up`` into its data folder; its key ``endpoint`` names the service."""
_ENDPOINT = re.compile(r"(?:dns:///)?(?:\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}")


def check_endpoint(endpoint: str) -> str:
    """Return ``endpoint`` when it is ``host:port``.

    Raises
    ------
    InvalidRequest
        When it is not.
    """
    if not _ENDPOINT.fullmatch(endpoint):
        raise InvalidRequest(f"The endpoint must be host:port, such as localhost:8500, not {endpoint!r}.")
    return endpoint


def find_endpoint(named: str | None = None) -> str:
    """Return the endpoint to call.

    Raises
    ------
    InvalidRequest
        When what was named is not ``host:port``.
    SetupError
        When nothing names a service.
    """
    endpoint = named or os.environ.get(ENDPOINT_VARIABLE) or _running()
    if endpoint is None:
        raise SetupError(
            f"No service was named: start one with `medvl up`, give --endpoint host:port, or set {ENDPOINT_VARIABLE}."
        )
    return check_endpoint(endpoint)


def _running() -> str | None:
    try:
        state = json.loads((data_folder() / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    endpoint = state.get("endpoint") if isinstance(state, dict) else None
    return endpoint if isinstance(endpoint, str) else None
