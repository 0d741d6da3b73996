"""A raw ZMTP 3.0 connection, for what no ZeroMQ library would send."""

from __future__ import annotations

import socket
import struct

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
MORE, LONG = 0x01, 0x02


def connect(port: int, socket_type: bytes = b"DEALER") -> socket.socket:
    """A connection to a loopback port, its handshake done."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(GREETING)
    _receive(connection, len(GREETING))
    ready = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", len(socket_type)) + socket_type
    connection.sendall(struct.pack(">BB", 0x04, len(ready)) + ready)
    _, size = _receive(connection, 2)
    _receive(connection, size)
    return connection


def frame(body: bytes, *, more: bool) -> bytes:
    """One frame as it goes over the wire."""
    return struct.pack(">BQ", LONG | (MORE if more else 0), len(body)) + body


def _receive(connection: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        part = connection.recv(count - len(got))
        assert part, "the node closed the connection"
        got += part
    return got
