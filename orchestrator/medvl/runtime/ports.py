"""Free TCP ports on loopback."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack

from medvl.contracts.errors import SetupError

LOOPBACK = "127.0.0.1"


def free_ports(count: int) -> tuple[int, ...]:
    """Return ports that nothing listened on a moment ago, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((LOOPBACK, 0))
        return tuple(one.getsockname()[1] for one in sockets)


def check_free(port: int) -> None:
    """Check that a port can be listened on.

    Raises
    ------
    SetupError
        When it is taken, or not ours to take.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            why = "in use" if error.errno == errno.EADDRINUSE else "not allowed"
            raise SetupError(f"Port {port} is {why}: choose another with --port, or leave it out.") from None
