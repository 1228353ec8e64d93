"""``dicom_echo.py HOST:PORT TITLE``: succeed when the application entity of that title answers C-ECHO.

One that refuses for the moment, since it has as many associations as it takes, answers, too: the gateway ends those
whose senders have stalled by itself, after a minute, and a restart would cut off the transfers of all others. It is
asked with the standard library alone (DICOM PS3.7, PS3.8): importing pynetdicom at every probe would cost twenty times
as much. A bare connection is no substitute: pynetdicom waits half a minute for its request, and counts it as an
association meanwhile.
"""

from __future__ import annotations

import socket
import struct
import sys

TIMEOUT_S = 4.0
VERIFICATION = b"1.2.840.10008.1.1"
IMPLICIT_LITTLE_ENDIAN = b"1.2.840.10008.1.2"
APPLICATION_CONTEXT = b"1.2.840.10008.3.1.1.1"
IMPLEMENTATION = b"2.25.188604573110437184929213367541186305284"
"""Chosen once, of this script."""

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, DATA, RELEASE_RQ = 0x01, 0x02, 0x03, 0x04, 0x05
C_ECHO_RQ, NO_DATASET = 0x0030, 0x0101
STATUS, SUCCESS = 0x0900, 0x0000
TRANSIENT = 0x02
CONTEXT = 1


def main(address: str, title: str) -> int:
    """Ask; return the exit status."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), TIMEOUT_S) as connection:
            answer = echo(connection, title)
    except (OSError, ValueError) as error:
        answer = type(error).__name__
    ok = answer in {"SUCCESS", "BUSY"}
    print(answer, file=sys.stdout if ok else sys.stderr)
    return 0 if ok else 1


def echo(connection: socket.socket, title: str) -> str:
    """Return what an entity answers to C-ECHO in an association of its own.

    Raises
    ------
    OSError, ValueError
        When it says nothing in time, or something else than DICOM.
    """
    connection.sendall(pdu(ASSOCIATE_RQ, association(title)))
    kind, body = received(connection)
    if kind == ASSOCIATE_RJ:
        return "BUSY" if body[1] == TRANSIENT else "REJECTED"
    if kind != ASSOCIATE_AC:
        return "ABORTED"
    connection.sendall(pdu(DATA, data_value(command())))
    kind, body = received(connection)
    if kind != DATA:
        return "ABORTED"
    status = elements(body[6:]).get(STATUS)
    connection.sendall(pdu(RELEASE_RQ, bytes(4)))
    received(connection)
    return "SUCCESS" if status == struct.pack("<H", SUCCESS) else "FAILURE"


def association(title: str) -> bytes:
    """Return the body of a request for an association about Verification."""
    context = item(0x30, VERIFICATION) + item(0x40, IMPLICIT_LITTLE_ENDIAN)
    user = item(0x51, struct.pack(">I", 16384)) + item(0x52, IMPLEMENTATION)
    titles = title.encode("ascii").ljust(16) + b"HEALTHCHECK".ljust(16)
    return (
        struct.pack(">HH", 1, 0)
        + titles
        + bytes(32)
        + item(0x10, APPLICATION_CONTEXT)
        + item(0x20, struct.pack("B3x", CONTEXT) + context)
        + item(0x50, user)
    )


def command() -> bytes:
    """Return the command set of C-ECHO-RQ."""
    words = ((0x0100, C_ECHO_RQ), (0x0110, 1), (0x0800, NO_DATASET))
    rest = element(0x0002, VERIFICATION + b"\0")
    rest += b"".join(element(tag, struct.pack("<H", word)) for tag, word in words)
    return element(0x0000, struct.pack("<I", len(rest))) + rest


def pdu(kind: int, body: bytes) -> bytes:
    """Return a protocol data unit."""
    return struct.pack(">BxI", kind, len(body)) + body


def item(kind: int, body: bytes) -> bytes:
    """Return an item of an association request."""
    return struct.pack(">BxH", kind, len(body)) + body


def data_value(message: bytes) -> bytes:
    """Return a presentation data value that holds a whole command."""
    return struct.pack(">IBB", len(message) + 2, CONTEXT, 0x03) + message


def element(tag: int, value: bytes) -> bytes:
    """Return an element of group 0000, implicit VR, little endian."""
    return struct.pack("<HHI", 0, tag, len(value)) + value


def elements(message: bytes) -> dict[int, bytes]:
    """Return the values of a command set by the second half of their tags."""
    found: dict[int, bytes] = {}
    while len(message) >= 8:
        _, tag, length = struct.unpack_from("<HHI", message)
        found[tag], message = message[8 : 8 + length], message[8 + length :]
    return found


def received(connection: socket.socket) -> tuple[int, bytes]:
    """Return kind and body of the next unit; its body is short, or it is not of this conversation."""
    kind, length = struct.unpack(">BxI", exactly(connection, 6))
    if length > 16384:
        raise ValueError("This is no answer to C-ECHO.")
    return kind, exactly(connection, length)


def exactly(connection: socket.socket, length: int) -> bytes:
    """Return so many bytes."""
    data = b""
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            raise ConnectionError("The connection ended.")
        data += part
    return data


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
