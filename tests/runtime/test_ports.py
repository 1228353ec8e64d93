"""Ports on loopback."""

from __future__ import annotations

import socket

import pytest

from medvl.contracts.errors import SetupError
from medvl.runtime.ports import LOOPBACK, check_free, free_ports


def test_free_ports_differ_and_can_be_taken() -> None:
    """Nobody listens on them, and no two are the same."""
    ports = free_ports(8)
    assert len(set(ports)) == 8
    for port in ports:
        check_free(port)


def test_a_taken_port_is_refused() -> None:
    """The sentence says how to choose another."""
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        with pytest.raises(SetupError, match="is in use: choose another with --port"):
            check_free(taken.getsockname()[1])
